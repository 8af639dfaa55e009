"""Base class of the callbacks that update the masks at steps that they determine themselves."""

from __future__ import annotations

from typing import Any

from kprune.masks import check_is_optimizer
from kprune.pruning import Pruner

from ._counter import Counter
from .base import MaskingCallback


class UpdatingCallback(MaskingCallback):
    """A callback that is asked to update the masks whenever its next update may be due.

    It is asked before an epoch's first step, after the batches at which the counter may have reached `next_due`, and at
    an epoch's end, so that what is saved there holds all updates up to then.

    Args:
        optimizer: the one whose steps count; the compiled one by default.
    """

    prunes = "during"

    pruner: Pruner
    """What it prunes by, in those that prune by a config: its tracker is told of every step."""

    def __init__(self, optimizer: Any = None):
        super().__init__()
        check_is_optimizer("optimizer", optimizer)
        self.optimizer = optimizer
        self._counter = Counter(self, optimizer)
        self._follows = False  # whether the tracker does, in this epoch

    def next_due(self) -> int | None:
        """Return the step of the next update, or None if there is none."""
        raise NotImplementedError

    def plan(self, taken: int, epoch: int) -> None:
        """Work out when updates are due, given that an epoch begins at this step."""
        raise NotImplementedError

    def update(self, taken: int) -> None:
        """Update the masks if an update is due by this step."""
        raise NotImplementedError

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        with self.undone():
            taken = self._counter.begin_epoch()
            self.plan(taken, epoch)
            # Also what an epoch's end has brought after its backup was written.
            self.update(taken)
        super().on_epoch_begin(epoch)

    def _works_after(self, batch: int) -> bool:
        due = self._counter.begin_batch(batch, self.next_due())
        if not self._watches():
            return due
        self.pruner.catch_up()
        model = self._model  # not `self.model`, into which Keras would bring its state
        if batch == 0:
            self._follows = self._carrier.waits.begins_alone and self.pruner.follows(model)
        works = due or not self._follows or self._ends_epoch(batch)
        if not works:
            self.pruner.before_step(model)
        return works

    def _ends_epoch(self, batch: int) -> bool:
        """Return whether the step that begins may be an epoch's last, after which others may set the weights."""
        steps = (self.params or {}).get("steps")
        return not steps or batch + getattr(self._model, "steps_per_execution", 1) >= steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._watches() and self._carrier.waits.waited:
            self.pruner.after_step(self.model)
        if not self._carrier.waits.works(self):
            self._counter.note_end(batch)
            return
        taken = self._counter.after_batch(batch, self.next_due())
        if taken is not None:
            self.update(taken)

    def _watches(self) -> bool:
        pruner = getattr(self, "pruner", None)
        return pruner is not None and pruner.watches

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._watches():
            self.pruner.catch_up()  # an epoch may end early
        self.update(self._counter.end_epoch())
        super().on_epoch_end(epoch, logs)
