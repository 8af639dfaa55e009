"""Selection of the highest scores among several weights together, on the host or in JAX programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from .util.ranking import blocks_of, nth_highest
from .util.threads import side_by_side

_TOLD: set[tuple[str, ...]] = set()


def keep_highest(
    scores: list[np.ndarray],
    within: list[np.ndarray],
    n_keep: int,
    of: np.ufunc = np.positive,
    names: Sequence[str] = (),
) -> list[np.ndarray]:
    """Return masks that keep exactly the `n_keep` highest of all scores; ties go to the earlier entry (C order).

    Args:
        scores: float arrays, finite where `within` is True.
        within: bool arrays of the same shapes; only True entries can be kept.
        n_keep: number of entries to keep, or all of `within` if that has fewer.
        of: the scores are `of` these entries, taken block by block, so that they need no memory.
        names: of the weights, for `warn_of_ties`; without them nothing is said.

    Returns:
        bool arrays of the scores' shapes.

    >>> scores, within = [np.array([4.0, 1.0]), np.array([9.0, 1.0])], [np.array([True, True]), np.array([False, True])]
    >>> keep_highest(scores, within, 2)
    [array([ True,  True]), array([False, False])]
    """
    n_keep = min(n_keep, sum(int(np.count_nonzero(mask)) for mask in within))
    if n_keep == 0:
        return [np.zeros(score.shape, bool) for score in scores]
    masks, counts = _highest(scores, n_keep, of)
    # Mostly what is pruned scores 0 and is not among them: then the copy of all scores below is not needed. It may also
    # score NaN, at which no cut is found.
    size = sum(score.size for score in scores)
    astray = any(side_by_side(lambda pair: bool((pair[0] > pair[1]).any()), zip(masks, within, strict=True), size))
    if astray or sum(int(np.count_nonzero(mask)) for mask in masks) != n_keep:
        pairs = zip(scores, within, strict=True)
        masks, counts = _highest(
            side_by_side(lambda pair: np.where(pair[1], of(pair[0]), -np.inf), pairs, size), n_keep, np.positive
        )
    if names:
        warn_of_ties(names, counts, n_keep)
    return masks


def warn_of_ties(names: Sequence[str], counts: Sequence[tuple[int, int]], n_keep: int) -> None:
    """Warn if the order of the weights, rather than their scores, decides more than 1% of the entries they keep.

    Once for weights of these names.

    Args:
        names: of the weights.
        counts: (entries above the common cut, entries that equal it) of each.
        n_keep: number of entries that they keep together.
    """
    tied = {name: equal for name, (_, equal) in zip(names, counts, strict=True) if equal}
    total, left = sum(tied.values()), n_keep - sum(above for above, _ in counts)
    if len(tied) < 2 or not 0 < left < total or 100 * total <= n_keep or tuple(names) in _TOLD:
        return
    _TOLD.add(tuple(names))
    logging.warning(
        "kprune: %d entries have exactly the same score at the cut, and only %d of them can be kept. Their order "
        "breaks the tie: entries of %s are kept before entries of %s. Ties occur among scores of 0 and among weights "
        "stored in bfloat16 or float16, which have few distinct values (dtype policy 'mixed_bfloat16' stores weights "
        "in float32). To give each weight its own share, use scope='erk' or scope='uniform'.",
        total,
        left,
        next(iter(tied)),
        next(reversed(tied)),
    )


def _highest(scores: list[np.ndarray], n_keep: int, of: np.ufunc) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Return the masks and, for each mask, how many entries are above the cut and how many are equal to it."""
    cut, counts = nth_highest([score.reshape(-1) for score in scores], n_keep, of)
    ties, limits = n_keep - sum(above for above, _ in counts), []
    for _, equal in counts:
        limits.append(None if ties >= equal else ties)
        ties -= min(ties, equal)

    def mask(pair: tuple[np.ndarray, int | None]) -> np.ndarray:
        score, limit = pair
        flat, kept = score.reshape(-1), np.empty(score.size, bool)
        for at, values in blocks_of(flat, of):
            if limit is None:
                np.greater_equal(values, cut, out=kept[at])
            else:
                np.greater(values, cut, out=kept[at])
                equal = np.flatnonzero(values == cut)[:limit]
                kept[at][equal] = True
                limit -= equal.size
        return kept.reshape(score.shape)

    return side_by_side(mask, zip(scores, limits, strict=True), sum(score.size for score in scores)), counts


def keep_highest_jax(scores: list[Any], within: list[Any], n_keep: Any) -> list[Any]:
    """Do what `keep_highest` does, in a JAX program on an accelerator, in 32 (float32) or 64 (float64) counting passes.

    The order of floats is that of their bits, those below zero flipped, so the lowest score that is kept is found
    bit by bit. Equal scores are counted in order only where they straddle the cut. On a CPU a count in XLA takes five
    to ten times as long as NumPy's.

    Args:
        scores: float32 or float64 arrays, not NaN where `within` is True; -0.0 equals 0.0.
        within: bool arrays of the same shapes.
        n_keep: int32 scalar, from 0 to the number of True entries: a tensor, so a new value compiles nothing.
    """
    from jax import lax
    from jax import numpy as jnp

    bits = 8 * scores[0].dtype.itemsize
    word = jnp.uint64 if bits == 64 else jnp.uint32
    sign = word(1 << (bits - 1))

    def key(score: Any, mask: Any) -> Any:
        raw = lax.bitcast_convert_type(jnp.where(score == 0, jnp.zeros((), score.dtype), score), word)
        return jnp.where(mask, jnp.where(raw & sign > 0, ~raw, raw | sign), word(0))

    def count(compare: Any, cut: Any) -> Any:
        return sum(jnp.sum(compare(k, cut), dtype=jnp.int32) for k in keys)

    def lower_bit(i: Any, cut: Any) -> Any:
        trial = cut | (word(1) << (bits - 1 - i).astype(word))
        return jnp.where(count(jnp.greater_equal, trial) >= n_keep, trial, cut)

    def in_order(_: Any) -> list[Any]:
        masks, left = [], n_keep - count(jnp.greater, cut)
        for k in keys:
            equal = (k == cut).reshape(-1)
            place = jnp.cumsum(equal, dtype=jnp.int32)
            masks.append((k > cut) | (equal & (place <= left)).reshape(k.shape))
            left = left - jnp.minimum(left, place[-1])
        return masks

    keys = [key(score, mask) for score, mask in zip(scores, within, strict=True)]
    cut = lax.fori_loop(0, bits, lower_bit, word(0))
    exact = count(jnp.greater_equal, cut) == n_keep
    return lax.cond(exact, lambda _: [k >= cut for k in keys], in_order, None)
