"""Detection of other callbacks passed to `fit` that can undo pruning by keeping the network of an earlier epoch."""

from __future__ import annotations

import inspect
from typing import Any

from absl import logging


def warn_of_denser_best(pruning: Any) -> None:
    """Warn, when training begins, about callbacks that may keep a network that is not yet fully pruned."""
    for callback in beside(pruning):
        names = {cls.__name__ for cls in type(callback).__mro__}
        saves = "ModelCheckpoint" in names and getattr(callback, "save_best_only", False)
        if saves or (restores_best(callback) and not getattr(callback, "start_from_epoch", 0)):
            logging.warning(
                "kprune: %s keeps the best epoch, which may come before the network has reached its final "
                "sparsity. Wrap it in kprune.AfterPruning(...) to consider only the epochs from the last pruning "
                "step onward.",
                type(callback).__name__,
            )


def fit_runs(callback: Any) -> bool:
    """Return whether the caller was reached, directly or indirectly, from a `fit` call that was given this callback.

    `fit` holds the list of its callbacks in a local variable (checked with Keras 3.13.2 and 3.15.1;
    tests/test_supermask.py).
    """
    frame = inspect.currentframe()
    while frame is not None:
        lists: list[Any] = [one for one in frame.f_locals.values() if type(one).__name__ == "CallbackList"]
        if any(one is callback for listed in lists for one in listed.callbacks):
            return True
        frame = frame.f_back
    return False


def restores_best(callback: Any) -> bool:
    """Return whether a callback restores the weights of an earlier epoch when the fit ends."""
    names = {cls.__name__ for cls in type(callback).__mro__}
    return "EarlyStopping" in names and bool(getattr(callback, "restore_best_weights", False))


def in_fit_of(model: Any) -> bool:
    """Return whether the caller was reached, directly or indirectly, from the model's own `fit` method."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False


def beside(pruning: Any) -> list[Any]:
    """Return all callbacks of the `fit` call that invoked this callback; none under a loop of the user's own."""
    listed = list_of(pruning)
    return [] if listed is None else list(listed.callbacks)


def list_of(callback: Any) -> Any:
    """Return the CallbackList that invoked this callback, or None under a loop of the user's own.

    A callback is not told of the others; the list of callbacks is what calls it (checked with Keras 3.13.2 and 3.15.1
    and tf_keras 2.21; tests/test_after_pruning.py).
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller: Any = frame.f_locals.get("self")
        names = (cls.__name__ for cls in type(caller).__mro__)
        if "CallbackList" in names and any(one is callback for one in caller.callbacks):
            return caller
        frame = frame.f_back
    return None
