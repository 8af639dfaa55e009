"""LotteryTicket: iterative pruning with rewinding inside one fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.lottery.levels import Level, Lottery, State, density
from kprune.lottery.rewind import Arrays
from kprune.lottery.ticket import Ticket
from kprune.masks import masked_weights
from kprune.pruning import Pruner
from kprune.runtime.distribution import to_numpy
from kprune.runtime.files import joined, split
from kprune.runtime.locks import Lock
from kprune.util.checks import check_integer, check_npz

from ._taker import SnapshotTaker, progress_of
from .base import MaskingCallback


class LotteryTicket(MaskingCallback):
    """Train, prune a fraction of the remaining weights, and rewind; do this `levels` times in one `model.fit` call.

    Level 0 trains the model as it is for `epochs_per_level` epochs. A later level begins where the rewind point lies:
    rewound to epoch e, it trains the epochs from e to `epochs_per_level`; `total_epochs` counts them all. Pruning and
    rewinding happen between two epochs, after all callbacks have seen the end of the first. A rewind takes weights,
    normalization statistics, seed generators, and the optimizer with its slots, iterations and learning rate back
    (arXiv:1803.03635, 1903.01611, 2003.02389); data go back too if their order follows the optimizer's steps, as
    that of `kprune.RewindableBatches` does.

    Keras's logs get `level` and `sparsity`, so History and the callbacks listed after this one (CSVLogger ...) tell
    levels apart. Beside it: `LearningRateScheduler(callback.within_level(schedule))`; a learning rate schedule in the
    optimizer needs nothing. ReduceLROnPlateau remembers the best of the level before, unless it is among `restart`.
    EarlyStopping would end the whole fit in the first level that stops improving, and is answered with an error: use
    `kprune.find_ticket`. SwapEMAWeights(swap_on_epoch=True) is to be listed before it, or an error says so. A backup
    is to be listed after it: where it is not, and the fit is killed right after the last epoch of a level, the results
    of that level lack their logs.

    Args:
        levels: number of prunings, at least 1.
        epochs_per_level: epochs of level 0.
        rate: fraction of the surviving weights that each pruning takes.
        rewind_to: as in `kprune.RewindPoint.of`; a share is one of `epochs_per_level`. A step within an epoch is
            rewound to exactly; the level then begins with that epoch and trains it whole. With `steps_per_execution` =
            n, up to n - 1 batches later.
        rewind: "weights", "learning_rate" or "none", as in `kprune.rewind`.
        criterion: a name or function, as in `kprune.PruningConfig`; or a `PruningConfig`. What goes by how training
            went ("movement", "large_init" ...) is watched from the rewind point on.
        data, batches: as in `kprune.prune`.
        optimizer: the one whose steps count, where a `train_step` has its own; the compiled one by default. A rewind
            takes all optimizers that the model holds back.
        path: an .npz file for the ticket; none is written without.
        restart: callbacks of the same fit that begin anew with each level, such as ReduceLROnPlateau: their
            `on_train_begin` is called then (which has ReduceLROnPlateau forget its best from Keras 3.15 on).
        config_fields: scope, pattern, rounds and seed, as in `kprune.PruningConfig`.

    Attributes:
        ticket: `kprune.Ticket` after the fit: masks of the last level, and weights of the rewind point.
        results: per level a dict of level, sparsity and the logs of its last epoch.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or the fit has another
            number of epochs than `total_epochs`, or the rewind point is not within a level.
        RuntimeError: the fit ended before the last level, stopped by another callback; or another callback swapped
            the weights that a level was to begin with.
        OSError: at the start of `fit`: another process uses `path`.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> lottery = kprune.callbacks.LotteryTicket(levels=2, epochs_per_level=1, rate=0.5)
    >>> x, y, epochs = np.ones((32, 8)), np.ones((32, 1)), lottery.total_epochs()
    >>> fitted = model.fit(x, y, epochs=epochs, verbose=0, callbacks=[lottery])
    >>> fitted.history["level"], fitted.history["sparsity"]
    ([0, 1, 2], [0.0, 0.5, 0.75])
    """

    prunes = "during"

    def __init__(
        self,
        levels: int,
        epochs_per_level: int,
        *,
        rate: float = 0.2,
        rewind_to: str | int | float = "init",
        rewind: str = "weights",
        criterion: str | Callable[..., Any] | PruningConfig = "magnitude",
        data: Any = None,
        batches: int | None = 1,
        optimizer: Any = None,
        path: str | os.PathLike[str] | None = None,
        restart: Sequence[Any] = (),
        **config_fields: Any,
    ):
        super().__init__()
        check_integer("epochs_per_level", epochs_per_level, 1)
        if path is not None:
            check_npz("path", path)
        if not isinstance(restart, Sequence) or not all(hasattr(one, "on_train_begin") for one in restart):
            raise ValueError(
                f"`restart` must be a list of callbacks that are also passed to fit(). Received: restart={restart!r}"
            )
        pruner = Pruner(PruningConfig.of(criterion, **config_fields), data, batches)
        self.lottery = Lottery.of(levels, rate, rewind_to, rewind, pruner)
        self.optimizer, self.epochs_per_level, self.path = optimizer, epochs_per_level, path
        self._taker = SnapshotTaker(self, self.lottery.point, optimizer, epochs_per_level, self._took)
        self._lock = None if path is None else Lock(path)
        self.restart = tuple(restart)
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._taker.forget()
        self.lottery.pruner.forget()
        self.ticket: Ticket | None = None
        self._state: State | None = None
        self._ended = 0

    @property
    def prunes_channels(self) -> bool:
        return self.lottery.pruner.config.channels

    @property
    def results(self) -> list[dict[str, Any]]:
        return [] if self._state is None else self._state.results

    def total_epochs(self, steps_per_epoch: float | None = None) -> int:
        """Return the number of epochs to pass to `fit`.

        Args:
            steps_per_epoch: needed if `rewind_to` is a number of steps that lies after the first epoch (if it is
                missing, `fit` refuses the number of epochs and names the right one): batches of an epoch, divided by
                the optimizer's `gradient_accumulation_steps` if it has some.

        Raises:
            ValueError: the rewind point is not within a level.
        """
        if steps_per_epoch is None and self.lottery.point.steps:
            return self._total(0)
        return self._total(self.lottery.point.in_epochs(self.epochs_per_level, steps_per_epoch))

    def fit_kwargs(self, steps_per_epoch: float | None = None, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
        """Return the arguments to pass to `fit` besides the data: `epochs`, `shuffle=False` and `callbacks`.

        Args:
            steps_per_epoch: as in `total_epochs`.
            callbacks: of your own, listed after this one.

        >>> lottery = LotteryTicket(levels=2, epochs_per_level=3)
        >>> lottery.fit_kwargs()["epochs"]
        9
        """
        return {"epochs": self.total_epochs(steps_per_epoch), "shuffle": False, "callbacks": [self, *callbacks]}

    def within_level(self, schedule: Callable[..., float]) -> Callable[..., float]:
        """Return a schedule for `LearningRateScheduler` that restarts at the rewind point in each level.

        Args:
            schedule: epoch, or epoch and learning rate -> learning rate, as Keras takes it.
        """

        def scheduled(epoch: int, *rate: float) -> float:
            # Where the scheduler is listed before this callback: a rewind would take back what it sets.
            self._begin_epoch(epoch)
            now = [float(to_numpy(self.model.optimizer.learning_rate)) for _ in rate]
            return schedule(self._place(epoch)[1], *now)

        return scheduled

    def check_fit(self) -> None:
        self._taker.check_fit()
        expected, epochs = self._total(self._taker.first_epoch()), (self.params or {}).get("epochs")
        if epochs != expected:
            raise ValueError(
                f"{self.lottery.levels + 1} training runs take {expected} epochs in total: call fit with "
                f"epochs={expected}. Received: epochs={epochs}"
            )
        if self._lock is not None:
            self._lock.acquire()

    def cancel_fit(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if not self._restored:
            self._begin()
        self._begun: int | None = None  # the epoch that was begun last
        self._rewound: Arrays = {}  # what a level begins with, until its first batch
        self._levels: Iterator[Level] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin_epoch(epoch)

    def _begin_epoch(self, epoch: int) -> None:
        """Rewind once in the first epoch of a level, whichever hook runs first."""
        if self._begun == epoch:
            return
        self._begun = epoch
        level, within = self._place(epoch)
        if self._state is None:
            if level > 0:
                with self.undone():
                    raise ValueError(
                        "`initial_epoch` is in the middle of a lottery, but no lottery state was restored: start at "
                        f"epoch 0, or restore a backup. Received: initial_epoch={epoch}"
                    )
            self._state = State(density(masked_weights(self.model)))
        self._catch_up(epoch)
        self._taker.begin_epoch(epoch)
        super().on_epoch_begin(epoch)
        self.lottery.pruner.resume(self.model)
        begins = level > 0 and within == self._taker.first_epoch()
        if self._levels is None:
            if begins:
                del self.results[level:]  # of a backup of Keras's that was torn and is an epoch ahead
            self._levels = self.lottery.run(self.model, self._state, self.optimizer)
            if not self.results:
                next(self._levels)  # the dense network, as it is
        if begins:
            next(self._levels)
            self._rewound = {} if self.lottery.rewind == "none" else self._values()
            for callback in self.restart:
                callback.on_train_begin()
            logging.info("LotteryTicket: level %d starts at sparsity %.4f.", level, self._sparsity())

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_begin(batch)
        if self._rewound:
            now = self._values()
            if any(not np.array_equal(value, now[path], equal_nan=True) for path, value in self._rewound.items()):
                raise RuntimeError(
                    "Another callback changed the weights after they were rewound and before level "
                    f"{self._place(self._begun or 0)[0]} began. Put every callback that changes weights at the start "
                    "of an epoch, such as SwapEMAWeights(swap_on_epoch=True), before LotteryTicket in `callbacks`."
                )
            self._rewound = {}

    def _works_after(self, batch: int) -> bool:
        due = self._taker.works_after(batch)
        return due or self.lottery.pruner.watches  # in this order: the counter counts

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.lottery.pruner.watches:
            self.lottery.pruner.after_step(self.model)
        self._taker.after_batch(batch, self._carrier.waits.works(self))

    def _took(self) -> None:
        if self._state is not None:
            self._state.to = self._taker.snapshot
        self.lottery.pruner.begin(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._taker.end_epoch()
        reached = {"level": self._place(epoch)[0], "sparsity": self._sparsity()}
        if logs is not None:
            logs.update(reached)
        self._note(epoch, {**(logs or {}), **reached})

    def _note(self, epoch: int, reached: dict[str, Any]) -> None:
        """Record the results of a finished epoch, as numbers and lists."""
        self.results[reached["level"] :] = [{key: np.asarray(value).tolist() for key, value in reached.items()}]
        self._ended = epoch + 1

    def _catch_up(self, epochs: int) -> None:
        """Record an epoch that was backed up before it was recorded, because the backup callback is listed first."""
        if self._restored and self._ended < epochs:
            self._note(epochs - 1, {"level": self._place(epochs - 1)[0], "sparsity": self._sparsity()})

    def on_train_end(self, logs: Any = None) -> None:
        if self._carrier.loaded_epoch is not None:  # there was no epoch left to begin
            self._catch_up(self._carrier.loaded_epoch + 1)
        super().on_train_end(logs)
        self.lottery.pruner.end()
        expected = self._total(self._taker.first_epoch())
        if self._ended < expected:
            raise RuntimeError(
                f"Training was stopped in level {self._place(self._ended - 1)[0]} of {self.lottery.levels}, after "
                f"{self._ended} of {expected} epochs, by a callback that sets model.stop_training, such as "
                "EarlyStopping or TerminateOnNaN. To stop levels early, use kprune.find_ticket, which trains each "
                "level separately."
            )
        if self._state is not None:
            self.ticket = self._state.ticket(self.lottery, self.model)
            if self.path is not None and self._lock is not None:
                self.ticket.save(self.path)
                self._lock.release()

    def get_state(self) -> dict[str, np.ndarray]:
        began = None if self._state is None else self._state.density
        known = {"density": began, "results": self.results, "ended": self._ended, "settings": self._settings()}
        return {**self._taker.get_state(**known), **joined(tracker=self.lottery.pruner.get_state())}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        progress = progress_of(state)
        if progress["settings"] != self._settings():
            raise ValueError(
                f"The backup was written by a lottery with different settings: {progress['settings']}. Use those "
                f"settings, or delete the backup. Received: settings={self._settings()}"
            )
        super().set_state(state)
        tracked = {key: array for key, array in state.items() if key.startswith("tracker/")}
        self._taker.set_state({key: array for key, array in state.items() if key not in tracked})
        self.lottery.pruner.set_state(self.model, split(tracked, "tracker")["tracker"])
        began, results, self._ended = (progress[key] for key in ("density", "results", "ended"))
        self._state = None if began is None else State(began, self._taker.snapshot, results=results)

    def _settings(self) -> dict[str, Any]:
        return {**self.lottery.settings, "epochs_per_level": self.epochs_per_level}

    def _values(self) -> Arrays:
        return {weight.path: weight.value() for weight in masked_weights(self.model)}

    def _sparsity(self) -> float:
        return 1 - density(masked_weights(self.model))

    def _total(self, first: int) -> int:
        return self.epochs_per_level + self.lottery.levels * (self.epochs_per_level - first)

    def _place(self, epoch: int) -> tuple[int, int]:
        """Return the level that an epoch of the fit belongs to, and the epoch's number within that level."""
        if epoch < self.epochs_per_level:
            return 0, epoch
        first = self._taker.first_epoch()
        level, within = divmod(epoch - self.epochs_per_level, self.epochs_per_level - first)
        return level + 1, first + within
