"""Masks: which weights of a model are masked, and the one way to read and change them."""

from .api import (
    DEFAULT_WEIGHTS,
    KNOWN_WEIGHTS,
    Filters,
    MaskedWeight,
    MaskReport,
    Masks,
    check_masks,
    current_masks,
    followers,
    is_tf_keras,
    mask,
    mask_followers,
    masked_weights,
    moved_weights,
    plain,
    set_masks,
    strip,
    unique_paths,
)
from .holders import begin_fit, end_fit
from .undo import Undo, mask_for_pruning, masked
from .zeros import changes, check_leaks, check_zeros

__all__ = [
    "DEFAULT_WEIGHTS",
    "KNOWN_WEIGHTS",
    "Filters",
    "MaskReport",
    "MaskedWeight",
    "Masks",
    "Undo",
    "begin_fit",
    "changes",
    "check_leaks",
    "check_masks",
    "check_zeros",
    "current_masks",
    "end_fit",
    "followers",
    "is_tf_keras",
    "mask",
    "mask_followers",
    "mask_for_pruning",
    "masked",
    "masked_weights",
    "moved_weights",
    "plain",
    "set_masks",
    "strip",
    "unique_paths",
]
