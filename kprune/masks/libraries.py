"""What kprune asks of a library of models: the same questions of Keras 3 and of tf_keras, by the same names.

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
    """What each of the two modules holds."""

    @property
    def package(self) -> ModuleType:
        """The library itself: keras, or tf_keras."""

    @property
    def OPTIMIZERS(self) -> tuple[type, ...]:
        """The classes that its optimizers derive from."""

    @property
    def IN_PLACE(self) -> bool:
        """Whether a model is masked in place."""

    @property
    def ops(self) -> Any:
        """Functions of its tensors: convert_to_tensor, log, maximum, sigmoid, softmax."""

    def backend(self) -> str:
        """What computes: "tensorflow", "jax" ..., or "tf_keras"."""

    def weight_names(self, model: Any) -> set[str]:
        """The names by which `mask(weights=...)` knows the model's weights."""

    def mask_model(self, model: Any, filters: Filters, weights: Sequence[str], behind: Behind) -> MaskReport:
        """Mask a built model: see `kprune.mask`."""

    def take_over(self, model: Any) -> None:
        """Take charge of the masks of a masked model before they are changed; see to what was frozen and trains now."""

    def find_masked(self, model: Any) -> list[MaskedWeight]:
        """The masked weights in model order, by paths that need not be unique."""

    def behind(self, model: Any) -> Behind | None:
        """What becomes of the values of pruned entries; None of a model without masks, or if there is no choice."""

    def strip_model(self, model: Any) -> Any:
        """The model without masks: see `kprune.strip`."""

    def plain(self, model: Any) -> AbstractContextManager[Any]:
        """Inside, the stripped model; afterwards the model is masked again as it was."""

    def check_leaks(self, model: Any, weights: list[MaskedWeight]) -> None:
        """Outside of a fit: RuntimeError if training gave pruned entries values; a warning if it cannot be told."""

    def all_layers(self, model: Any) -> list[Any]:
        """The model and every layer below it, parents first."""

    def owned_weights(self, model: Any) -> list[tuple[Any, Any]]:
        """(layer, weight) for each weight of the model, in its order; a tied weight once per layer."""

    def owner(self, layer: Any, variable: Any) -> Any:
        """The layer that uses the weight of a `MaskedWeight`."""

    def plain_variables(self, model: Any) -> list[Any]:
        """The model's weights as they would be without masks."""

    def seed_states(self, model: Any) -> list[Any]:
        """The states of the model's seed generators (dropout ...), which count as no weights."""

    def weight_name(self, layer: Any, variable: Any) -> str:
        """The name by which `mask(weights=...)` knows a weight of this layer."""

    def weight_path(self, variable: Any) -> str:
        """The path by which reports know a weight."""

    def holds_kernel(self, layer: Any, variable: Any) -> bool:
        """Whether a weight holds a kernel's values one by one."""

    def carry(self, model: Any, carrier: Any) -> None:
        """Save `carrier.dump()` with whatever is saved of a masked model, and load it; None ends that."""

    def carried(self, model: Any) -> Any:
        """What `carry` was given last, or None."""


def library_of(model: Any) -> Library:
    """The library of a model or layer; ValueError if it is of neither."""
    if isinstance(model, keras.layers.Layer):
        from . import keras3

        return keras3
    if is_tf_keras(model):
        from . import tf_keras

        return tf_keras
    raise ValueError(f"Expected a keras.Model (Keras 3) or a tf_keras.Model. Received: model={type(model)!r}")
