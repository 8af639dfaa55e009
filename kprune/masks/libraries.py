"""kprune's interface to a model library, with the same function names for Keras 3 and tf_keras.

keras3.py and tf_keras.py answer them; `library_of` is the one place that tells which of the two a model is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

import keras

from .behind import Behind
from .types import Filters, MaskedWeight, MaskReport, is_tf_keras


class Library(Protocol):
    """The functions and attributes that both keras3.py and tf_keras.py provide."""

    @property
    def package(self) -> ModuleType:
        """The library itself, keras or tf_keras."""

    @property
    def OPTIMIZERS(self) -> tuple[type, ...]:
        """The base classes of the library's optimizers."""

    @property
    def IN_PLACE(self) -> bool:
        """Whether a model is masked in place."""

    @property
    def ops(self) -> Any:
        """The library's tensor functions convert_to_tensor, log, maximum, sigmoid and softmax."""

    def backend(self) -> str:
        """Return the backend that runs the model: "tensorflow", "jax" and so on, or "tf_keras"."""

    def weight_names(self, model: Any) -> set[str]:
        """Return the names by which `mask(weights=...)` selects the model's weights."""

    def mask_model(self, model: Any, filters: Filters, weights: Sequence[str], behind: Behind) -> MaskReport:
        """Mask a built model (see `kprune.mask`)."""

    def take_over(self, model: Any) -> None:
        """Prepare a model for mask changes; mask weights unfrozen since the model was masked, or warn about them."""

    def find_masked(self, model: Any) -> list[MaskedWeight]:
        """Return the masked weights in model order, with paths that need not be unique."""

    def mask_followers(self, model: Any, variables: list[Any]) -> None:
        """Mask weights that are pruned only with a channel; existing masks stay as they are."""

    def find_followers(self, model: Any) -> list[MaskedWeight]:
        """Return the weights masked as followers, in model order, with paths that need not be unique."""

    def behind(self, model: Any) -> Behind | None:
        """Return how pruned values are stored, or None if the model has no masks or the library offers no choice."""

    def strip_model(self, model: Any) -> Any:
        """Return the model without masks (see `kprune.strip`)."""

    def plain(self, model: Any) -> AbstractContextManager[Any]:
        """Strip the model for the duration of a `with` block, then mask it again as before."""

    def check_leaks(self, model: Any, weights: list[MaskedWeight]) -> None:
        """Raise RuntimeError (or warn if the cause is unknown) if pruned entries became nonzero; call outside `fit`."""

    def all_layers(self, model: Any) -> list[Any]:
        """Return the model and every layer below it, with parents first."""

    def owned_weights(self, model: Any) -> list[tuple[Any, Any]]:
        """Return (layer, weight) for each weight in model order; a tied weight is listed once per layer."""

    def owner(self, layer: Any, variable: Any) -> Any:
        """Return the layer that uses the weight of a `MaskedWeight`."""

    def plain_variables(self, model: Any) -> list[Any]:
        """Return the weights that the model would have without masks."""

    def seed_states(self, model: Any) -> list[Any]:
        """Return the states of the model's seed generators (in dropout layers, for example), which are not weights."""

    def weight_name(self, layer: Any, variable: Any) -> str:
        """Return the name by which `mask(weights=...)` selects a layer's weight."""

    def weight_path(self, variable: Any) -> str:
        """Return the path of a weight for reports."""

    def holds_kernel(self, layer: Any, variable: Any) -> bool:
        """Whether a weight is a kernel that stores one value per entry."""

    def carry(self, model: Any, carrier: Any) -> None:
        """Save `carrier.dump()` in a masked model's checkpoints and restore it on loading; passing None stops this."""

    def carried(self, model: Any) -> Any:
        """Return the carrier last passed to `carry`, or None."""


def library_of(model: Any) -> Library:
    """Return the library of a model or layer, or raise ValueError if it belongs to neither library."""
    if isinstance(model, keras.layers.Layer):
        from . import keras3

        return keras3
    if is_tf_keras(model):
        from . import tf_keras

        return tf_keras
    raise ValueError(f"Expected a keras.Model (Keras 3) or a tf_keras.Model. Received: model={type(model)!r}")
