"""Masks: which weights of a model are masked, and the one way to read and change them."""

from .api import (
    DEFAULT_WEIGHTS,
    KNOWN_WEIGHTS,
    Filters,
    MaskedWeight,
    MaskReport,
    Masks,
    current_masks,
    is_tf_keras,
    mask,
    masked_weights,
    moved_weights,
    plain,
    set_masks,
    strip,
    unique_paths,
)

__all__ = [
    "DEFAULT_WEIGHTS",
    "KNOWN_WEIGHTS",
    "Filters",
    "MaskReport",
    "MaskedWeight",
    "Masks",
    "current_masks",
    "is_tf_keras",
    "mask",
    "masked_weights",
    "moved_weights",
    "plain",
    "set_masks",
    "strip",
    "unique_paths",
]
