"""TakeSnapshot: save the model at one point in its training, in order to rewind to it later."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import logging

from kprune.lottery.rewind import Snapshot

from ._taker import SnapshotTaker
from .base import MaskingCallback


class TakeSnapshot(MaskingCallback):
    """Take a snapshot at a given point in training; `kprune.rewind(model, callback.snapshot)` restores it.

    It counts what the optimizer takes from the beginning of the fit, so gradient accumulation is counted right, and
    `steps_per_execution` = n up to n - 1 batches late. Where a `train_step` steps optimizers of its own, it counts
    batches instead, and a warning says so.

    Args:
        at: as in `kprune.RewindPoint.of`; a share is one of the fit's epochs.
        optimizer: the one whose steps count, where a `train_step` has its own; the compiled one by default.

    Attributes:
        snapshot: `kprune.Snapshot`, or None before the point is reached.

    Raises:
        ValueError: `at` is none of these; at the start of `fit`: it is not within the fit.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> early = kprune.callbacks.TakeSnapshot(at="epoch:1")
    >>> _ = model.fit(np.ones((32, 8)), np.ones((32, 1)), batch_size=8, epochs=3, verbose=0, callbacks=[early])
    >>> kprune.rewind(model, early.snapshot)
    >>> int(model.optimizer.iterations)
    4
    """

    def __init__(self, at: str | int | float = "init", *, optimizer: Any = None):
        super().__init__()
        self._taker = SnapshotTaker(self, at, optimizer)

    @property
    def snapshot(self) -> Snapshot | None:
        return self._taker.snapshot

    def check_fit(self) -> None:
        self._taker.check_fit()

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if not self._restored:
            self._taker.forget()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._taker.begin_epoch(epoch)
        super().on_epoch_begin(epoch)

    def _works_after(self, batch: int) -> bool:
        return self._taker.works_after(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._taker.after_batch(batch, self._carrier.waits.works(self))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._taker.end_epoch()

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        if self.snapshot is None:
            logging.warning(
                "TakeSnapshot: training ended before batch %d, so no snapshot was taken. Choose an earlier point for "
                "`at`, or train longer.",
                self._taker.due,
            )

    def get_state(self) -> dict[str, np.ndarray]:
        return self._taker.get_state()

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._taker.set_state(state)
