"""Which steps of a fit Keras must wait for, because a callback has work to do between them and the next.

Keras waits for every step, and copies its metrics to the host, if any callback defines `on_train_batch_end`. On JAX it
need not: beside callbacks that do not, it calls those of its own in another thread, and dispatches the next step
meanwhile. Pruning callbacks have work after few steps, and say before each whether they have.
"""

from __future__ import annotations

from typing import Any

import keras

from ._beside import in_fit_of, list_of

# Keras's list of callbacks by its private names (checked with Keras 3.13.2 and 3.15.1; tests/test_waiting.py).
_NAMES = ("_async_train", "_executor", "_flush_futures")


class Waits:
    """The pruning callbacks of one fit that have work after the step that runs; Keras waits while there are any.

    Keras goes on waiting for every step if that is not known of each callback, and in loops that are not its own.

    Args:
        starting: the callback that begins the fit; None for none, in which case nothing is decided here.
        callbacks: the pruning callbacks of the fit; each counts as having work until it says otherwise.
    """

    begins_alone = False
    """Whether no other callback of the fit does anything as a step begins."""

    def __init__(self, starting: Any = None, callbacks: list[Any] | None = None):
        self._list, self._working = None, {id(callback) for callback in callbacks or []}
        listed = None if starting is None else list_of(starting)
        if (
            keras.backend.backend() == "jax"
            and isinstance(listed, keras.callbacks.CallbackList)
            and all(hasattr(listed, name) for name in _NAMES)
            and listed._executor is not None
            and in_fit_of(listed.model)
            and all(_says_when(callback) for callback in callbacks or [])
            and _never_waited_for(one for one in listed.callbacks if id(one) not in self._working)
        ):
            self._list, self._waited = listed, not _never_waited_for(listed.callbacks)
            self.begins_alone = not any(_begins(one) for one in listed.callbacks if id(one) not in self._working)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_list": None}  # its threads cannot be copied

    def before_step(self, callback: Any, batch: int) -> None:
        """Have Keras wait for the step that begins with a batch if a callback has work after it."""
        if self._list is None:
            return
        works = callback._works_after(batch)
        if works and self._list._async_train:
            self._list._flush_futures()  # first: what still runs in another thread must find no work
        (self._working.add if works else self._working.discard)(id(callback))
        self._list._async_train = not self._working

    def works(self, callback: Any) -> bool:
        """Return whether a callback may have work after the step that has run; otherwise this may be another thread."""
        return self._list is None or id(callback) in self._working

    @property
    def waited(self) -> bool:
        """Whether Keras waits for the step that runs, or has waited for the one that has run."""
        return self._list is None or not self._list._async_train

    def end(self) -> None:
        """Leave Keras's list of callbacks as Keras made it."""
        if self._list is not None:
            self._list._async_train, self._list = not self._waited, None


def _says_when(callback: Any) -> bool:
    """Return whether a callback says when it has work after a step; one with a hook of the user's own does not."""
    hooks = {"on_train_batch_end", "on_batch_end"}
    first = next(vars(one) for one in type(callback).__mro__ if ({"_works_after"} | hooks) & vars(one).keys())
    return "_works_after" in first and not hooks & vars(callback).keys()


def _begins(callback: Any) -> bool:
    """Return whether a callback has a hook of its own for the beginning of a step."""
    hooks = callback.on_train_batch_begin, callback.on_batch_begin
    return not all(getattr(hook, "_is_default", False) for hook in hooks)


def _never_waited_for(callbacks: Any) -> bool:
    """Return whether Keras waits for no step with these callbacks alone."""
    others = [one for one in callbacks if not isinstance(one, keras.callbacks.ProgbarLogger)]
    return bool(keras.callbacks.CallbackList(others)._async_train)
