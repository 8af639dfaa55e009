"""Patterns: the shape of the zeros. A pattern turns the scores of one weight and a count into its mask."""

from __future__ import annotations

import numpy as np

from .registry import Registry
from .threads import side_by_side

PATTERNS = Registry("pattern")


@PATTERNS.register("unstructured")
def unstructured(score: np.ndarray, n_keep: int) -> np.ndarray:
    """Keep the `n_keep` entries of the highest score, of equal ones those of the lowest index (C order).

    Args:
        score: float array of any shape; higher = keep; -inf = pruned already.
        n_keep: number of entries to keep, 0 <= n_keep <= score.size.

    Returns:
        bool array of the score's shape with exactly `n_keep` True.

    Raises:
        ValueError: n_keep is out of range.

    >>> unstructured(np.array([3.0, 1.0, 2.0, 2.0]), 2)
    array([ True, False,  True, False])
    """
    if not 0 <= n_keep <= score.size:
        raise ValueError(f"`n_keep` must be from 0 to {score.size}. Received: n_keep={n_keep}")
    if n_keep == 0:
        return np.zeros(score.shape, bool)
    flat = score.reshape(-1)
    cut = nth_highest([flat], n_keep)
    mask = flat > cut
    missing = n_keep - np.count_nonzero(mask)
    mask[np.flatnonzero(flat == cut)[:missing]] = True
    return mask.reshape(score.shape)


def nth_highest(vectors: list[np.ndarray], n: int) -> float:
    """The n-th highest value of all vectors together, 1 <= n <= their total size; exact.

    A sample brackets the value, so that only what lies inside the bracket has to be copied and partitioned: several
    times faster than partitioning everything, which matters in SynFlow's hundred rounds over millions of weights.

    >>> float(nth_highest([np.array([4.0, 1.0]), np.array([3.0, 2.0])], 2))
    3.0
    """
    size = sum(v.size for v in vectors)
    stride = max(1, size // 16384)
    sample = np.sort(np.concatenate([v[::stride] for v in vectors]))[::-1]
    rank, slack = (n - 1) * sample.size // size, sample.size // 64
    high, low = sample[max(rank - slack, 0)], sample[min(rank + slack, sample.size - 1)]
    above = sum(side_by_side(lambda v: int(np.count_nonzero(v > high)), vectors))
    # A bracket that reaches down to the pruned entries (-inf, often most of them) stops short of them.
    reaches = np.greater if np.isneginf(low) else np.greater_equal
    inside = np.concatenate(side_by_side(lambda v: v[reaches(v, low) & (v <= high)], vectors))
    if not above < n <= above + inside.size:  # the sample was not like the rest
        above, inside = 0, np.concatenate(vectors)
    position = inside.size - (n - above)
    return np.partition(inside, position)[position]
