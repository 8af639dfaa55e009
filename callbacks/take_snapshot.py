"""TakeSnapshot: the model at one point of its training, to be rewound to later."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from absl import logging

from kprune.lottery.rewind import RewindPoint, Snapshot, snapshot
from kprune.masks.optimizers import check_is_optimizer
from kprune.runtime.optimizers import batches_per_step

from ._counter import Counter
from .base import MaskingCallback

# Of JSON, which takes some twenty times as much once it is read; a level takes about 200 bytes.
_MOST_PROGRESS = 2**20


class TakeSnapshot(MaskingCallback):
    """Take a snapshot when training reaches a point; `kprune.rewind(model, callback.snapshot)` goes back to it.

    It counts what the optimizer takes from the beginning of the fit, so gradient accumulation is counted right, and
    `steps_per_execution` = n up to n - 1 batches late. Where a `train_step` steps optimizers of its own, it counts
    batches instead, and a warning says so.

    Args:
        at: "init"; a number of optimizer steps (100 or "step:100"); "epoch:2"; or a share of the fit's epochs (0.1 or
            "fraction:0.1").
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
        check_is_optimizer("optimizer", optimizer)
        self.optimizer = optimizer
        self._counter = Counter(self, optimizer, batches=True)
        self.point = RewindPoint.of(at)
        self.batches_per_epoch: int | None = None
        self.batches_per_step = 1
        self.begin()

    def begin(self) -> None:
        """Forget an earlier fit."""
        self.snapshot: Snapshot | None = None
        self._counter.forget()

    def epochs(self) -> int:
        """The number of epochs of which the point may name a share."""
        return (self.params or {}).get("epochs") or 1

    def first_epoch(self) -> int:
        """The number of whole epochs before the point."""
        return self.point.in_epochs(self.epochs(), self.batches_per_epoch, self.batches_per_step)

    def check_fit(self) -> None:
        self.batches_per_epoch = (self.params or {}).get("steps")
        optimizer = self.optimizer if self.optimizer is not None else self.model.optimizer
        self.batches_per_step = 1 if optimizer is None else batches_per_step(optimizer)
        self._due = self.point.in_batches(self.epochs(), self.batches_per_epoch, self.batches_per_step)

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if not self._restored:
            self.begin()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._counter.begun is None:
            with self.undone():
                self._check_reached(self.epochs() - epoch)
        super().on_epoch_begin(epoch)
        if self.snapshot is None:
            self._take(self._counter.begin_epoch())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.snapshot is None:
            self._take(self._counter.after_batch(batch, (self._counter.begun or 0) + self._due))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.snapshot is None:
            self._take(self._counter.end_epoch())

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        if self.snapshot is None:
            self.missed()

    def _check_reached(self, epochs: int) -> None:
        if self._due and self._due >= epochs * (self.batches_per_epoch or 0):
            raise ValueError(
                f"The fit begins at a later epoch and does not reach batch {self._due}, where the snapshot is due. "
                f"Received: at={self.point}, with {epochs} epochs to train"
            )

    def _take(self, taken: int | None) -> None:
        if taken is not None and taken >= (self._counter.begun or 0) + self._due:
            self.snapshot = snapshot(self.model, self.optimizer)
            self.took()

    def missed(self) -> None:
        """The fit has ended before the point was reached."""
        logging.warning("TakeSnapshot: the fit ended before batch %d, where the snapshot was due.", self._due)

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
        written = state["progress"].tobytes()
        if len(written) > _MOST_PROGRESS:
            raise ValueError(f"the progress of a lottery takes {len(written):,} bytes; the most is {_MOST_PROGRESS:,}")
        self.set_progress(json.loads(written))
        self.snapshot = Snapshot.from_arrays(arrays) if arrays else None

    def progress(self) -> dict[str, Any]:
        """What is to be carried beside the snapshot; what JSON can hold."""
        return {"counter": self._counter.get_state()}

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Take it over."""
        # Backups of kprune 0.1 tell only where the fit began.
        begun = progress.get("begun_at")
        self._counter.set_state(progress.get("counter") or [-1 if begun is None else begun, 0, 0])
