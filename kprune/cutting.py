"""Conversion of the scores of all weights into masks, by a scope and a pattern, in one pruning round."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .masks import Masks
from .masks.layout import Layout
from .patterns import Pattern, pooled
from .scopes.base import Scope, shares_of
from .selection import keep_highest
from .util.ranking import Counted, alive
from .util.registry import trait
from .util.threads import side_by_side

Scores = dict[str, np.ndarray]
Groups = list[tuple[list[str], float]]
"""(paths, sparsity) of each; weights of no group keep what is alive."""


def shares_by_counts(
    scope: Scope,
    groups: Groups,
    shapes: dict[str, tuple[int, ...]],
    left: dict[str, int],
    counts: Callable[[list[str], int], list[tuple[int, int]]],
    blocks: dict[str, int] | None = None,
) -> dict[str, int]:
    """Map each path to the number of entries to keep, for a scope that only counts scores.

    Args:
        scope: one with the trait `counts`.
        groups: the weights that share a sparsity.
        shapes, left: of each weight, its shape and the number of entries that are not pruned already.
        counts: (paths, n) -> (entries above the n-th highest score of these weights, entries that equal it) of each.
        blocks: of each weight, the number of entries in its fullest block; None where single entries are pruned.
    """
    n_keep = dict(left)
    for paths, sparsity in groups:
        counted: Any = {path: Counted(shapes[path], left[path], functools.partial(counts, paths)) for path in paths}
        shares = {path: min(n, left[path]) for path, n in shares_of(scope, counted, sparsity).items()}
        if blocks is None or not _less_than_a_block(shares, left, blocks):
            n_keep.update(shares)
    return n_keep


def cut_by_counts(scope: Scope, scores: Scores, groups: Groups, masks: Masks, of: np.ufunc = np.positive) -> Masks:
    """Return unstructured masks for a scope with the trait `counts`, without copying the scores.

    Args:
        scope, groups: as of `shares_by_counts`.
        scores: path -> float array, finite where the mask is True.
        masks: path -> bool array; only True entries can be kept.
        of: as of `keep_highest`.
    """

    def highest(paths: list[str], n: int) -> list[np.ndarray]:
        return keep_highest([scores[path] for path in paths], [masks[path] for path in paths], n, of, paths)

    def counts(paths: list[str], n: int) -> list[tuple[int, int]]:
        if n > sum(left[path] for path in paths):
            return [(left[path], masks[path].size - left[path]) for path in paths]
        return [(int(np.count_nonzero(mask)), 0) for mask in highest(paths, n)]

    left = {path: int(np.count_nonzero(masks[path])) for path in scores}
    n_keep = shares_by_counts(scope, groups, {path: score.shape for path, score in scores.items()}, left, counts)
    size = sum(score.size for score in scores.values())
    return dict(zip(scores, side_by_side(lambda path: highest([path], n_keep[path])[0], scores, size), strict=True))


def cut_by_pattern(
    scope: Scope, pattern: Pattern, layouts: dict[str, Layout], scores: Scores, groups: Groups, masks: Masks
) -> Masks:
    """Return masks for any scope and pattern, including custom ones; the arguments are as for `cut_by_counts`.

    Raises:
        ValueError: scope or pattern returned something else than they should.
    """

    def survivor(path: str) -> np.ndarray:
        return scores[path] if masks[path].all() else np.where(masks[path], scores[path], -np.inf)

    def cut(path: str) -> np.ndarray:
        score = layouts[path].canonical(survivors[path])
        kept = np.asarray(pattern(score, min(n_keep[path], int(np.count_nonzero(masks[path])))))
        if kept.shape != score.shape or kept.dtype != np.bool_:
            raise ValueError(
                f"A pattern must return a bool array with the shape of the scores, {score.shape}. Received: "
                f"shape={kept.shape}, dtype={kept.dtype}"
            )
        return layouts[path].original(kept)

    size = sum(score.size for score in scores.values())
    survivors = dict(zip(scores, side_by_side(survivor, scores, size), strict=True))
    n_keep = {path: score.size for path, score in scores.items()}
    for paths, sparsity in groups:
        n_keep.update(_shares(scope, pattern, {path: survivors[path] for path in paths}, layouts, sparsity))
    return dict(zip(scores, side_by_side(cut, scores, size), strict=True))


def _shares(
    scope: Scope, pattern: Pattern, survivors: Scores, layouts: dict[str, Layout], sparsity: float
) -> dict[str, int]:
    """Map each path to the number of entries to keep, for the weights of one group."""
    blocks = trait(pattern, "blocks", None)
    if blocks is None:
        return shares_of(scope, survivors, sparsity)
    paths = list(survivors)
    pools = side_by_side(lambda path: pooled(layouts[path].canonical(survivors[path]), blocks), paths)
    ranked = {path: layouts[path].original(score) for path, (score, _) in zip(paths, pools, strict=True)}
    shares = shares_of(scope, ranked, sparsity)
    left = {path: alive(score) for path, score in ranked.items()}
    fullest = {path: largest for path, (_, largest) in zip(paths, pools, strict=True)}
    return left if _less_than_a_block(shares, left, fullest) else shares


def _less_than_a_block(shares: dict[str, int], left: dict[str, int], blocks: dict[str, int]) -> bool:
    """Return whether the number of entries to prune is below the size of the fullest block; if so, nothing is pruned.

    Blocks rarely come out even, so some entries stay that were to go. Were they taken in the next update, then a fit
    that is resumed, where the same update comes once more, would end with other masks.
    """
    return sum(max(left[path] - n, 0) for path, n in shares.items()) < max(blocks[path] for path in shares)
