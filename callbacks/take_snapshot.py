"""TakeSnapshot: the model at one point of its training, to be rewound to later."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from kprune.lottery.rewind import RewindPoint, Snapshot, snapshot
from kprune.runtime.optimizers import batches_per_step, batches_taken

from .base import MaskingCallback


class TakeSnapshot(MaskingCallback):
    """Take a snapshot when training reaches a point; `kprune.rewind(model, callback.snapshot)` goes back to it.

    It counts what the optimizer takes from the beginning of the fit, so gradient accumulation is counted right, and
    `steps_per_execution` = n up to n - 1 batches late.

    Args:
        at: "init"; a number of optimizer steps (100 or "step:100"); "epoch:2"; or a share of the fit's epochs (0.1 or
            "fraction:0.1").

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

    def __init__(self, at: str | int | float = "init"):
        super().__init__()
        self.point = RewindPoint.of(at)
        self.batches_per_epoch: int | None = None
        self.batches_per_step = 1
        self.begin()

    def begin(self) -> None:
        """Forget an earlier fit."""
        self.snapshot: Snapshot | None = None
        self._begun_at: int | None = None

    def epochs(self) -> int:
        """The number of epochs of which the point may name a share."""
        return (self.params or {}).get("epochs") or 1

    def first_epoch(self) -> int:
        """The number of whole epochs before the point."""
        return self.point.in_epochs(self.epochs(), self.batches_per_epoch, self.batches_per_step)

    def check_fit(self) -> None:
        self.batches_per_epoch = (self.params or {}).get("steps")
        self.batches_per_step = batches_per_step(self.model)
        self._due = self.point.in_batches(self.epochs(), self.batches_per_epoch, self.batches_per_step)

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if not self._restored:
            self.begin()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._begun_at is None:
            self._begun_at = batches_taken(self.model)
            with self.undone():
                self._check_reached(self.epochs() - epoch)
        super().on_epoch_begin(epoch)
        self._take()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._take()

    def _check_reached(self, epochs: int) -> None:
        if self._due and self._due >= epochs * (self.batches_per_epoch or 0):
            raise ValueError(
                f"The fit begins at a later epoch and does not reach batch {self._due}, where the snapshot is due. "
                f"Received: at={self.point}, with {epochs} epochs to train"
            )

    def _take(self) -> None:
        if self.snapshot is None and batches_taken(self.model) - (self._begun_at or 0) >= self._due:
            self.snapshot = snapshot(self.model)
            self.took()

    def took(self) -> None:
        """The point is reached."""

    def taken(self) -> Snapshot:
        """The snapshot; RuntimeError if the point was not reached."""
        if self.snapshot is None:
            raise RuntimeError(
                "The training did not reach the point to rewind to: train at least that far, with this callback among "
                f"those of fit. Received: {self.point}"
            )
        return self.snapshot

    def get_state(self) -> dict[str, np.ndarray]:
        arrays = {} if self.snapshot is None else self.snapshot.to_arrays()
        return {"progress": np.frombuffer(json.dumps(self.progress()).encode(), np.uint8), **arrays}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        arrays = {key: array for key, array in state.items() if key != "progress"}
        self.set_progress(json.loads(state["progress"].tobytes()))
        self.snapshot = Snapshot.from_arrays(arrays) if arrays else None

    def progress(self) -> dict[str, Any]:
        """What is to be carried beside the snapshot; what JSON can hold."""
        return {"begun_at": self._begun_at}

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Take it over."""
        self._begun_at = progress["begun_at"]
