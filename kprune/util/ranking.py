"""The n-th highest value of arrays, and the exact number of entries to keep at a given sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .threads import side_by_side

SAMPLE = 16384
BLOCK = 1 << 16  # entries that stay in a core's cache from one look to the next
PIECE = 1 << 20  # entries that a thread looks at before it takes others


@dataclass(frozen=True)
class Counted:
    """The shape and counts of a score array on a device, for scopes that do not need the array itself.

    Attributes:
        shape: the weight's.
        alive: the number of entries that are not pruned already.
        counts: of all weights that are ranked together: n -> (entries above the n-th highest score, entries that equal
            it) of each.
    """

    shape: tuple[int, ...]
    alive: int
    counts: Callable[[int], list[tuple[int, int]]]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


def zeros_for(size: int, sparsity: float) -> int:
    """Return the exact number of zeros: floor(sparsity * size), never more than requested.

    The product is rounded to 6 decimals first, so that 0.57 of 100 is 57 and not 56 (0.57 * 100 is 56.999... in
    binary).

    >>> zeros_for(100, 0.57), zeros_for(9, 0.5)
    (57, 4)
    """
    return math.floor(round(sparsity * size, 6))


def alive(score: np.ndarray | Counted) -> int:
    """Return the number of entries that are not pruned yet, i.e., whose score is above -inf.

    >>> alive(np.array([1.0, -np.inf]))
    1
    """
    return score.alive if isinstance(score, Counted) else int(np.count_nonzero(score > -np.inf))


def in_proportion(scores: dict[str, np.ndarray], sparsity: float, densities: dict[str, float]) -> dict[str, int]:
    """Return how many entries each weight keeps at a total sparsity if densities are in the given proportions.

    n_keep[p] = min(alive[p], round(c * densities[p] * size[p])), with the c at which they add up to
    N - floor(sparsity * N), N = number of entries of all weights, alive = entries above -inf; ties in rounding go to
    the earlier weight. Pruned entries count only once all that is alive is kept: a sparser model is left as it is.

    Args:
        scores: path -> float array; higher = keep; -inf = pruned already.
        sparsity: fraction of zeros over all weights, in [0, 1).
        densities: path -> relative density, finite, >= 0; one of 0 keeps nothing as long as the others have room.

    Returns:
        path -> number of entries to keep. Monotone: no weight keeps more at a higher sparsity.

    >>> scores = {"a": np.ones(4), "b": np.ones(8), "c": np.ones(8)}
    >>> in_proportion(scores, 0.5, {"a": 4, "b": 2, "c": 1})
    {'a': 4, 'b': 4, 'c': 2}
    """
    sizes = np.array([score.size for score in scores.values()], int)
    living = np.array([alive(score) for score in scores.values()], int)
    relative = np.array([float(densities[path]) for path in scores])
    n_keep, left = np.zeros_like(sizes), int(sizes.sum()) - zeros_for(int(sizes.sum()), sparsity)
    wanted = relative > 0
    for amounts, caps in [
        (relative * sizes, np.where(wanted, living, 0)),
        (sizes, np.where(wanted, 0, living)),
        (sizes, sizes - living),
    ]:
        taken = min(left, int(caps.sum()))
        n_keep += _apportion(taken, amounts, caps)
        left -= taken
    return dict(zip(scores, n_keep.tolist(), strict=True))


def scaled(budget: int, amounts: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """Return min(caps, c * amounts), with c chosen so that the values, which are not rounded, sum to the budget.

    Args:
        budget: what they add up to, from 0 to sum(caps).
        amounts: their proportions, above 0.
        caps: what none may exceed, above 0.

    >>> scaled(6, np.array([4.0, 2.0, 1.0]), np.array([3.0, 9.0, 9.0]))
    array([3., 2., 1.])
    """
    # The total is linear in c between the points where one reaches its cap.
    reached = np.unique([0.0, *(caps / amounts)])
    c = np.interp(budget, [np.minimum(caps, c * amounts).sum() for c in reached], reached)
    return np.minimum(caps, c * amounts)


def _apportion(budget: int, amounts: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """Return min(caps, round(c * amounts)), with c chosen so that the values sum to the budget.

    Unlike the method of largest remainders, this rounding is monotone: a smaller budget never gives anyone more.
    """
    n = np.zeros_like(caps)
    takes = np.flatnonzero(caps)
    if budget in (0, int(caps.sum())):
        return caps.copy() if budget else n
    amount, cap = amounts[takes] / amounts[takes].max(), caps[takes]
    share = np.minimum(cap, np.floor(scaled(budget, amount, cap) + 0.5)).astype(int)
    while True:
        # In these values of c the next entry of each weight comes and its last one goes.
        comes = np.where(share < cap, (share + 0.5) / amount, np.inf)
        goes = np.where(share > 0, (share - 0.5) / amount, -np.inf)
        first, last = int(np.argmin(comes)), share.size - 1 - int(np.argmax(goes[::-1]))
        surplus = int(share.sum()) - budget
        if surplus == 0 and (goes[last], last) <= (comes[first], first):
            n[takes] = share
            return n
        if surplus <= 0:
            share[first] += 1
        if surplus >= 0:
            share[last] -= 1


def nth_highest(vectors: list[np.ndarray], n: int, of: np.ufunc = np.positive) -> tuple[float, list[tuple[int, int]]]:
    """Return the n-th highest value of all vectors, and, per vector, how many entries exceed it and how many equal it.

    A sample brackets the value, so that only what lies inside the bracket has to be copied and partitioned: several
    times faster than partitioning everything, which matters in SynFlow's hundred rounds over millions of weights.

    Args:
        vectors: float arrays of one dimension.
        n: from 1 to the number of all their entries.
        of: the values are `of` these entries, taken block by block, so that they need no memory.

    Returns:
        The value, and for each vector how many of its entries are above it and how many equal it.

    >>> value, counts = nth_highest([np.array([4.0, 1.0]), np.array([-3.0, 2.0])], 2, np.absolute)
    >>> float(value), counts
    (3.0, [(1, 0), (0, 1)])
    """
    size = sum(v.size for v in vectors)
    low, high = _bracket(vectors, n, size, of)
    # A bracket that reaches down to the pruned entries (-inf, often most of them) stops short of them.
    reaches = np.greater if np.isneginf(low) else np.greater_equal

    def part(v: np.ndarray) -> tuple[int, np.ndarray]:
        above, inside = 0, []
        for _, values in blocks_of(v, of):
            higher = values > high
            above += int(np.count_nonzero(higher))
            inside.append(values[reaches(values, low) ^ higher])
        return above, np.concatenate(inside) if inside else v

    pieces = [(i, v[at : at + PIECE]) for i, v in enumerate(vectors) for at in range(0, v.size, PIECE)]
    owners, parts = [i for i, _ in pieces], side_by_side(lambda piece: part(piece[1]), pieces, size)
    above, inside = sum(count for count, _ in parts), np.concatenate([values for _, values in parts])
    if not above < n <= above + inside.size:  # the sample was not like the rest
        parts, owners = [(0, of(v)) for v in vectors], list(range(len(vectors)))
        above, inside = 0, np.concatenate([values for _, values in parts])
    position = inside.size - (n - above)
    value = np.partition(inside, position)[position]
    counts = [(0, 0)] * len(vectors)
    for i, (count, values) in zip(owners, parts, strict=True):
        higher, equal = int(np.count_nonzero(values > value)), int(np.count_nonzero(values == value))
        counts[i] = counts[i][0] + count + higher, counts[i][1] + equal
    return value, counts


def blocks_of(vector: np.ndarray, of: np.ufunc) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (slice, `of` applied to its entries) in cache-sized blocks; each array is valid until the next one.

    >>> [(at.start, values.tolist()) for at, values in blocks_of(np.array([-1.0, 2.0]), np.absolute)]
    [(0, [1.0, 2.0])]
    """
    scratch = np.empty(0 if of is np.positive else min(BLOCK, vector.size), vector.dtype)
    for start in range(0, vector.size, BLOCK):
        at = slice(start, min(start + BLOCK, vector.size))
        yield at, vector[at] if of is np.positive else of(vector[at], out=scratch[: at.stop - at.start])


def _bracket(vectors: list[np.ndarray], n: int, size: int, of: np.ufunc) -> tuple[float, float]:
    """Return bounds from a sample (four standard errors to each side) that almost surely enclose the n-th highest."""
    draw = np.random.default_rng(0)
    # Drawn, not strided: scores differ by channel, and a stride that shares a factor with the last axis sees few.
    sample = [v if size <= SAMPLE else v[draw.integers(v.size, size=1 + SAMPLE * v.size // size)] for v in vectors]
    ordered = np.sort(of(np.concatenate(sample)))[::-1]
    rank, slack = (n - 1) * ordered.size // size, ordered.size // 64
    return ordered[min(rank + slack, ordered.size - 1)], ordered[max(rank - slack, 0)]
