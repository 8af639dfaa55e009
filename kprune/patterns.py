"""Patterns, which define where zeros may lie: each turns the scores of one weight and a count into a mask.

A pattern sees every weight as (..., in, out), whatever its layer: see `kprune.masks.layout`. The traits in which one
differs from the plain case:

- `default_scope`: the scope where the user does not name one ("global");
- `n_of_m`: (n, m) of a pattern that keeps n of each m, by which compiled programs know it (none);
- `blocks`: of a pattern that keeps blocks of entries whole, the function shape -> int array of that shape, the number
  of the block that each entry belongs to (none). The scope is then given each block's mean as the score of its entries.
  Compiled programs know blocks that are `Tiles`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from .util.ranking import alive, nth_highest
from .util.registry import Registry

PATTERNS = Registry("pattern")

Pattern = Callable[[np.ndarray, int], np.ndarray]
Blocks = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Tiles:
    """Tiles of h inputs x w outputs, at each position of a convolution, numbered in C order.

    Attributes:
        h: their height; None for all inputs at all positions together.
        w: their width.

    >>> Tiles(2, 1)((3, 2))
    array([[0, 1],
           [0, 1],
           [2, 3]])
    """

    h: int | None
    w: int

    def grid(self, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Return a weight's shape as (positions, inputs, outputs), and the height and width of a full tile."""
        *positions, rows, columns = shape if len(shape) > 1 else (*shape, 1)
        if self.h is None:
            positions, rows = [], math.prod(positions) * rows
        return (math.prod(positions), rows, columns), (max(min(self.h or rows, rows), 1), max(min(self.w, columns), 1))

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the number of the tile that each entry belongs to."""
        (positions, rows, columns), (h, w) = self.grid(shape)
        tall, wide = -(-rows // h), -(-columns // w)
        tile = (np.arange(rows) // h)[:, None] * wide + np.arange(columns) // w
        return (np.arange(positions).reshape(-1, 1, 1) * (tall * wide) + tile).reshape(shape)


@PATTERNS.register("unstructured")
def unstructured(score: np.ndarray, n_keep: int) -> np.ndarray:
    """Keep the `n_keep` entries with the highest scores; ties go to the lowest index (C order).

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
    _check_count(score, n_keep)
    if n_keep == 0:
        return np.zeros(score.shape, bool)
    flat = score.reshape(-1)
    cut, [(above, equal)] = nth_highest([flat], n_keep)
    if above + equal == n_keep:
        return (flat >= cut).reshape(score.shape)
    mask = flat > cut
    mask[np.flatnonzero(flat == cut)[: n_keep - above]] = True
    return mask.reshape(score.shape)


@PATTERNS.family(r"(\d+):(\d+)", "n:m")
def n_of_m(n: int, m: int) -> Pattern:
    """A pattern that keeps at most n of every m consecutive inputs of an output: 2:4 keeps 2 of 4 (arXiv:2104.08378).

    By name "2:4", "1:4" and so on. The first number is what is kept; tfmot's `sparsity_m_by_n` begins with the zeros.

    A group is m entries that follow each other along the input axis, for each output and each position of a
    convolution. Where m does not divide the axis, the last group is shorter, as if filled up with pruned entries. The
    n highest of a group win, of equal ones those of the lowest index. All winners rank above all others; the `n_keep`
    highest in that order are kept. So the count is exact, and with W = number of winners = sum over the groups of
    min(n, entries left):

    - n_keep <= W, which sparsity 1 - n/m and above means: no group keeps more than n;
    - n_keep > W, early in a gradual schedule: only entries that win nowhere are zero.

    The default scope is "layerwise": hardware asks for n:m in each layer, and a global budget gives some layers more
    than W.

    Args:
        n: entries to keep of each group, 1 <= n < m.
        m: entries of a group.

    Returns:
        A pattern: (score, n_keep) -> mask with exactly `n_keep` True, or all that is not pruned (-inf) if that is
        less. It raises ValueError if n_keep is not from 0 to score.size.

    Raises:
        ValueError: n or m is out of range.

    >>> score = np.array([[4.0, 3.0, 2.0, 1.0, 0.5]]).T  # 5 inputs, 1 output: a group of 4, a group of 1
    >>> n_of_m(2, 4)(score, 3).T
    array([[ True,  True, False, False,  True]])
    >>> n_of_m(2, 4)(score, 4).T
    array([[ True,  True,  True, False,  True]])
    """
    _check_sizes(n=n, m=m)
    if n >= m:
        raise ValueError(
            f"`n` must be less than `m`: an n:m pattern keeps n of every m entries. Received: n={n}, m={m}"
        )

    def keep(score: np.ndarray, n_keep: int) -> np.ndarray:
        _check_count(score, n_keep)
        n_keep = min(n_keep, alive(score))
        winners = _winners(score, n, m)
        n_winners = int(np.count_nonzero(winners))
        if n_keep <= n_winners:
            return unstructured(np.where(winners, score, -np.inf), n_keep)
        return winners | unstructured(np.where(winners, -np.inf, score), n_keep - n_winners)

    return _named(keep, f"{n}:{m}", n_of_m, default_scope="layerwise", n_of_m=(n, m))


@PATTERNS.register("fan_in")
def fan_in(score: np.ndarray, n_keep: int) -> np.ndarray:
    """Keep the same number of inputs for each output: those with the highest scores (arXiv:2306.11695, 2305.02299).

    The best input of each output ranks above all second ones, these above all third ones, and so on; of one rank the
    higher score goes first. The `n_keep` highest in that order are kept, so that the numbers of two outputs differ by
    at most one. The inputs of a convolution are those at all of its positions.

    Args:
        score: float array (..., in, out); higher = keep; -inf = pruned already.
        n_keep: number of entries to keep, 0 <= n_keep <= score.size.

    Returns:
        bool array of the score's shape with exactly `n_keep` True, or all that is not pruned if that is less.

    Raises:
        ValueError: n_keep is out of range.

    >>> fan_in(np.array([[9.0, 1.0], [8.0, 2.0], [7.0, 3.0]]), 3)
    array([[ True, False],
           [ True, False],
           [False,  True]])
    """
    _check_count(score, n_keep)
    inputs = score.reshape(-1, score.shape[-1] if score.ndim > 1 else 1)
    # Unsigned numbers and truth values have no negative.
    inputs = inputs.astype(np.float64) if inputs.dtype.kind in "bu" else inputs
    order = np.argsort(-inputs, axis=0, kind="stable")
    rank, living = np.empty_like(order), inputs > -np.inf
    np.put_along_axis(rank, order, np.arange(len(inputs))[:, None], axis=0)
    up_to = np.cumsum(np.bincount(rank[living], minlength=len(inputs)))
    last = int(np.searchsorted(up_to, n_keep))  # the rank of which some are kept
    keep = living & (rank < last)
    left = min(n_keep, alive(score)) - int(np.count_nonzero(keep))
    return (keep | unstructured(np.where(rank == last, inputs, -np.inf), left)).reshape(score.shape)


@PATTERNS.family(r"(\d+)x(\d+)", "hxw")
def block(h: int, w: int) -> Pattern:
    """A pattern of whole tiles of h inputs x w outputs, at each position of a convolution (arXiv:1711.02782).

    By name "4x4", "1x8" and so on. At the edges, where h or w does not divide the axis, the tiles are smaller.

    A tile's score is the mean of its entries' scores, of those that are not pruned yet. The best tiles, of equal ones
    those of the lowest index, are kept until `n_keep` entries are. So there are never more zeros than asked for, and
    fewer by less than a tile per weight (under a "global" scope: by less than the largest tile in all). While less
    than a tile is too much nothing is pruned: a model that is pruned again to the same sparsity stays as it is, as
    long as no floor of a scope gives a weight more than its rank does.

    Args:
        h: height of a tile, along the input axis; at least 1.
        w: its width, along the output axis; at least 1.

    Returns:
        A pattern: (score, n_keep) -> mask. Pruned entries (-inf) are not kept. It raises ValueError if n_keep is not
        from 0 to score.size.

    Raises:
        ValueError: h or w is out of range.

    >>> score = np.array([[1.0, 1.0, 5.0], [1.0, 1.0, 5.0], [4.0, 4.0, 0.0]])
    >>> block(2, 2)(score, 4)
    array([[False, False,  True],
           [False, False,  True],
           [ True,  True, False]])
    """
    _check_sizes(h=h, w=w)

    tiles = Tiles(h, w)
    return _named(lambda score, n_keep: _keep_whole(score, n_keep, tiles), f"{h}x{w}", block, blocks=tiles)


@PATTERNS.register("channel", blocks=Tiles(None, 1))
def channel(score: np.ndarray, n_keep: int) -> np.ndarray:
    """Keep or prune whole output channels: all weights that lead to one unit or feature map (arXiv:1608.08710).

    As `block`, with the filters in place of the tiles: a filter's score is the mean of its weights'. Its bias, gamma
    and beta follow it (`kprune.masks.followers`). What reads its output is left alone;
    `PruningConfig(groups="channels")` prunes a filter with all that reads it. In an RNN layer a channel is a gate of a
    unit. A global budget can leave a weight without any channel, `kprune.scopes.with_floor` prevents that; and a
    channel of the last layer is one of the model's outputs, which `kprune.scopes.kept_out("global", last=True)` leaves
    dense.

    Args:
        score: float array (..., in, out); higher = keep; -inf = pruned already.
        n_keep: number of entries to keep, 0 <= n_keep <= score.size.

    Returns:
        bool array of the score's shape: the best filters, as many as it takes to keep at least `n_keep` entries.

    Raises:
        ValueError: n_keep is out of range.

    >>> channel(np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), 3)
    array([[ True, False,  True],
           [ True, False,  True]])
    """
    return _keep_whole(score, n_keep, Tiles(None, 1))


def pooled(score: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, int]:
    """Return the scores by which a scope ranks blocks, and the number of entries in the fullest block.

    Each score is the mean of its block over what is not pruned yet; pruned entries stay -inf.

    >>> scores, largest = pooled(np.array([[4.0, 1.0], [2.0, -np.inf]]), PATTERNS.get("channel").blocks)
    >>> scores, largest
    (array([[  3.,   1.],
           [  3., -inf]]), 2)
    """
    numbers, means, counts = _measured(score, blocks)
    return np.where(score > -np.inf, means[numbers].reshape(score.shape), -np.inf), int(counts.max())


def _keep_whole(score: np.ndarray, n_keep: int, blocks: Blocks) -> np.ndarray:
    _check_count(score, n_keep)
    numbers, means, counts = _measured(score, blocks)
    living = score > -np.inf
    if counts.sum() - n_keep < counts.max():
        return living
    order = np.argsort(-means, kind="stable")
    kept_before = np.cumsum(counts[order]) - counts[order]
    keep = np.zeros(means.size, bool)
    keep[order[kept_before < n_keep]] = True
    return keep[numbers].reshape(score.shape) & living


def _measured(score: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each entry's block (flat), and each block's mean (-inf if fully pruned) and count of entries left."""
    shape = score.shape if score.ndim > 1 else (*score.shape, 1)
    numbers, flat = blocks(shape).reshape(-1), score.reshape(-1)
    living = flat > -np.inf
    counts = np.bincount(numbers, living).astype(int)
    sums = np.bincount(numbers, np.where(living, flat, 0))
    return numbers, np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf), counts


def _winners(score: np.ndarray, n: int, m: int) -> np.ndarray:
    """Return a bool array that marks the n highest unpruned entries of each group of m along the input axis."""
    *positions, rows, columns = score.shape if score.ndim > 1 else (*score.shape, 1)
    n_groups = -(-rows // m)
    padded = np.full((*positions, n_groups * m, columns), -np.inf, np.result_type(score, np.float32))
    padded[..., :rows, :] = score.reshape(*positions, rows, columns)
    groups = padded.reshape(*positions, n_groups, m, columns)
    best = np.argsort(-groups, axis=-2, kind="stable")[..., :n, :]
    won = np.zeros(groups.shape, bool)
    np.put_along_axis(won, best, True, axis=-2)
    return won.reshape(padded.shape)[..., :rows, :].reshape(score.shape) & (score > -np.inf)


def _named(pattern: Pattern, name: str, factory: Callable[..., Any], **traits: Any) -> Pattern:
    """Give a pattern its name for messages, its traits, and the docstring of its factory."""
    pattern.__name__, pattern.__doc__ = name, factory.__doc__
    for trait_name, value in traits.items():
        setattr(pattern, trait_name, value)
    return pattern


def _check_count(score: np.ndarray, n_keep: int) -> None:
    if not isinstance(score, np.ndarray) or score.dtype.kind not in "biufV":  # "V": bfloat16
        raise ValueError(f"`score` must be an array of numbers. Received: score={score!r:.200}")
    if not isinstance(n_keep, Integral) or isinstance(n_keep, bool) or not 0 <= n_keep <= score.size:
        raise ValueError(f"`n_keep` must be an integer from 0 to {score.size}. Received: n_keep={n_keep!r:.200}")


def _check_sizes(**sizes: int) -> None:
    received = ", ".join(f"{name}={size!r}" for name, size in sizes.items())
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"`{name}` must be an integer >= 1. Received: {received}")


PATTERNS.register("2:4")(n_of_m(2, 4))


__all__ = ["PATTERNS", "block", "channel", "fan_in", "n_of_m", "unstructured"]
