"""Lotteries side by side: accuracy against density for several ways to rewind, and for controls on the same masks."""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import PruningConfig
from ..criteria import CRITERIA
from ..data import Dataset
from ..lottery.levels import Lottery
from ..pruning import Pruner
from ..util.plotting import LINES, TEXT, new_axes, plain_axes
from ..util.progress import check_verbose, progress
from ..util.registry import trait
from ..util.tables import new_table, table_lines
from .lottery_network import CONTROLS, REWINDS, LotteryNetwork
from .runs import RunsReport, RunTable, band, check_each_once, check_epochs, check_seeds, runs_drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = (*REWINDS, *CONTROLS)
DENSE = "dense"


@dataclass(frozen=True)
class LotteryRun:
    """One training run: a level of a lottery, or of a control.

    Attributes:
        mode: one of `MODES`; "dense" at level 0.
        masks_of: the mode whose masks it has: its own, but for a control; "dense" at level 0.
        level: number of prunings before it.
        seed: of the initial weights, the order of the examples and the control's draws.
        density: fraction of nonzeros over all masked weights.
        accuracy: on the test part after the last epoch, in [0, 1].
        best: the highest accuracy of any epoch. It is chosen on the test part, so report it only beside others' best.
        seconds: wall-clock time of the training.
    """

    mode: str
    masks_of: str
    level: int
    seed: int
    density: float
    accuracy: float
    best: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What distinguishes it from the other runs."""
        return self.mode, self.masks_of, self.level, self.seed


@dataclass(frozen=True)
class LotteryRuns(RunsReport[LotteryRun]):
    """What `kprune.lottery_runs.run_lotteries` found; `print(report)` shows a table.

    `plot` draws accuracy against density: for each mode the mean over the seeds in a band from least to most.

    Attributes:
        cells: one `LotteryRun` per training run: by seed, then mode, then level.
        modes: the modes, in their order.
        chance: the accuracy of guessing: 1 / classes.
        settings: what the runs had in common, as in the columns of the file.
    """

    modes: tuple[str, ...]
    chance: float
    settings: dict[str, Any]

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels, from 0."""
        return tuple(sorted({cell.level for cell in self.cells}))

    @property
    def densities(self) -> tuple[float, ...]:
        """The density of each level, descending."""
        found = {cell.level: cell.density for cell in self.cells}
        return tuple(found[level] for level in self.levels)

    def of(self, mode: str, level: int) -> tuple[LotteryRun, ...]:
        """The runs of a mode at a level, one for each seed; at level 0 those of the dense network."""
        name = mode if level else DENSE
        return tuple(cell for cell in self.cells if (cell.mode, cell.level) == (name, level))

    def margin(self, mode: str, level: int, over: str = DENSE) -> tuple[float, float]:
        """By how much a mode is more accurate than another (the dense network by default), seed by seed.

        Args:
            mode, level: of the one.
            over: the other mode, at the same level; "dense" for the network before any pruning.

        Returns:
            The mean over the seeds of the difference of their accuracies, and its standard error (NaN for one seed).
        """
        ones, others = self.of(mode, level), self.of(over, level if over != DENSE else 0)
        differences = [one.accuracy - other.accuracy for one, other in zip(ones, others, strict=True)]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        return fmean(differences), error

    def _draw(self) -> Figure:
        return _figure(self)

    def __str__(self) -> str:
        table = new_table()
        for column in ("level", "density", *self.modes):
            table.add_column(column, justify="right")
        for level, share in zip(self.levels, self.densities, strict=True):
            table.add_row(str(level), f"{share:.2%}", *(_shown(self.of(mode, level)) for mode in self.modes))
        several = f"mean +- half the range of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        return "\n".join(
            [*table_lines(table), f"test accuracy after the last epoch, in per cent, {several}; level 0 is dense"]
        )


def run_lotteries(
    build: Callable[[int], Any],
    data: Dataset,
    modes: Sequence[str] = ("init", "rewind", *CONTROLS),
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
    """Lottery tickets against their controls, or ways to rewind against each other, level by level.

    Each mode is a `kprune.find_ticket` of its own: level 0 trains the dense network, each later level prunes the share
    `rate` of what is left, rewinds and trains again. Data come by `kprune.RewindableBatches`, so their order is rewound
    with the optimizer. The modes:

    - "init": everything goes back to its initial state, and the level trains all epochs (arXiv:1803.03635).
    - "rewind": all goes back to `rewind_to`, and the level trains from there (arXiv:1903.01611).
    - "learning_rate": the optimizer and with it the learning rate schedule go back there, weights stay as trained
      (arXiv:2003.02389).
    - "finetune": nothing goes back; as many epochs at the rate with which the training ended.

    The controls have, at each level, the masks that "init" found there, or if it is not among the modes "rewind":

    - "reinitialize": fresh weights, which train all epochs.
    - "shuffle": in each weight as many are kept, but others; they begin where the ticket does.

    Args:
        build: a function of a seed that returns a new Keras 3 model, or a tf_keras model that `kprune.mask` returned,
            compiled with metrics=["accuracy"]; it sets the seeds, as by `keras.utils.set_random_seed(seed)`. A
            schedule of the learning rate belongs in the optimizer, where it is rewound, too; for "finetune" one that
            does not end at 0.
        data: what to train and test on, in arrays, from `kprune.data.load`.
        modes: some of `MODES`; a control needs "init" or "rewind" beside it.
        levels, rate, rewind_to, criterion, scope, rounds: as in `kprune.find_ticket`. Criteria that need data get 10
            training examples of each class.
        seeds: integers >= 0.
        epochs: of the dense training.
        path: CSV file for the runs, one row each, complete after each run. If the file exists, the lotteries resume;
            finished runs are not repeated. Beside it, NAME-levels/ holds what a lottery needs to go on.
        settings: what else decides the outcome (the network's name, the learning rate ...), as name -> value: columns
            of the file.
        verbose: 0 silent, 1 or "auto" a progress bar over the runs, 2 a line at the end.

    Returns:
        `LotteryRuns`: `cells`, `of(mode, level)`, `to_dict()`, `plot(path)`; its str is a table.

    Raises:
        ValueError: an argument is wrong; or the file at `path` is not such a CSV file or was made with other settings
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
            f"Only data held as arrays can be rewound, not a stream of batches. Received: data={data.name!r}"
        )
    own = {
        **{"dataset": data.name, "batch_size": data.batch_size, "epochs": epochs, "levels": levels, "rate": rate},
        **{"rewind_to": rewind_to, "criterion": CRITERIA.name_of(criterion), "scope": scope, "rounds": rounds},
    }
    table = RunTable(path, LotteryRun, own, settings)
    needs_data = "data" in trait(CRITERIA.get(criterion), "needs", ())
    pruning: dict[int, dict[str, Any]] = {
        # All, as the first batches of a sample have only the first classes.
        seed: {"seed": seed, "data": data.sample(seed=seed) if needs_data else None, "batches": None}
        for seed in seeds
    }
    by: dict[str, Any] = {"criterion": criterion, "scope": scope, "rounds": rounds}
    for options in pruning.values():  # wrong arguments are known before the first training
        config = PruningConfig(**by, seed=options["seed"])
        lottery = Lottery.of(levels, rate, rewind_to, "weights", Pruner(config, options["data"], options["batches"]))
    if {"rewind", "learning_rate", "finetune"} & set(modes):
        step = lottery.point.in_batches(epochs, math.ceil(len(data.train[0]) / data.batch_size))
        if step == 0 and {"init", "rewind"} <= set(modes):
            raise ValueError(
                f"`rewind_to` is the start of training; mode 'init' already covers it. Received: {modes=}, {rewind_to=}"
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
                    f"{folder} holds levels of runs that the file lacks: delete the folder, or choose another path. "
                    f"Received: path={str(table.path)!r}"
                )
            # Killed in the very first level, of whose settings no row tells: a begin is drawn anew.
            for begun in folder.glob("*/*/state.npz"):
                begun.unlink()

        for seed in seeds:
            missing = [key for key in _keys(modes, base, levels, seed) if key not in table.cells]
            if not missing:
                continue
            bar.set_description(f"lottery, seed {seed}")

            def keep(mode: str, masks_of: str, level: int, result: dict[str, Any], seed: int = seed) -> None:
                names = (mode, masks_of) if level else (DENSE, DENSE)
                numbers = {name: result[name] for name in ("density", "accuracy", "best", "seconds")}
                cell = LotteryRun(*names, level, seed, **numbers)
                if cell.key not in table.cells:  # each lottery trains the dense network anew
                    table.add(cell)
                    bar.update(cell.key in keys)

            wanted = {mode for mode, _, _, _ in missing}
            if wanted & {DENSE, *CONTROLS}:
                wanted.add(base)
            network = LotteryNetwork(build(seed), data, epochs, seed, folder / f"seed-{seed}", keep)
            for mode in REWINDS:
                if mode in wanted:
                    network.draw(mode, rewind_to, levels=levels, rate=rate, **by, **pruning[seed])
            for mode, masks_of, level, _ in missing:
                if mode in CONTROLS:
                    network.control(mode, masks_of, level, rewind_to)
    return LotteryRuns(tuple(table.cells[key] for key in keys), tuple(modes), 1 / data.classes, table.settings)


def _levels_beside(path: Path) -> Path:
    """NAME-levels for NAME.csv, or a shorter unique name if that has more than 255 bytes."""
    name = f"{path.stem}-levels"
    if len(os.fsencode(name)) > 255:
        name = f"{zlib.crc32(os.fsencode(path.stem)):08x}-{path.stem[-40:]}-levels"
    return path.with_name(name)


def _check_modes(modes: Sequence[str]) -> str:
    """The mode that shows the dense network and whose masks the controls have; ValueError if the modes are wrong."""
    check_each_once("modes", modes)
    wrong = [mode for mode in modes if mode not in MODES]
    if wrong:
        raise ValueError(f"A mode must be one of {', '.join(MODES)}. Received: mode={wrong[0]!r}")
    base = next((mode for mode in REWINDS if mode in modes), "")
    if set(CONTROLS) & set(modes) and base not in ("init", "rewind"):
        raise ValueError(f"A control needs mode 'init' or 'rewind', whose masks it uses. Received: modes={modes!r}")
    return base


def _keys(modes: Sequence[str], base: str, levels: int, seed: int) -> list[tuple[str, str, int, int]]:
    """The keys of a seed's runs, in order."""
    return [
        (DENSE, DENSE, 0, seed),
        *((mode, base if mode in CONTROLS else mode, level, seed) for mode in modes for level in range(1, levels + 1)),
    ]


def _shown(cells: Sequence[LotteryRun]) -> str:
    values = [100 * cell.accuracy for cell in cells]
    spread = f" +- {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.1f}{spread}"


def _figure(report: LotteryRuns) -> Figure:
    from matplotlib.ticker import PercentFormatter

    figure, axes = new_axes(9, 5, dpi=100)
    for mode, color in zip(report.modes, itertools.cycle(LINES[::-1]), strict=False):
        columns = [report.of(mode, level) for level in report.levels]
        band(axes, report.densities, columns, color=color, label=mode, marker="o", markersize=4)
    dense = float(np.mean([cell.accuracy for cell in report.of("dense", 0)]))
    axes.axhline(dense, color=TEXT, linewidth=1, linestyle=":", label="dense")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("density: weights left / weights")
    axes.set_ylabel("test accuracy after the last epoch")
    plain_axes(axes)
    figure.suptitle(f"lottery tickets: {runs_drawn(report)}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


__all__ = ["MODES", "LotteryRun", "LotteryRuns", "run_lotteries"]
