"""Weights that stay fixed while their variables train scores, for `kprune.callbacks.Supermask`.

An optimizer is built for the variables that the model has when it is compiled, and a callback comes later. So the
score of each entry trains in the weight's own variable, with the optimizer's slots for it, and the weight lies beside
the mask as state that does not train. The layer reads where(mask, weight, 0), with a gradient for the variable.
"""

from __future__ import annotations

from typing import Any

from .below import unlocked


def fix(layer: Any, fixed: dict[int, Any], slope: str) -> None:
    """Make a masked layer read these weights instead of the variables with these ids, and track them and its masks."""
    store = layer.mask_store
    with unlocked(layer):
        untrack(layer, store.states)
        store.fix(fixed, slope)
        # One by one: Keras on TensorFlow never forgets the name of a tracked list, which an export would look for.
        for i, state in enumerate(store.states):
            setattr(layer, f"mask_state_{i}", state)


def untrack(layer: Any, states: list[Any]) -> None:
    """Make an unlocked layer stop tracking these states, if it does."""
    for i, state in enumerate(states):
        if hasattr(layer, f"mask_state_{i}"):
            layer._tracker.untrack(state)
            delattr(layer, f"mask_state_{i}")


def give_fixed(layers: list[Any], fixed: dict[int, Any], slope: str) -> None:
    """Like `fix`, for each of these masked layers that owns one of the variables, or stores weights for others."""
    for layer in layers:
        mine = {id(v): fixed[id(v)] for v in layer.mask_store.masked if id(v) in fixed}
        if mine or layer.mask_store.fixed:
            fix(layer, mine, slope)


def slope_of(layers: list[Any]) -> str:
    """The slope of the scores that masked layers train; "" if they train none."""
    return next((layer.mask_store.slope for layer in layers if layer.mask_store.fixed), "")
