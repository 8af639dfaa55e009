"""The variables of a model that Keras trains on JAX, between the steps of an epoch.

Keras then holds their values apart, and to bring them back into all variables takes longer than a small step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

_GROUPS = ("trainable_variables", "non_trainable_variables")


def last_step(model: Any) -> Any:
    """Return an object that is another one after each step of a fit, or None if that is not known."""
    state = getattr(model, "_jax_state", None)
    return state if state and state.get("optimizer_variables") else None  # which `evaluate` has none of


class Places:
    """The places of some variables in the state that Keras holds of their model; made before an epoch's first step.

    The state has no public name (checked with Keras 3.13.2 and 3.15.1; tests/test_waiting.py).

    Attributes:
        known: whether all of them have one.
    """

    def __init__(self, model: Any, variables: Sequence[Any]):
        self._model, found = model, {}
        if keras.backend.backend() == "jax" and isinstance(model, keras.Model) and hasattr(model, "jax_state_sync"):
            found = {id(v): (group, i) for group in _GROUPS for i, v in enumerate(getattr(model, group))}
        self.known = all(id(v) in found for v in variables)
        self._places = [found[id(v)] for v in variables] if self.known else []

    def tensors(self) -> list[Any] | None:
        """Return the values of the variables, whose memory the next step may take; None if the variables have them."""
        state = getattr(self._model, "_jax_state", None)
        if not self.known or not state or self._model._jax_state_synced:
            return None
        return [state[group][i] for group, i in self._places]
