"""Patterns: the shape of the zeros. A pattern turns the scores of one weight and a count into its mask."""

from __future__ import annotations

import numpy as np

from .registry import Registry

PATTERNS = Registry("pattern")


@PATTERNS.register("unstructured")
def unstructured(score: np.ndarray, n_keep: int) -> np.ndarray:
    """Keep the `n_keep` entries of the highest score, of equal ones those of the lowest index (C order).

    Args:
        score: float array of any shape; higher = keep; -inf = pruned already.
        n_keep: number of entries to keep, 0 <= n_keep <= score.size.

    Returns:
        bool array of the score's shape with exactly `n_keep` True.

    >>> unstructured(np.array([3.0, 1.0, 2.0, 2.0]), 2)
    array([ True, False,  True, False])
    """
    return keep_highest(score.reshape(-1), n_keep).reshape(score.shape)


def keep_highest(flat: np.ndarray, n_keep: int) -> np.ndarray:
    """The mask of the `n_keep` highest entries of a vector, ties to the lowest index; O(n)."""
    if not 0 <= n_keep <= flat.size:
        raise ValueError(f"`n_keep` must be from 0 to {flat.size}. Received: n_keep={n_keep}")
    if n_keep == 0:
        return np.zeros(flat.size, bool)
    # The pruned entries (-inf) cannot be above the cut, and late in a schedule they are most of the vector.
    alive = flat[flat > -np.inf]
    candidates = alive if n_keep <= alive.size else flat
    cut = np.partition(candidates, candidates.size - n_keep)[candidates.size - n_keep]
    mask = flat > cut
    missing = n_keep - np.count_nonzero(mask)
    mask[np.flatnonzero(flat == cut)[:missing]] = True
    return mask
