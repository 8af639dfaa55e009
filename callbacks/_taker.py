"""Take a snapshot of a callback's model when training reaches a given point."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from kprune.lottery.rewind import RewindPoint, Snapshot, snapshot
from kprune.masks import check_is_optimizer
from kprune.runtime.optimizers import batches_per_step

from ._counter import Counter

# Of JSON, which takes some twenty times as much once it is read; a level of a lottery takes about 200 bytes.
_MOST_PROGRESS = 2**20


class SnapshotTaker:
    """Helper that takes a snapshot of a callback's model at one point in training.

    Args:
        callback: whose fit it is; the model is taken from it.
        at: the point, as `RewindPoint.of` takes it.
        optimizer: the one whose steps count; the compiled one by default.
        epochs: of which the point may name a share; by default those of the fit.
        took: is called when it has been taken.

    Attributes:
        snapshot: None before the point is reached.
        due: the number of batches before the point, from the fit's first epoch on.
    """

    def __init__(
        self,
        callback: Any,
        at: Any,
        optimizer: Any = None,
        epochs: int | None = None,
        took: Callable[[], None] = lambda: None,
    ):
        check_is_optimizer("optimizer", optimizer)
        self.point, self.optimizer = RewindPoint.of(at), optimizer
        self.due, self._batches_per_epoch, self._batches_per_step = 0, None, 1
        self._callback, self._epochs, self._took = callback, epochs, took
        self._counter = Counter(callback, optimizer, batches=True)
        self.forget()

    def forget(self) -> None:
        """Reset the taker at the start of a fit that does not continue an earlier one."""
        self.snapshot: Snapshot | None = None
        self._counter.forget()

    @property
    def begun(self) -> bool:
        """Whether the first epoch has begun, either in this fit or in the one whose state was loaded."""
        return self._counter.begun is not None

    @property
    def epochs(self) -> int:
        return self._epochs or (self._callback.params or {}).get("epochs") or 1

    def first_epoch(self) -> int:
        """Return the number of whole epochs before the snapshot is due in the most recent fit."""
        return self.point.in_epochs(self.epochs, self._batches_per_epoch, self._batches_per_step)

    def check_fit(self) -> None:
        """Raise ValueError if the snapshot is not due within the fit that is about to begin."""
        self._batches_per_epoch = (self._callback.params or {}).get("steps")
        optimizer = self.optimizer if self.optimizer is not None else self._callback.model.optimizer
        self._batches_per_step = 1 if optimizer is None else batches_per_step(optimizer)
        self.due = self.point.in_batches(self.epochs, self._batches_per_epoch, self._batches_per_step)

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch; raise ValueError, without changing the model, if the fit starts too late for the snapshot."""
        left = self.epochs - epoch
        if not self.begun and self.due and self.due >= left * (self._batches_per_epoch or 0):
            with self._callback.undone():
                raise ValueError(
                    f"Training starts too late to reach batch {self.due}, where the snapshot is due: start at an "
                    "earlier epoch, or train for more epochs. Received: "
                    f"at={self.point}, initial_epoch={epoch}, epochs={self.epochs}"
                )
        if self.snapshot is None:
            self._take(self._counter.begin_epoch())

    def works_after(self, batch: int) -> bool:
        """Return whether the snapshot may be due at the end of the call that begins with this batch."""
        return self.snapshot is None and self._counter.begin_batch(batch, (self._counter.begun or 0) + self.due)

    def after_batch(self, batch: int, works: bool) -> None:
        """Take the snapshot if it is due at the end of a batch; if there is no work, only count the batch."""
        if self.snapshot is None and works:
            self._take(self._counter.after_batch(batch, (self._counter.begun or 0) + self.due))
        elif self.snapshot is None:
            self._counter.note_end(batch)

    def end_epoch(self) -> None:
        if self.snapshot is None:
            self._take(self._counter.end_epoch())

    def _take(self, taken: int | None) -> None:
        if taken is not None and taken >= (self._counter.begun or 0) + self.due:
            self.snapshot = snapshot(self._callback.model, self.optimizer)
            self._took()

    def get_state(self, **progress: Any) -> dict[str, np.ndarray]:
        """Return the state to keep in a backup, along with further JSON-serializable values."""
        known = json.dumps({"counter": self._counter.get_state(), **progress})
        arrays = {} if self.snapshot is None else self.snapshot.to_arrays()
        return {"progress": np.frombuffer(known.encode(), np.uint8), **arrays}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `get_state` returned for a backup."""
        progress = progress_of(state)
        # Backups of kprune 0.1 tell only where the fit began.
        begun = progress.get("begun_at")
        self._counter.set_state(progress.get("counter") or [-1 if begun is None else begun, 0, 0])
        arrays = {key: array for key, array in state.items() if key != "progress"}
        self.snapshot = Snapshot.from_arrays(arrays) if arrays else None


def progress_of(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the JSON-serializable values in a state that `SnapshotTaker.get_state` returned."""
    written = state["progress"]
    if written.nbytes > _MOST_PROGRESS:
        raise ValueError(
            f"the saved progress of a callback is {written.nbytes:,} bytes, more than the limit of {_MOST_PROGRESS:,}"
        )
    return json.loads(written.tobytes())
