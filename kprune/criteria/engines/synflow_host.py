"""All rounds of SynFlow on the host CPU, scoring block by block so that no round holds all scores at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...masks import Masks
from ...selection import keep_highest
from ...util.ranking import PIECE
from ...util.threads import side_by_side
from ..base import Context
from .synflow_factors import Derivative, aligned, make_derivatives
from .synflow_loop import SMALLEST

SAMPLE = 1 << 14
SLACK = 5  # standard errors of the sample, from the cut to either side
BLOCK = 1 << 15  # entries whose scores stay in a core's cache with the weights
PRODUCT = 1 << 18  # multiplications up to which a BLAS starts no threads


def run_rounds(flow: Any, context: Context, n_keep: list[int], advance: Callable[[int], Any]) -> Masks | None:
    """Return the masks after all rounds, or None if scores may be all 0 or outside the range of float64.

    Args:
        flow: the `_Flow` of the model, of Keras 3.
        context: its masks are those before the first round.
        n_keep: entries to keep after each round, not increasing.
        advance: told how many rounds are done, for a progress bar.
    """
    masks = [context.masks[weight.path] for weight in context.weights]
    survivors = Survivors(flow.absolute, masks)
    derivatives = make_derivatives(flow, survivors.kept)
    untouched = all(mask.all() for mask in masks)
    for n in n_keep:
        total, parts = derivatives()
        if not (math.isfinite(total) and (total == 0 or total >= SMALLEST) and survivors.bounded(parts)):
            return None
        if untouched:
            if not all(survivors.cut_exactly(parts, n)):
                return None
            untouched = False
        else:
            survivors.cut(parts, n)
        advance(1)
    return dict(zip((weight.path for weight in context.weights), survivors.masks, strict=True))


class Survivors:
    """The remaining weights, cut round by round to the highest |w * dR/dw|.

    Args:
        absolute: |w| of each weight.
        masks: bool arrays of their shapes, what is left.

    Attributes:
        kept: |w| where left, else 0: arrays that stay where they are in memory.
        masks: bool arrays of their shapes.
    """

    def __init__(self, absolute: list[np.ndarray], masks: list[np.ndarray]):
        self._absolute = absolute
        self.kept = [aligned(np.where(mask, value, 0.0)) for mask, value in zip(masks, absolute, strict=True)]
        self.masks = [mask.copy() for mask in masks]
        self._next = [np.empty(mask.shape, bool) for mask in masks]
        self._left = sum(int(np.count_nonzero(mask)) for mask in masks)
        self._size = sum(mask.size for mask in masks)
        self._largest = side_by_side(_largest, self.kept, self._size)
        self._sample: list[np.ndarray] = []

    def bounded(self, parts: list[Derivative]) -> bool:
        """Return whether all scores are certain to be finite."""

        def bound(pair: tuple[float, Derivative]) -> bool:
            largest, part = pair
            largest *= _largest(part.deltas)
            if part.windows is not None:
                largest *= _largest(part.windows) * len(part.windows)
            return math.isfinite(largest)

        with np.errstate(over="ignore", invalid="ignore"):
            return all(map(bound, zip(self._largest, parts, strict=True)))

    def cut(self, parts: list[Derivative], n: int) -> None:
        """Keep the `n` entries with the highest scores, or all if fewer are left; ties go to the earlier entry."""
        if n >= self._left:
            return
        low, high = self._bracket(parts, n)
        if not low > 0 or not self._cut_within(parts, n, low, high):
            self.cut_exactly(parts, n)

    def cut_exactly(self, parts: list[Derivative], n: int) -> list[bool]:
        """Cut as `cut` does, but from all scores at once; return for each weight whether any score is above zero."""
        pairs = list(zip(self.kept, parts, strict=True))
        scores = side_by_side(lambda pair: _scores(*pair), pairs, self._size)
        self.masks = keep_highest(scores, self.masks, n)
        self._left = min(self._left, n)
        self._restore()
        return side_by_side(lambda score: bool(score.any()), scores, self._size)

    def _restore(self) -> None:
        def write(group: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
            kept, value, mask = group
            kept[...] = 0
            np.copyto(kept, value, where=mask)

        side_by_side(write, zip(self.kept, self._absolute, self.masks, strict=True), self._size)

    def _bracket(self, parts: list[Derivative], n: int) -> tuple[float, float]:
        """Return bounds that almost surely enclose the n-th highest score, or (0, inf) if the sample cannot tell."""
        # What has survived of a sample of survivors is one of today's.
        self._sample = [at[mask.reshape(-1)[at]] for at, mask in zip(self._sample, self.masks, strict=False)]
        if sum(at.size for at in self._sample) < SAMPLE // 2:
            self._sample = side_by_side(self._drawn, self.masks, self._size)
        drawn = [_scores_at(kept, part, at) for kept, part, at in zip(self.kept, parts, self._sample, strict=True)]
        ordered = np.sort(np.concatenate(drawn))[::-1]
        share = n / self._left
        rank, slack = share * ordered.size, SLACK * math.sqrt(share * (1 - share) * ordered.size) + SLACK
        below, above = math.ceil(rank + slack), math.floor(rank - slack)
        if below >= ordered.size:
            return 0.0, math.inf
        return float(ordered[below]), float(ordered[above]) if above >= 0 else math.inf

    def _drawn(self, mask: np.ndarray) -> np.ndarray:
        """Draw indices of a weight's survivors, as many as the weight's share of the sample."""
        alive = np.flatnonzero(mask)
        # A generator of its own for each weight: they are drawn side by side.
        draw = np.random.default_rng([self._left, mask.size, alive.size])
        return alive[draw.integers(alive.size, size=SAMPLE * alive.size // self._left)] if alive.size else alive

    def _cut_within(self, parts: list[Derivative], n: int, low: float, high: float) -> bool:
        """Cut as `cut` does if the n-th highest score is within [low, high]; if not, cut nothing and return False."""

        def look(piece: tuple[int, slice]) -> tuple[int, np.ndarray, np.ndarray]:
            """Count the scores above the bracket, collect those inside it, and zero those below it."""
            i, rows = piece
            kept, before, after = (_matrix(arrays[i]) for arrays in (self.kept, self.masks, self._next))
            above, places, inside = 0, [], []
            for at, scores in _blocks(kept, parts[i], rows):
                left, higher = np.greater_equal(scores, low, out=after[at]), scores > high
                kept[at].reshape(-1)[np.flatnonzero(before[at] ^ left)] = 0
                above += int(np.count_nonzero(higher))
                found = np.flatnonzero(left ^ higher)
                places.append(found + at.start * kept.shape[1])
                inside.append(scores.reshape(-1)[found])
            return above, np.concatenate(places), np.concatenate(inside)

        pieces = [(i, rows) for i, kept in enumerate(self.kept) for rows in _pieces(_matrix(kept))]
        looks = side_by_side(look, pieces, self._size)
        left = n - sum(above for above, _, _ in looks)
        inside = np.concatenate([scores for _, _, scores in looks])
        if not 0 < left <= inside.size:
            self._restore()
            return False
        cut = np.partition(inside, inside.size - left)[inside.size - left]
        ties = left - int(np.count_nonzero(inside > cut))
        for (i, _), (_, places, scores) in zip(pieces, looks, strict=True):
            gone = scores < cut
            equal = np.flatnonzero(scores == cut)
            gone[equal[ties:]] = True
            ties -= min(ties, equal.size)
            self.kept[i].reshape(-1)[places[gone]] = 0
            self._next[i].reshape(-1)[places[gone]] = False
        self.masks, self._next, self._left = self._next, self.masks, n
        return True


def _largest(array: np.ndarray) -> float:
    return max(float(array.max()), -float(array.min()))


def _matrix(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)


def _pieces(matrix: np.ndarray) -> list[slice]:
    step = max(PIECE // matrix.shape[1], 1)
    return [slice(start, min(start + step, len(matrix))) for start in range(0, len(matrix), step)]


def _blocks(kept: np.ndarray, part: Derivative, rows: slice) -> Any:
    """Yield cache-sized blocks as (rows of the matrix, their scores); each block overwrites the previous scores."""
    positions = 1 if part.windows is None else len(part.windows)
    step = max(min(BLOCK, PRODUCT // positions) // kept.shape[1], 1)
    scratch = np.empty((min(step, rows.stop - rows.start), kept.shape[1]))
    for start in range(rows.start, rows.stop, step):
        at = slice(start, min(start + step, rows.stop))
        scores = scratch[: at.stop - at.start]
        if part.windows is None:
            np.multiply(_matrix(part.deltas)[at], kept[at], out=scores)
        else:
            np.matmul(part.windows[:, at].T, part.deltas, out=scores)
            np.multiply(scores, kept[at], out=scores)
        yield at, np.absolute(scores, out=scores)


def _scores(kept: np.ndarray, part: Derivative) -> np.ndarray:
    """Return |w * dR/dw| for all entries of a weight."""
    scores = np.empty(kept.shape)
    for at, block in _blocks(_matrix(kept), part, slice(0, len(_matrix(kept)))):
        _matrix(scores)[at] = block
    return scores


def _scores_at(kept: np.ndarray, part: Derivative, places: np.ndarray) -> np.ndarray:
    """Return |w * dR/dw| for entries of a weight, given by their indices in C order."""
    if part.windows is None:
        gradients = part.deltas.reshape(-1)[places]
    else:
        rows, columns = np.divmod(places, kept.shape[-1])
        gradients = np.einsum("pi,pi->i", part.windows[:, rows], part.deltas[:, columns])
    return np.abs(gradients * kept.reshape(-1)[places])
