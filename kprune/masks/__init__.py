"""Masks: which weights of a model are masked, and the one way to read and change them."""

from .api import (
    DEFAULT_WEIGHTS,
    KNOWN_WEIGHTS,
    Filters,
    MaskedWeight,
    MaskReport,
    Masks,
    adopt,
    check_leaks,
    check_masks,
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
from .libraries import Library, library_of
from .optimizers import begin_fit, check_is_optimizer, end_fit, held_optimizers
from .undo import Undo, mask_for_pruning, masked
from .zeros import changes, check_zeros

__all__ = [
    "DEFAULT_WEIGHTS",
    "KNOWN_WEIGHTS",
    "Filters",
    "Library",
    "MaskReport",
    "MaskedWeight",
    "Masks",
    "Undo",
    "adopt",
    "begin_fit",
    "changes",
    "check_is_optimizer",
    "check_leaks",
    "check_masks",
    "check_zeros",
    "current_masks",
    "end_fit",
    "held_optimizers",
    "is_tf_keras",
    "library_of",
    "mask",
    "mask_for_pruning",
    "masked",
    "masked_weights",
    "moved_weights",
    "plain",
    "set_masks",
    "strip",
    "unique_paths",
]
