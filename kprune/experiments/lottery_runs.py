"""Compare the accuracy of lotteries at each density for several ways to rewind and for controls."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..config import PruningConfig
from ..criteria import CRITERIA
from ..data import Dataset
from ..lottery.levels import STATE, Lottery
from ..lottery.rewind import RENAMED, REWINDS, check_rewind
from ..pruning import Pruner
from ..util.progress import check_verbose, progress
from ..util.registry import trait
from .lottery_network import CONTROLS, LotteryNetwork
from .lottery_report import DENSE, LotteryRun, LotteryRuns
from .runs import RunTable, check_each_once, check_epochs, check_seeds

INIT = "init"
MODES = (INIT, *REWINDS, *CONTROLS)
_NUMBERS = ("density", "accuracy", "best", "seconds", "early_stop", "early_accuracy", "curve")


def run_lotteries(
    build: Callable[[int], Any],
    data: Dataset,
    modes: Sequence[str] = (INIT, "weights", *CONTROLS),
    levels: int = 8,
    rate: float = 0.4,
    rewind_to: str | int | float = "epoch:1",
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 20,
    *,
    criterion: str | Callable[..., Any] = "magnitude",
    scope: str | None = None,
    rounds: int | None = None,
    path: str | os.PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    verbose: Any = "auto",
) -> LotteryRuns:
    """Compare lottery tickets with their controls, or ways to rewind with each other, level by level.

    Each mode is a lottery of its own: level 0 trains the dense network, each later level prunes the share `rate` of
    what is left, rewinds and trains again. Data come by `kprune.RewindableBatches`, so their order is rewound with the
    optimizer. The modes:

    - "init": as "weights", with rewind_to="init", so the level trains all epochs (arXiv:1803.03635).
    - "weights": all goes back to `rewind_to`, and the level trains from there (arXiv:1903.01611).
    - "learning_rate": the optimizer and with it the learning rate schedule go back there, weights stay as trained
      (arXiv:2003.02389).
    - "none": nothing goes back (fine-tuning); as many epochs at the rate with which the training ended.

    The controls have, at each level, the masks that "init" found there, or if it is not among the modes "weights":

    - "reinitialize": fresh weights, which train all epochs.
    - "shuffle": in each weight as many are kept, but others; they begin where the ticket does.

    Args:
        build: a function of a seed that returns a new Keras 3 model, or a tf_keras model that `kprune.mask` returned,
            compiled with metrics=["accuracy"]; it sets the seeds, as by `keras.utils.set_random_seed(seed)`. A
            schedule of the learning rate belongs in the optimizer, where it is rewound, too; for "none" one that does
            not end at 0.
        data: what to train and test on, in arrays, from `kprune.data.load`.
        modes: some of `MODES`; a control needs "init" or "weights" beside it.
        levels, rate, rewind_to, criterion, scope, rounds: as in `kprune.find_ticket`. Criteria that need data get 10
            training examples of each class.
        seeds: integers >= 0.
        epochs: of the dense training.
        path: CSV file for the runs, one row each, complete after each run. If the file exists, the lotteries resume;
            finished runs are not repeated. Beside it, NAME-levels/ holds what a lottery needs to go on. Files of kprune
            0.1, which called "weights" and "none" otherwise, go on under today's names.
        settings: what else decides the outcome (the network's name, the learning rate ...), as name -> value: columns
            of the file.
        verbose: 0 silent, 1 or "auto" a progress bar over the runs, 2 a line at the end.

    Returns:
        `LotteryRuns`: `cells`, `of(mode, level)`, `to_dict()`, `plot(path)`, `plot_training(path)`; its str is a table.

    Raises:
        ValueError: an argument is wrong; or the file at `path` is no such CSV or was made with different settings
            (they are named), or the folder beside it belongs to another file; nothing has been trained or written then.
            With the first network: it is a tf_keras model without masks, or no accuracy is compiled.
        OSError: a file cannot be read or written, or another process is at it.

    >>> import keras, kprune
    >>> def build(seed):
    ...     keras.utils.set_random_seed(seed)
    ...     model = kprune.models.lenet_300_100((8, 8, 1), width=0.1)
    ...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    ...     return model
    >>> options = dict(levels=1, rate=0.5, seeds=[0], epochs=1, verbose=0)
    >>> report = run_lotteries(build, kprune.data.load("digits"), ["init", "shuffle"], **options)
    >>> [(cell.mode, cell.masks_of, cell.density) for cell in report.cells]
    [('dense', 'dense', 1.0), ('init', 'init', 0.5), ('shuffle', 'init', 0.5)]
    """
    check_verbose(verbose)
    base = _check_modes(modes)
    check_seeds(seeds)
    check_epochs(epochs)
    if not isinstance(data.train, tuple):
        raise ValueError(
            "`data` must be stored in arrays, because a stream of batches cannot be replayed in the same order. "
            f"Received: data={data.name!r}"
        )
    own = {
        **{"dataset": data.name, "batch_size": data.batch_size, "epochs": epochs, "levels": levels, "rate": rate},
        **{"rewind_to": rewind_to, "criterion": CRITERIA.name_of(criterion), "scope": scope, "rounds": rounds},
    }
    table = RunTable(path, LotteryRun, own, settings)
    # All, as the first batches of a sample have only the first classes.
    needs_data = "data" in trait(CRITERIA.get(criterion), "needs", ())
    samples = {seed: data.sample(seed=seed) if needs_data else None for seed in seeds}

    def lottery(mode: str, seed: int) -> Lottery:
        config = PruningConfig(criterion, scope=scope, rounds=rounds, seed=seed)
        way = (INIT, "weights") if mode == INIT else (rewind_to, mode)
        return Lottery.of(levels, rate, *way, Pruner(config, samples[seed], None))

    (point,) = {lottery("weights", seed).point for seed in seeds}  # wrong arguments are known before the first training
    if set(REWINDS) & set(modes):
        step = point.in_batches(epochs, math.ceil(len(data.train[0]) / data.batch_size))
        if step == 0 and {INIT, "weights"} <= set(modes):
            raise ValueError(
                "`rewind_to` must not be the start of training if `modes` contains 'init' and 'weights', because both "
                f"modes would then be identical. Received: {modes=}, {rewind_to=}"
            )

    keys = [key for seed in seeds for key in _keys(modes, base, levels, seed)]
    with (
        TemporaryDirectory() as scratch,
        table,
        progress("lottery", len(keys), verbose, unit="runs", done=sum(key in table.cells for key in keys)) as bar,
    ):
        folder = Path(scratch) if table.path is None else _levels_beside(table.path)
        if not table.cells:
            if any(folder.glob("*/*/level-*.npz")):
                raise ValueError(
                    f"{folder} contains levels of runs that are missing from the file: delete the folder, or choose "
                    f"another path. Received: path={str(table.path)!r}"
                )
            # Killed in the very first level, of whose settings no row tells: a begin is drawn anew.
            for begun in folder.glob(f"*/*/{STATE}"):
                begun.unlink()
        for then, now in RENAMED.items():
            for drawn in folder.glob(f"seed-*/{then}"):
                drawn.rename(drawn.with_name(now))

        for seed in seeds:
            missing = [key for key in _keys(modes, base, levels, seed) if key not in table.cells]
            if not missing:
                continue
            bar.set_description(f"lottery, seed {seed}")

            def keep(mode: str, masks_of: str, level: int, result: dict[str, Any], seed: int = seed) -> None:
                names = (mode, masks_of) if level else (DENSE, DENSE)
                # The levels of kprune 0.1 lack the early stop.
                numbers = {name: result[name] for name in _NUMBERS if name in result}
                cell = LotteryRun(*names, level, seed, **numbers)
                if cell.key not in table.cells:  # each lottery trains the dense network anew
                    table.add(cell)
                    bar.update(cell.key in keys)

            wanted = {mode for mode, _, _, _ in missing}
            if wanted & {DENSE, *CONTROLS}:
                wanted.add(base)
            network = LotteryNetwork(build(seed), data, epochs, seed, folder / f"seed-{seed}", keep)
            for mode in (INIT, *REWINDS):
                if mode in wanted:
                    network.draw(mode, lottery(mode, seed))
            for mode, masks_of, level, _ in missing:
                if mode in CONTROLS:
                    network.control(mode, masks_of, level, lottery(masks_of, seed).point)
    return LotteryRuns(tuple(table.cells[key] for key in keys), tuple(modes), 1 / data.classes, table.settings)


def _levels_beside(path: Path) -> Path:
    """Return NAME-levels for NAME.csv, or a shorter unique name if that exceeds 255 bytes."""
    name = f"{path.stem}-levels"
    if len(os.fsencode(name)) > 255:
        name = f"{zlib.crc32(os.fsencode(path.stem)):08x}-{path.stem[-40:]}-levels"
    return path.with_name(name)


def _check_modes(modes: Sequence[str]) -> str:
    """Check the modes, and return the one that trains the dense network and provides the controls' masks."""
    check_each_once("modes", modes)
    for mode in modes:
        check_rewind("mode", mode, MODES)
    base = next((mode for mode in (INIT, *REWINDS) if mode in modes), "")
    if set(CONTROLS) & set(modes) and base not in (INIT, "weights"):
        raise ValueError(
            "Controls require mode 'init' or 'weights' in `modes`, because they reuse the masks of that mode. "
            f"Received: modes={modes!r}"
        )
    return base


def _keys(modes: Sequence[str], base: str, levels: int, seed: int) -> list[tuple[str, str, int, int]]:
    """Return the keys of a seed's runs in order."""
    return [
        (DENSE, DENSE, 0, seed),
        *((mode, base if mode in CONTROLS else mode, level, seed) for mode in modes for level in range(1, levels + 1)),
    ]


__all__ = ["MODES", "LotteryRun", "LotteryRuns", "run_lotteries"]
