"""The counter that callbacks use to track the progress of a fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kprune.masks import held_optimizers
from kprune.runtime.optimizers import batches_per_step, batches_taken, has_acted, iterations


class Counter:
    """Counter of optimizer steps or batches that reads the optimizer only when an update may be due.

    To ask an optimizer is to wait for the device, and on JAX to bring the whole model up to date. So the counter keeps
    an upper bound, what it has read last plus the batches since, and asks only when that reaches what the callback
    waits for. Once, after the first batch of a fit, it also asks how many steps come to a batch: a `train_step` may
    take several.

    An optimizer that does nothing in a whole epoch is not the one that trains: a `train_step` steps others. From then
    on (from the first batch on, if another one that the model holds has moved then) the counter gives the batches of
    the fit instead, and says so.

    Args:
        callback: whose counter it is; the model is taken from it, as late as can be.
        optimizer: the one to ask; the compiled one by default.
        batches: whether to count the batches that the optimizer was given, in place of its steps: the same, unless
            it accumulates gradients.

    Attributes:
        begun: the number at which the fit began; None before its first epoch.
    """

    def __init__(self, callback: Any, optimizer: Any = None, batches: bool = False):
        self._callback, self._given = callback, optimizer
        self._ask: Callable[[Any], int] = batches_taken if batches else iterations
        self._of_batches = batches
        self.forget()

    def forget(self) -> None:
        """Reset the counter at the start of a fit that does not continue an earlier one."""
        self.begun: int | None = None
        self._batches = 0  # of the fit
        self._own = False  # whether batches are counted here, since the optimizer does nothing
        self._acted: tuple[float, ...] = ()  # what the optimizer was when the fit began
        self._others: list[tuple[Any, int]] = []
        self._known, self._since, self._rate, self._accumulated = 0, 0, 1, 1
        self._place, self._first = -1, True
        self._model: Any = None  # that of the callback, which on JAX it is slow to ask for
        self._ended: list[int] = []  # noted since a batch began last

    def now(self) -> int:
        """Return the current count."""
        optimizer = None if self._own else self._optimizer()
        if optimizer is None:
            return (self.begun or 0) + self._batches
        value, groups = self._ask(optimizer), self._groups(self._since)
        if groups:
            self._rate = max(self._rate, -((self._known - value) // groups))
        self._known, self._since = value, 0
        return value

    def planned(self, epoch: int) -> int | None:
        """Return the number of steps planned from an epoch onward, or None if it is unknown."""
        params, optimizer = self._callback.params or {}, self._optimizer()
        if not params.get("steps") or not params.get("epochs"):
            return None
        per_step = 1 if optimizer is None else batches_per_step(optimizer)
        return int(params["steps"] * (params["epochs"] - epoch) // per_step)

    def begin_epoch(self) -> int:
        """Record the start of an epoch and return the current count."""
        self._place, optimizer = -1, self._optimizer()
        self._ended.clear()
        self._model = self._callback.model
        if optimizer is not None:
            self._accumulated = 1 if self._of_batches else batches_per_step(optimizer)
            self._acted = self._acted or has_acted(optimizer)
            others = held_optimizers(self._callback.model) if self._first else []
            self._others = [(one, iterations(one)) for one in others if one is not optimizer]
        self._since = 0
        if self.begun is None:
            self.begun = self.now()
        self._check(optimizer)
        return self.now()

    def after_batch(self, batch: int, due: int | None) -> int | None:
        """Record the end of a batch; return the count if it may have reached `due`, else None.

        It is also returned after the first batch of a fit, and after each one where batches are counted here.

        Args:
            batch: its index within the epoch, from 0; with `steps_per_execution`, that of the last of several.
            due: the number that is waited for; None for none.
        """
        self._pass(batch, 1)
        if self._first:
            self._first, optimizer = False, self._optimizer()
            if any(iterations(one) != known for one, known in self._others):
                self._check(optimizer)
            return self.now()
        reached = self._own or (due is not None and self._known + self._rate * self._groups(self._since) >= due)
        return self.now() if reached else None

    def begin_batch(self, batch: int, due: int | None) -> bool:
        """Record that those before a batch have ended, and return whether `after_batch` must record the end of it.

        It must where it may return the count; after other batches `note_end` is enough.
        """
        self._pass(batch - 1, 0)
        self._ended.clear()
        if self._first or self._own:
            return True
        since = self._since + getattr(self._model, "steps_per_execution", 1)
        return due is not None and self._known + self._rate * self._groups(since) >= due

    def note_end(self, batch: int) -> None:
        """Note the end of a batch; may be called from any thread, in any order."""
        self._ended.append(batch)

    def _pass(self, batch: int, least: int) -> None:
        """Count the batches up to one that has ended, and at least so many."""
        last = (self._callback.params or {}).get("steps")
        batch = batch if last is None else min(batch, last - 1)  # several may reach past the epoch's end
        passed = max(least, batch - self._place)
        self._batches += passed
        self._since += passed
        self._place = batch

    def end_epoch(self) -> int:
        """Record the end of an epoch and return the current count."""
        if self._ended:
            self._pass(max(self._ended), 0)
        self._check(self._optimizer())
        return self.now()

    def get_state(self) -> list[float]:
        """Return the counts to keep in a backup."""
        return [-1 if self.begun is None else self.begun, self._batches, self._own, *self._acted]

    def set_state(self, state: Any) -> None:
        """Restore the state that `get_state` returned; to be called before the first epoch of `fit` begins."""
        self.forget()
        begun, self._batches, own = map(int, state[:3])
        self.begun, self._own = None if begun < 0 else begun, bool(own)
        self._acted = tuple(map(float, state[3:]))

    def _optimizer(self) -> Any:
        compiled = getattr(self._callback.model, "optimizer", None)  # which on JAX updates all variables
        return self._given if self._given is not None else compiled

    def _groups(self, batches: int) -> int:
        """Return how many groups of `_accumulated` batches may have been completed in so many since the last check."""
        return -(-batches // self._accumulated)

    def _check(self, optimizer: Any) -> None:
        """Switch to counting batches if there is no optimizer, or if it has taken no steps since the fit began."""
        idle = optimizer is None or (self._batches > 0 and has_acted(optimizer) == self._acted)
        if idle and not self._own:
            self._own = True
            self._callback.say_once(
                "the compiled optimizer has taken no steps, so the model's train_step probably uses other optimizers"
                if self._given is None and optimizer is not None
                else "the model was compiled without an optimizer"
                if self._given is None
                else f"the optimizer passed to {type(self._callback).__name__} has taken no steps",
                "Batches are counted as steps instead. To count the steps of another optimizer, pass it to the "
                "callback as `optimizer`.",
            )
