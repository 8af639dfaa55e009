"""A lottery that calls the user's own training function once per level."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..callbacks import TakeSnapshot
from ..callbacks._taker import SnapshotTaker
from ..callbacks.base import Callback, MaskingCallback
from ..config import PruningConfig
from ..lottery.levels import STATE, Level, Lottery, State
from ..lottery.ticket import Ticket
from ..masks import library_of, masked
from ..pruning import Pruner
from ..runtime.locks import Lock
from ..util.checks import check_function, check_integer, check_path
from ..util.progress import check_verbose, progress


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
    """Find a lottery ticket by repeatedly training, pruning a fraction of the remaining weights, and rewinding.

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
    if shuffle_seed is not None:
        check_integer("shuffle_seed", shuffle_seed, 0)
    if folder is not None:
        check_path("folder", folder)
    with nullcontext() if folder is None else Lock(Path(folder, STATE)):
        with masked(model):
            state = State.load(folder, lottery, model)
        with progress("lottery", levels + 1, verbose, unit="levels", done=len(state.results)) as bar:
            for level in lottery.run(model, state):
                watching = watch(lottery, state)
                if shuffle_seed is not None:
                    library = library_of(model).package
                    library.utils.set_random_seed(shuffle_seed)
                    watching.append(_Seeded(shuffle_seed))
                own = None if folder is None else Path(folder, f"level-{level.number}")
                if own is not None:
                    own.mkdir(parents=True, exist_ok=True)
                result = _numbers(train(model, replace(level, callbacks=watching, folder=own)))
                state.end(level, result, folder, lottery, model)
                bar.update()
    return state.ticket(lottery, model)


def watch(lottery: Lottery, state: State) -> list[Any]:
    """Return the callbacks that must be passed to every call to `fit` in the next level."""
    watching: list[Any] = [MaskingCallback() if state.results else _Taker(lottery, state)]
    if lottery.pruner.config.tracker() is not None:
        watching.insert(0, _Watching(lottery.pruner))  # first: the step that ends at the point is before it
    return watching


class _Taker(TakeSnapshot):
    """A callback that takes the snapshot of level 0, counting from the first call to `fit`."""

    def __init__(self, lottery: Lottery, state: State):
        super().__init__()
        self._lottery, self._state = lottery, state
        self._taker = SnapshotTaker(self, lottery.point, took=self._took)

    def _took(self) -> None:
        self._lottery.pruner.begin(self.model)
        self._note()

    def _note(self) -> None:
        self._state.to = self._state.to or self._taker.snapshot
        self._state.initial_epoch = self._taker.first_epoch()

    def on_train_begin(self, logs: Any = None) -> None:
        if self._taker.begun:
            self._restored = True
        super().on_train_begin(logs)

    def on_train_end(self, logs: Any = None) -> None:
        MaskingCallback.on_train_end(self, logs)  # a later fit of the level may come to the point
        self._note()


class _Watching(MaskingCallback):
    """A callback that lets the criterion's tracker watch the user's training."""

    def __init__(self, pruner: Pruner):
        super().__init__()
        self._pruner = pruner

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch)
        self._pruner.resume(self.model)

    def _works_after(self, batch: int) -> bool:
        return self._pruner.watches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._pruner.watches:
            self._pruner.after_step(self.model)

    def get_state(self) -> dict[str, np.ndarray]:
        return self._pruner.get_state()

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._pruner.set_state(self.model, state)


class _Seeded(Callback):
    """A callback that resets the seed for shuffling the data at the start of each call to `fit`.

    In a model's first fit, Keras's trainer for JAX has by then drawn an order from NumPy to look at a batch (checked
    with Keras 3.15.1), so later levels would be shuffled otherwise than level 0.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_train_begin(self, logs: Any = None) -> None:
        np.random.seed(self.seed)


def _numbers(result: Any) -> dict[str, Any]:
    """Convert the result of a training run to a dict of numbers, or of lists for metrics with several values."""
    if result is None:
        return {}
    if hasattr(result, "history"):
        result = {name: values[-1] for name, values in result.history.items() if len(values)}
    arrays = {name: np.asarray(v) for name, v in (result if isinstance(result, dict) else {"result": result}).items()}
    if any(array.dtype.kind not in "biuf" for array in arrays.values()):
        raise ValueError(
            f"`train` must return a History, a dict of numbers, a number or None. Received: result={result!r}"
        )
    return {str(name): array.astype(float).tolist() for name, array in arrays.items()}
