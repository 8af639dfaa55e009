"""kprune's interface to a model library: the same functions, by the same names, for Keras 3 and tf_keras.

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
    """The functions and attributes that each of the two modules provides."""

    @property
    def package(self) -> ModuleType:
        """The library itself: keras, or tf_keras."""

    @property
    def OPTIMIZERS(self) -> tuple[type, ...]:
        """The base classes of its optimizers."""

    @property
    def IN_PLACE(self) -> bool:
        """Whether a model is masked in place."""

    @property
    def ops(self) -> Any:
        """Functions of its tensors: convert_to_tensor, log, maximum, sigmoid, softmax."""

    def backend(self) -> str:
        """The backend that computes: "tensorflow", "jax" ..., or "tf_keras"."""

    def weight_names(self, model: Any) -> set[str]:
        """The names of the model's weights in `mask(weights=...)`."""

    def mask_model(self, model: Any, filters: Filters, weights: Sequence[str], behind: Behind) -> MaskReport:
        """Mask a built model: see `kprune.mask`."""

    def take_over(self, model: Any) -> None:
        """Take charge of a masked model's masks before they change, and handle weights unfrozen since."""

    def find_masked(self, model: Any) -> list[MaskedWeight]:
        """The masked weights in model order, with paths that need not be unique."""

    def mask_followers(self, model: Any, variables: list[Any]) -> None:
        """Mask weights that are pruned only with a channel; existing masks stay as they are."""

    def find_followers(self, model: Any) -> list[MaskedWeight]:
        """The weights masked as followers, in model order, with paths that need not be unique."""

    def behind(self, model: Any) -> Behind | None:
        """How values of pruned entries are stored; None for a model without masks, or without a choice."""

    def strip_model(self, model: Any) -> Any:
        """The model without masks: see `kprune.strip`."""

    def plain(self, model: Any) -> AbstractContextManager[Any]:
        """Context in which the model is stripped; afterwards it is masked again as before."""

    def check_leaks(self, model: Any, weights: list[MaskedWeight]) -> None:
        """Outside a fit: RuntimeError if training gave pruned entries values; a warning if it may have."""

    def all_layers(self, model: Any) -> list[Any]:
        """The model and every layer below it, parents first."""

    def owned_weights(self, model: Any) -> list[tuple[Any, Any]]:
        """(layer, weight) for each weight of the model, in its order; a tied weight once per layer."""

    def owner(self, layer: Any, variable: Any) -> Any:
        """The layer that uses the weight of a `MaskedWeight`."""

    def plain_variables(self, model: Any) -> list[Any]:
        """The model's weights as they would be without masks."""

    def seed_states(self, model: Any) -> list[Any]:
        """The states of the model's seed generators (dropout ...), which do not count as weights."""

    def weight_name(self, layer: Any, variable: Any) -> str:
        """The name of a layer's weight in `mask(weights=...)`."""

    def weight_path(self, variable: Any) -> str:
        """The path of a weight in reports."""

    def holds_kernel(self, layer: Any, variable: Any) -> bool:
        """Whether a weight stores a kernel's values one by one."""

    def carry(self, model: Any, carrier: Any) -> None:
        """Save `carrier.dump()` in every checkpoint of a masked model, and load it from there; None stops it."""

    def carried(self, model: Any) -> Any:
        """The carrier last passed to `carry`, or None."""


def library_of(model: Any) -> Library:
    """The library of a model or layer; ValueError if it belongs to neither."""
    if isinstance(model, keras.layers.Layer):
        from . import keras3

        return keras3
    if is_tf_keras(model):
        from . import tf_keras

        return tf_keras
    raise ValueError(f"Expected a keras.Model (Keras 3) or a tf_keras.Model. Received: model={type(model)!r}")
