"""find_ticket: a lottery that calls the user's own training once per level."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..callbacks import TakeSnapshot
from ..callbacks.base import Callback, MaskingCallback
from ..config import PruningConfig
from ..lottery.levels import Lottery, density
from ..lottery.rewind import Snapshot, restore, snapshot
from ..lottery.ticket import Ticket
from ..masks import current_masks, library_of, masked, masked_weights
from ..pruning import Pruner
from ..runtime.files import joined, pack, read, split, understanding, unpack, write
from ..runtime.locks import Lock
from ..util.checks import check_function, check_path
from ..util.progress import check_verbose, progress

_STATE = "state.npz"


@dataclass(frozen=True)
class Level:
    """One training of a lottery, as `find_ticket` hands it to the user's function.

    Attributes:
        number: 0 for the network as it is given, then 1, 2 ...
        sparsity: fraction of zeros over all masked weights.
        initial_epoch: the epoch at which its training begins, for `fit(initial_epoch=...)`: 0, or after a rewind the
            one in which the rewind point lies.
        callbacks: must be among those of `fit`.
        folder: a folder of its own for what the training writes (backups, logs), None without
            `folder=`.
    """

    number: int
    sparsity: float
    initial_epoch: int
    callbacks: list[Any]
    folder: Path | None


def find_ticket(
    model: Any,
    train: Callable[[Any, Level], Any],
    *,
    levels: int,
    rate: float = 0.2,
    rewind_to: str | int | float = "init",
    rewind: str = "weights",
    criterion: str | Callable[..., Any] = "magnitude",
    data: Any = None,
    batches: int | None = 1,
    shuffle_seed: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    verbose: Any = "auto",
    **config_fields: Any,
) -> Ticket:
    """Train, prune a share of what is left, rewind, train again: a lottery around the user's own training.

    Level 0 trains the model as it is. Before each later level the share `rate` of the surviving weights is pruned and
    the model rewound (arXiv:1803.03635, 1903.01611, 2003.02389). `train` makes its callbacks anew in each call, so
    EarlyStopping, ReduceLROnPlateau and the like see each level for itself.

    With `folder` the lottery survives any kill: started again with the same arguments, on a model that is built
    alike, it goes on with the level that was not finished. Inside a level, a
    `kprune.callbacks.BackupAndRestore(level.folder / "backup.npz")` in `train` does the same.

    Args:
        model: a built Keras 3 model, masked first if it has no masks; or a tf_keras model that `kprune.mask` returned.
            Compiled before, its optimizer is rewound with it; a `train` that compiles it begins with a new one.
        train: a function of model and `Level`, which trains the model. What it returns is noted in the ticket: the
            History (the last logs), a dict of numbers, a number, or None.
        levels, rate, rewind_to, rewind, criterion, data, batches, config_fields: as in
            `kprune.callbacks.LotteryTicket`; a share is one of the epochs of the fit of level 0.
        shuffle_seed: Keras's random seed before each level, so that each shuffles its data alike; None sets none.
        folder: where to keep the state, and a ticket per level ("level-3.npz").
        verbose: 0 silent, 1 or "auto" a progress bar over the levels, 2 a line at the end.

    Returns:
        `kprune.Ticket`: the masks of the last level, the weights of the rewind point; `about["results"]` holds the
        levels. The model is trained at the last level.

    Raises:
        ValueError: an argument is wrong, or `folder` holds the state of another lottery, or a damaged one.
        RuntimeError: `train` left out `level.callbacks`, so the rewind point was not seen.
        OSError: another process uses `folder`; or the state cannot be written (no space left), and that of the level
            before is still there.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> def train(model, level):
    ...     fitting = dict(epochs=2, initial_epoch=level.initial_epoch, callbacks=level.callbacks, verbose=0)
    ...     return model.fit(np.ones((32, 8)), np.ones((32, 1)), **fitting)
    >>> ticket = kprune.find_ticket(model, train, levels=2, rate=0.5, rewind_to="epoch:1", verbose=0)
    >>> ticket.sparsity
    0.75
    """
    check_verbose(verbose)
    pruner = Pruner(PruningConfig.of(criterion, **config_fields), data, batches)
    lottery = Lottery.of(levels, rate, rewind_to, rewind, pruner)
    check_function("train", train, "a model and a kprune.Level")
    if folder is None:
        return _find(model, train, lottery, rewind_to, shuffle_seed, None, verbose)
    check_path("folder", folder)
    with Lock(Path(folder, _STATE)):
        return _find(model, train, lottery, rewind_to, shuffle_seed, folder, verbose)


def _find(
    model: Any,
    train: Callable[[Any, Level], Any],
    lottery: Lottery,
    rewind_to: str | int | float,
    shuffle_seed: int | None,
    folder: str | os.PathLike[str] | None,
    verbose: Any,
) -> Ticket:
    with masked(model):
        state = _State.load(folder, lottery, model)
    with progress("lottery", lottery.levels + 1, verbose, unit="levels", done=len(state.results)) as bar:
        _levels(model, train, lottery, _Taker(rewind_to, lottery.pruner), shuffle_seed, folder, state, bar)
    return state.ticket(lottery, model)


def _levels(
    model: Any,
    train: Callable[[Any, Level], Any],
    lottery: Lottery,
    taker: _Taker,
    shuffle_seed: int | None,
    folder: str | os.PathLike[str] | None,
    state: _State,
    bar: Any,
) -> None:
    """Train the levels that are left, from what is known of those before."""
    for number in range(len(state.results), lottery.levels + 1):
        if state.to is not None and number > 0:
            lottery.begin_level(model, number, state.density, state.to)
        watching: list[Any] = [MaskingCallback() if number else taker]
        if lottery.pruner.config.tracker() is not None:
            watching.insert(0, _Watching(lottery.pruner))  # first: the step that ends at the point is before it
        if shuffle_seed is not None:
            library_of(model).package.utils.set_random_seed(shuffle_seed)
            watching.append(_Seeded(shuffle_seed))
        own = None if folder is None else Path(folder, f"level-{number}")
        if own is not None:
            own.mkdir(parents=True, exist_ok=True)
        sparsity = 1 - density(masked_weights(model))
        level = Level(number, sparsity, state.initial_epoch, watching, own)
        result = _numbers(train(model, level))
        if number == 0:
            state.to = state.to or taker.taken()
            state.initial_epoch = taker.first_epoch()
        state.results.append({**result, "level": number, "sparsity": sparsity})
        if folder is not None:
            state.ticket(lottery, model).save(Path(folder, f"level-{number}.npz"))
            state.save(folder, lottery, model)
        bar.update()


class _Taker(TakeSnapshot):
    """Takes the snapshot of level 0, also where its training is several fits: it counts from the first on."""

    def __init__(self, at: str | int | float, pruner: Pruner):
        super().__init__(at)
        self._pruner = pruner

    def took(self) -> None:
        self._pruner.begin(self.model)

    def on_train_begin(self, logs: Any = None) -> None:
        self._restored = self._restored or self._counter.begun is not None
        super().on_train_begin(logs)

    def missed(self) -> None:
        """A later fit of the level may reach the point."""


class _Watching(MaskingCallback):
    """Lets what the criterion goes by watch the user's training."""

    def __init__(self, pruner: Pruner):
        super().__init__()
        self._pruner = pruner

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch)
        self._pruner.resume(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._pruner.watches:
            self._pruner.after_step(self.model)

    def get_state(self) -> dict[str, np.ndarray]:
        return self._pruner.get_state()

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._pruner.set_state(self.model, state)


class _Seeded(Callback):
    """Seeds the order of the data once more when a fit begins.

    In a model's first fit, Keras's trainer for JAX has by then drawn an order from NumPy to look at a batch (checked
    with Keras 3.15.1), so later levels would be shuffled otherwise than level 0.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_train_begin(self, logs: Any = None) -> None:
        np.random.seed(self.seed)


@dataclass
class _State:
    """What is known between two levels, and its file."""

    density: float
    to: Snapshot | None = None
    initial_epoch: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None, lottery: Lottery, model: Any) -> _State:
        """The state of the last level that ended, with the model as it was then; or that of the beginning."""
        data = None if folder is None else read(Path(folder, _STATE))
        if folder is None or data is None:
            begin = cls(density(masked_weights(model)))
            if lottery.point.steps == 0:
                begin.to = snapshot(model)
            if folder is not None:
                begin.save(folder, lottery, model)
            return begin
        arrays, about = unpack(data, str(Path(folder, _STATE)))
        if about.get("settings") != lottery.settings:
            raise ValueError(
                f"The folder belongs to another lottery, with settings {about.get('settings')!s:.1000}: name "
                "another folder, or delete "
                f"it. Received: folder={os.fspath(folder)!r}, settings={lottery.settings}"
            )
        with understanding(str(Path(folder, _STATE))):
            parts = split(arrays, "mask", "now", "to", "tracker")
            to = Snapshot.from_arrays(parts["to"]) if parts["to"] else None
            state = cls(about["density"], to, about["initial_epoch"], about["results"])
            state._check()
            for then in (to, Snapshot.from_arrays(parts["now"])):
                if then is not None:
                    restore(model, parts["mask"], then)
            lottery.pruner.set_state(model, parts["tracker"])
        return state

    def _check(self) -> None:
        """ValueError unless it is what `save` writes."""
        if type(self.density) is not float or not 0 <= self.density <= 1:
            raise ValueError(f"density={self.density!r}")
        if type(self.initial_epoch) is not int or self.initial_epoch < 0:
            raise ValueError(f"initial_epoch={self.initial_epoch!r}")
        levels = list(range(len(self.results)))
        if not isinstance(self.results, list) or [result["level"] for result in self.results] != levels:
            raise ValueError(f"results={self.results!r:.100}")

    def ticket(self, lottery: Lottery, model: Any) -> Ticket:
        """The ticket of the masks that the model has."""
        return lottery.ticket(model, self.to or snapshot(model), self.results)

    def save(self, folder: str | os.PathLike[str], lottery: Lottery, model: Any) -> None:
        to = {} if self.to is None else self.to.to_arrays()
        tracked = lottery.pruner.get_state()
        arrays = joined(mask=current_masks(model), now=snapshot(model).to_arrays(), to=to, tracker=tracked)
        known = {"density": self.density, "initial_epoch": self.initial_epoch, "results": self.results}
        write(Path(folder, _STATE), pack(arrays, {"settings": lottery.settings, **known}))


def _numbers(result: Any) -> dict[str, Any]:
    """What a training returned, as numbers by name, or lists of them where a metric has several."""
    if result is None:
        return {}
    if hasattr(result, "history"):
        result = {name: values[-1] for name, values in result.history.items() if len(values)}
    arrays = {name: np.asarray(v) for name, v in (result if isinstance(result, dict) else {"result": result}).items()}
    if any(array.dtype.kind not in "biuf" for array in arrays.values()):
        raise ValueError(
            f"`train` must return a History, a dict of numbers, a number or None. Received: {type(result)}, {result!r}"
        )
    return {str(name): array.astype(float).tolist() for name, array in arrays.items()}
