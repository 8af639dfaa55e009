"""Pulls, loss terms that draw masked weights toward targets or down slopes that may change during training.

Keras on JAX takes into a compiled step what layers track, and all other values as constants. So targets are layer
state, as masks are (see store.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from ..runtime.distribution import strategy_scope
from .masked_layers import MaskedRegularizer, unlocked
from .store import MaskState, beside
from .types import MaskedWeight

_HELD = "_kprune_pull"  # the attribute of a weight that is pulled


class Pull(keras.regularizers.Regularizer):
    """The loss term strength / 2 * sum((w - target)^2), plus the weight's own regularizer.

    Attributes:
        target: keras.Variable of the weight's shape and dtype.
        strength: keras.Variable, a scalar, 0 at first.
        besides: the weight's own regularizer, or None.
        layer, names: the layer that tracks the two, and the names of the attributes that hold them.
    """

    def __init__(self, weight: MaskedWeight, number: int, besides: Any):
        v = weight.variable
        self.target = beside(v, "target", "zeros", v.dtype)
        self.strength = beside(v, "strength", "zeros", v.dtype, scalar=True)
        self.besides, self.layer = besides, weight.layer
        self.names = (f"pull_target_{number}", f"pull_strength_{number}")

    def __call__(self, weight: Any) -> Any:
        weight = ops.convert_to_tensor(weight)
        pull = self._term(weight)
        return pull if self.besides is None else pull + self.besides(weight)

    def _term(self, weight: Any) -> Any:
        return self.strength.value / 2 * ops.sum(ops.square(weight - self.target.value))


class Slope(Pull):
    """The loss term strength * sum(w * target), whose gradient is strength * target, plus the weight's regularizer."""

    def _term(self, weight: Any) -> Any:
        return self.strength.value * ops.sum(weight * self.target.value)


def attach(model: Any, weights: Sequence[MaskedWeight], kind: type[Pull] = Pull) -> None:
    """Give these weights pulls of strength 0; the caller must then renew the model's compiled functions."""
    release(model)
    with strategy_scope(model):
        for number, weight in enumerate(weights):
            v = weight.variable
            own = v.regularizer.regularizer if isinstance(v.regularizer, MaskedRegularizer) else v.regularizer
            pull = kind(weight, number, own)
            v.regularizer = MaskedRegularizer(pull, weight.mask, weight.layer.mask_store.behind)
            setattr(v, _HELD, pull)
            with unlocked(weight.layer):
                for name, variable in zip(pull.names, (pull.target, pull.strength), strict=True):
                    setattr(weight.layer, name, MaskState(variable))


def pull_of(weight: MaskedWeight) -> Pull:
    """Return the pull of a weight that has one."""
    pull: Pull = getattr(weight.variable, _HELD)
    return pull


def is_pulled(model: Any) -> bool:
    """Whether any weight of a model has a pull."""
    return any(hasattr(v, _HELD) for v in model.weights)


def release(model: Any) -> bool:
    """Remove all pulls, and return whether there were any; if so, the caller must renew the compiled functions."""
    pulled = [v for v in model.weights if hasattr(v, _HELD)]
    for v in pulled:
        pull = getattr(v, _HELD)
        delattr(v, _HELD)
        if isinstance(v.regularizer, MaskedRegularizer) and v.regularizer.regularizer is pull:
            v.regularizer.regularizer = pull.besides
            v.regularizer = None if pull.besides is None else v.regularizer
        elif v.regularizer is pull:
            v.regularizer = pull.besides
        with unlocked(pull.layer):
            for name in pull.names:
                pull.layer._tracker.untrack(getattr(pull.layer, name))
                delattr(pull.layer, name)
    return bool(pulled)
