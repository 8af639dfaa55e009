"""Detection of pruned entries that are no longer 0, which the next call to kprune reports."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from absl import logging

from ..runtime.writing import pruned_entries
from .types import MaskedWeight

_CHANGES: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
CAUSE = (
    "a function compiled before the model was masked, such as your own tf.function or jax.jit step, still runs "
    "without the masks. Call kprune.mask before the function is first traced, or recompile the function."
)


def changes(model: Any) -> int:
    """Return the number of times that a model's masks have been set."""
    return _CHANGES.get(model, 0)


def note_change(model: Any) -> None:
    """Increment the number of times that a model's masks have been set."""
    _CHANGES[model] = changes(model) + 1


def check_zeros(weights: list[MaskedWeight], optimizer: Any = None) -> float:
    """Return the fraction of pruned entries; raise RuntimeError, naming the weights, if one that should be 0 is not."""
    counts = pruned_entries([(weight.variable, weight.mask) for weight in weights])
    found = zip(weights, counts, strict=True)
    wrong = [weight for weight, (_, moved) in found if moved and weight.store == "zero"]
    moved = [weight.path for weight in wrong]
    diverged = [weight.path for weight in wrong if np.any(np.isnan(weight.moved()))]
    if diverged:
        raise RuntimeError(
            f"{', '.join(diverged[:4])} became NaN: training has diverged. A lower learning rate, gradient clipping "
            f"or loss scaling may help. Found: optimizer={type(optimizer).__name__}"
        )
    if moved:
        raise RuntimeError(
            f"Pruned entries of {', '.join(moved[:4])} are no longer 0. The likely cause is that {CAUSE} Other "
            "possible causes are that a layer reads another layer's kernel, a constraint makes zeros nonzero, weights "
            "were loaded or assigned during training, or an optimizer updates weights without a gradient. If your "
            "train_step maintains a moving average (EMA) of a network, mask only the network that is trained, not its "
            "average, with kprune.mask(network). To set pruned entries to 0 again, call "
            f"`model.set_weights(model.get_weights())`. Found: optimizer={type(optimizer).__name__}"
        )
    size = sum(weight.size for weight in weights)
    return sum(pruned for pruned, _ in counts) / size if size else 0.0


def moved_paths(weights: list[MaskedWeight]) -> list[str]:
    """Return the paths of the weights with a pruned entry that should be 0 but is not."""
    zero = [weight for weight in weights if weight.store == "zero"]
    counts = pruned_entries([(weight.variable, weight.mask) for weight in zero])
    return [weight.path for weight, (_, moved) in zip(zero, counts, strict=True) if moved]


def warn_of_zeros(weights: list[MaskedWeight]) -> None:
    """Warn if newly masked weights look pruned already, for example because they come from a sparse model's file."""
    sparse = [weight.path for weight in weights if 0.1 <= np.mean(weight.value() == 0) < 1]
    if sparse:
        logging.warning(
            "kprune.mask: %d weights (first: %s) contain many exact zeros, as pruned weights do. Their new masks "
            "keep all entries, so training will change these zeros. To keep them pruned, call kprune.adopt, which "
            "turns zeros into masks, or call kprune.mask before loading the weights.",
            len(sparse),
            sparse[0],
        )
