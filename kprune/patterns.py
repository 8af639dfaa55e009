"""Patterns: the shape of the zeros. A pattern turns the scores of one weight and a count into its mask."""

from __future__ import annotations

import numpy as np

from .registry import Registry
from .threads import side_by_side

PATTERNS = Registry("pattern")
SAMPLE = 16384


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
    cut, [(above, equal)] = nth_highest([flat], n_keep)
    if above + equal == n_keep:
        return (flat >= cut).reshape(score.shape)
    mask = flat > cut
    mask[np.flatnonzero(flat == cut)[: n_keep - above]] = True
    return mask.reshape(score.shape)


def nth_highest(vectors: list[np.ndarray], n: int) -> tuple[float, list[tuple[int, int]]]:
    """The n-th highest value of all vectors together, and how many entries of each are above it; exact.

    A sample brackets the value, so that only what lies inside the bracket has to be copied and partitioned: several
    times faster than partitioning everything, which matters in SynFlow's hundred rounds over millions of weights.

    Args:
        vectors: float arrays of one dimension.
        n: from 1 to the number of all their entries.

    Returns:
        The value, and for each vector how many of its entries are above it and how many equal it.

    >>> value, counts = nth_highest([np.array([4.0, 1.0]), np.array([3.0, 2.0])], 2)
    >>> float(value), counts
    (3.0, [(1, 0), (0, 1)])
    """
    size = sum(v.size for v in vectors)
    low, high = _bracket(vectors, n, size)

    def part(v: np.ndarray) -> tuple[int, np.ndarray]:
        # A bracket that reaches down to the pruned entries (-inf, often most of them) stops short of them.
        reaches = v > low if np.isneginf(low) else v >= low
        return int(np.count_nonzero(v > high)), v[reaches & (v <= high)]

    parts = side_by_side(part, vectors)
    above, inside = sum(count for count, _ in parts), np.concatenate([values for _, values in parts])
    if not above < n <= above + inside.size:  # the sample was not like the rest
        parts, above, inside = [(0, v) for v in vectors], 0, np.concatenate(vectors)
    position = inside.size - (n - above)
    value = np.partition(inside, position)[position]
    return value, [
        (count + int(np.count_nonzero(values > value)), int(np.count_nonzero(values == value)))
        for count, values in parts
    ]


def _bracket(vectors: list[np.ndarray], n: int, size: int) -> tuple[float, float]:
    """Two values between which the n-th highest almost surely lies: four standard errors of a sample around it."""
    draw = np.random.default_rng(0)
    # Drawn, not strided: scores differ by channel, and a stride that shares a factor with the last axis sees few.
    sample = [v if size <= SAMPLE else v[draw.integers(v.size, size=1 + SAMPLE * v.size // size)] for v in vectors]
    ordered = np.sort(np.concatenate(sample))[::-1]
    rank, slack = (n - 1) * ordered.size // size, ordered.size // 64
    return ordered[min(rank + slack, ordered.size - 1)], ordered[max(rank - slack, 0)]
