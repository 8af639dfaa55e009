"""Scopes: how a sparsity is shared among the weights. A scope turns scores into the number that each weight keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

import numpy as np

from .patterns import nth_highest
from .registry import Registry

Scores = dict[str, np.ndarray]
Scope = Callable[[Scores, float], dict[str, int]]

SCOPES = Registry("scope")


def zeros_for(size: int, sparsity: float) -> int:
    """The exact number of zeros: floor(sparsity * size), never more than asked for.

    The product is rounded to 6 decimals first, so that 0.57 of 100 is 57 and not 56 (0.57 * 100 is 56.999... in
    binary).

    >>> zeros_for(100, 0.57), zeros_for(9, 0.5)
    (57, 4)
    """
    return math.floor(round(sparsity * size, 6))


@SCOPES.register("global")
def global_scope(scores: Scores, sparsity: float) -> dict[str, int]:
    """One ranking over all weights together; each keeps what it has above the common cut.

    sum(n_keep) = N - floor(sparsity * N), N = number of entries of all weights; ties go to the earlier weight.

    Args:
        scores: path -> float array; higher = keep; -inf = pruned already.
        sparsity: fraction of zeros over all weights, in [0, 1).

    Returns:
        path -> number of entries to keep.

    >>> global_scope({"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}, 0.5)
    {'a': 2, 'b': 0}
    """
    flats = [score.reshape(-1) for score in scores.values()]
    size = sum(flat.size for flat in flats)
    n_keep = size - zeros_for(size, sparsity)
    if n_keep == 0:
        return dict.fromkeys(scores, 0)
    _, counts = nth_highest(flats, n_keep)
    ties = n_keep - sum(above for above, _ in counts)
    shares = {}
    for path, (above, equal) in zip(scores, counts, strict=True):
        shares[path] = above + min(ties, equal)
        ties -= min(ties, equal)
    return shares


@SCOPES.register("layerwise")
def layerwise(scores: Scores, sparsity: float) -> dict[str, int]:
    """The same sparsity in each weight: n_keep = size - floor(sparsity * size).

    >>> layerwise({"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}, 0.5)
    {'a': 1, 'b': 1}
    """
    return {path: score.size - zeros_for(score.size, sparsity) for path, score in scores.items()}


def with_floor(scope: Scope | str, floor: int | float = 1) -> Scope:
    """A scope in which no weight keeps less than a floor; the rest of the budget is shared as `scope` would.

    The total that is kept stays that of `scope`: what the floored weights gain, the others lose, by their scores.

    Args:
        scope: a scope or its name.
        floor: an int is a number of entries, a float from 0 to 1 a density; never more than a weight has left.

    Raises:
        ValueError: the floor is negative or a density above 1; or, when called, the floors alone need more entries
            than the budget has.

    >>> with_floor("global", 1)({"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}, 0.5)
    {'a': 1, 'b': 1}
    """
    base = SCOPES.get(scope)
    count = isinstance(floor, Integral)
    if not isinstance(floor, Real) or isinstance(floor, bool) or not 0 <= floor <= (math.inf if count else 1):
        raise ValueError(f"A floor is a number of entries >= 0, or a density from 0.0 to 1.0. Received: floor={floor}")

    def floored(scores: Scores, sparsity: float) -> dict[str, int]:
        # What is pruned already (-inf) cannot be kept, so a floor does not reserve budget for it.
        least = {
            path: min(
                int(np.count_nonzero(score > -np.inf)),
                int(floor) if count else math.ceil(round(float(floor) * score.size, 6)),
            )
            for path, score in scores.items()
        }
        n_keep = base(scores, sparsity)
        budget = sum(n_keep.values())
        if sum(least.values()) > budget:
            raise ValueError(
                f"The floors need {sum(least.values())} entries, sparsity {sparsity} leaves {budget}. "
                f"Received: floor={floor}"
            )
        fixed: dict[str, int] = {}
        while low := [path for path in n_keep if path not in fixed and n_keep[path] < least[path]]:
            fixed.update({path: least[path] for path in low})
            free = {path: score for path, score in scores.items() if path not in fixed}
            left, size = budget - sum(fixed.values()), sum(score.size for score in free.values())
            n_keep = {**n_keep, **fixed, **(_exactly(base, free, left, size) if free else {})}
        return n_keep

    return floored


def _exactly(base: Scope, scores: Scores, n_keep: int, size: int) -> dict[str, int]:
    """What the scope keeps of these weights when they keep `n_keep` together; the largest give what is too much."""
    shares = base(scores, 1 - n_keep / size)
    surplus = sum(shares.values()) - n_keep
    for path in sorted(shares, key=lambda p: -shares[p]):
        cut = min(max(surplus, 0), shares[path])
        shares[path] -= cut
        surplus -= cut
    return shares
