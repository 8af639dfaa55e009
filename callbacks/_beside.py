"""Other callbacks of a fit that can undo pruning, because they keep the network of an earlier epoch."""

from __future__ import annotations

import inspect
from typing import Any

from absl import logging


def warn_of_denser_best(pruning: Any) -> None:
    """Warn, as a fit begins, of callbacks that may keep a network from before pruning was complete."""
    for callback in _beside(pruning):
        names = {cls.__name__ for cls in type(callback).__mro__}
        saves = "ModelCheckpoint" in names and getattr(callback, "save_best_only", False)
        restores = "EarlyStopping" in names and getattr(callback, "restore_best_weights", False)
        if saves or (restores and not getattr(callback, "start_from_epoch", 0)):
            logging.warning(
                "kprune: %s keeps the best epoch, which may come before the network has reached its final "
                "sparsity. Wrap it in kprune.AfterPruning(...) to consider only the epochs from the last pruning "
                "step on.",
                type(callback).__name__,
            )


def _beside(pruning: Any) -> list[Any]:
    """All callbacks of the fit that called this one.

    A callback is not told of the others; the list of callbacks is what calls it (checked with Keras 3.13.2 and 3.15.1
    and tf_keras 2.21; tests/test_after_pruning.py). Under a loop of the user's own there may be none.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller: Any = frame.f_locals.get("self")
        if type(caller).__name__ == "CallbackList" and pruning in caller.callbacks:
            return list(caller.callbacks)
        frame = frame.f_back
    return []
