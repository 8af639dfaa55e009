"""Pruned entries that are no longer 0, and how they are reported the next time kprune is called."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from .types import MaskedWeight

_CHANGES: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
CAUSE = (
    "A function compiled before the model was masked still runs without the masks: a tf.function or jax.jit step "
    "of your own, or one that a layer or model keeps. Mask before the first trace (call kprune.mask once the model is "
    "built), or recompile the function."
)


def changes(model: Any) -> int:
    """How often the masks of a model have been set."""
    return _CHANGES.get(model, 0)


def note_change(model: Any) -> None:
    """Count that the masks of a model are set."""
    _CHANGES[model] = changes(model) + 1


def check_zeros(weights: list[MaskedWeight], optimizer: Any = None) -> float:
    """The fraction of pruned entries; RuntimeError, naming the weights, if one that should be 0 is not."""
    found = {weight.path: weight.moved() for weight in weights}
    moved = [path for path, values in found.items() if values.size]
    diverged = [path for path in moved if np.any(np.isnan(found[path]))]
    if diverged:
        raise RuntimeError(
            f"{', '.join(diverged[:4])} became NaN: the training has diverged, and NaN times the zero of a pruned "
            "entry is NaN. A lower learning rate, clipped gradients or a scaled loss may help. "
            f"Received: optimizer={type(optimizer).__name__}"
        )
    if moved:
        raise RuntimeError(
            f"Pruned entries of {', '.join(moved[:4])} are no longer 0. {CAUSE} Other causes: a layer that reads "
            "another layer's kernel, a constraint that moves zeros, weights loaded during training, or an optimizer "
            "that updates weights without a gradient. `model.set_weights(model.get_weights())` makes pruned entries 0. "
            f"Received: optimizer={type(optimizer).__name__}"
        )
    size = sum(weight.size for weight in weights)
    return sum(int((~weight.kept()).sum()) for weight in weights) / size if size else 0.0
