"""Scores in place of weights: when they start to train, and when the weights return."""

from __future__ import annotations

from typing import Any

from ..runtime.distribution import strategy_scope
from .api import masked_weights
from .fixed import give_fixed
from .keras3 import masked_layers, renew_functions


def hold_weights(model: Any, slope: str) -> None:
    """Keep the trainable masked weights fixed, beside their variables, which store scores from now on.

    The variables keep their values at first, and the model predicts as before.

    Args:
        model: a Keras 3 model under masks with store="latent".
        slope: what the gradient of the scores passes: a name of `behind.SLOPES`.
    """
    weights = masked_weights(model)
    held = {id(weight.variable): weight.fixed for weight in weights if weight.fixed is not None}
    missing = [weight for weight in weights if weight.trainable and weight.fixed is None]
    with strategy_scope(model):
        held |= {id(weight.variable): weight.layer.mask_store.copy_of(weight.variable) for weight in missing}
    if missing:
        give_fixed(masked_layers(model), held, slope)
        renew_functions(model, masked_layers(model))


def release_weights(model: Any) -> None:
    """Put the fixed weights back into their variables, bit for bit; the masks stay."""
    held = [weight for weight in masked_weights(model) if weight.fixed is not None]
    for weight in held:
        weight.variable.assign(weight.fixed.value)
    if held:
        give_fixed(masked_layers(model), {}, "")
        renew_functions(model, masked_layers(model))
