"""Selection of the highest scores inside compiled programs of either backend, for several patterns.

The order of floats is that of their bits, those below zero flipped: a cut is found bit by bit, in 32 counts, and equal
scores are put in order only where they straddle it. Everything has a static shape, and the numbers to keep are tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from .masks.layout import Layout
from .patterns import Tiles

LOWEST = -(2**31)  # the key of what is pruned; that of -infinity is above it


@dataclass(frozen=True)
class Ranked:
    """The parts of a weight that are kept or pruned as a whole, in C order: its single entries or its blocks.

    Attributes:
        scores: float tensor.
        alive: bool tensor of its shape: not pruned already.
        entries: the number of entries that each stands for, int32: a tensor of its shape, or 1.
    """

    scores: Any
    alive: Any
    entries: Any

    @property
    def keys(self) -> Any:
        """Signed int32 keys in the order of the scores; -0.0 equals 0.0, and pruned entries rank below all others."""
        wide = ops.cast(self.scores, "float32")
        raw = _bits(ops.where(wide == 0, ops.zeros((), "float32"), wide))
        flipped = ops.bitwise_xor(raw, np.int32(2**31 - 1))
        return ops.where(self.alive, ops.where(raw < 0, flipped, raw), np.int32(LOWEST))


def ranked_tiles(score: Any, mask: Any, layout: Layout, tiles: Tiles) -> Ranked:
    """Return the blocks of a weight, ranked by the means of their unpruned entries (see `kprune.patterns.block`).

    The means are float32, where those of NumPy's path are float64: of two that are closer than that tells apart,
    either may rank first.
    """
    wide = _tiled(ops.where(mask, ops.cast(score, "float32"), ops.zeros((), "float32")), layout, tiles)
    entries = ops.sum(_tiled(ops.cast(mask, "int32"), layout, tiles), axis=(2, 4))
    means = ops.sum(wide, axis=(2, 4)) / ops.cast(ops.maximum(entries, 1), "float32")
    return Ranked(means, entries > 0, entries)


def kept_tiles(kept: Any, layout: Layout, tiles: Tiles) -> Any:
    """Expand a bool tensor with one entry per block to the shape of the weight."""
    (positions, rows, columns), (h, w) = tiles.grid(layout.shape)
    tall, wide = kept.shape[1:]
    full = ops.broadcast_to(ops.reshape(kept, (positions, tall, 1, wide, 1)), (positions, tall, h, wide, w))
    return _original(ops.reshape(full, (positions, tall * h, wide * w))[:, :rows, :columns], layout)


def _tiled(tensor: Any, layout: Layout, tiles: Tiles) -> Any:
    """Reshape a weight's tensor to (positions, rows of tiles, height, columns of tiles, width), padded with zeros."""
    (positions, rows, columns), (h, w) = tiles.grid(layout.shape)
    tall, wide = -(-rows // h), -(-columns // w)
    matrix = ops.reshape(_canonical(tensor, layout), (positions, rows, columns))
    padded = ops.pad(matrix, [(0, 0), (0, tall * h - rows), (0, wide * w - columns)])
    return ops.reshape(padded, (positions, tall, h, wide, w))


def cut_of_all(ranked: list[Ranked], n: Any) -> tuple[Any, Any]:
    """Count the entries of each weight that are above the n-th highest score of all weights, and those equal to it."""
    keys = [one.keys for one in ranked]

    def counts(compare: Callable[[Any], Any]) -> list[Any]:
        return [number(compare(key), one.entries) for key, one in zip(keys, ranked, strict=True)]

    cut = _highest(lambda trial: sum(counts(lambda key: key >= _signed(trial))) >= n, ops.zeros((), "int32"))
    cut = _signed(cut)
    return ops.stack(counts(lambda key: key > cut)), ops.stack(counts(lambda key: key == cut))


def keep_highest_of_each(keys: list[Any], entries: list[Any], n_keep: Any) -> list[Any]:
    """Return masks that keep the highest of keys[i] until n_keep[i] entries are kept; ties go to the lowest index.

    Args:
        keys: int32 tensors.
        entries: as of `Ranked`: where all stand for 1, exactly n_keep[i] are kept.
        n_keep: int32 vector.
    """

    def counts(compare: Callable[[int, Any], Any]) -> Any:
        return ops.stack([number(compare(i, key), entries[i]) for i, key in enumerate(keys)])

    cut = _signed(
        _highest(
            lambda trial: counts(lambda i, key: key >= _signed(trial[i])) >= n_keep, ops.zeros((len(keys),), "int32")
        )
    )
    above = counts(lambda i, key: key > cut[i])
    equal = counts(lambda i, key: key == cut[i])

    def from_the_cut() -> list[Any]:
        return [key >= cut[i] for i, key in enumerate(keys)]

    def in_order() -> list[Any]:
        # The same search over indices: of equal keys those up to `last` stay, before which there are too few.
        places = [_places(key.shape) for key in keys]

        def too_few(trial: Any) -> Any:
            before = counts(lambda i, key: ops.logical_and(key == cut[i], places[i] < trial[i]))
            return before < n_keep - above

        last = _highest(too_few, ops.zeros((len(keys),), "int32"), bits=31)
        return [
            ops.logical_or(key > cut[i], ops.logical_and(key == cut[i], places[i] <= last[i]))
            for i, key in enumerate(keys)
        ]

    return ops.cond(ops.all(above + equal == n_keep), from_the_cut, in_order)


def keep_winners_first(keys: list[Any], layouts: list[Layout], n_keep: Any, n: int, m: int) -> list[Any]:
    """Return masks as `kprune.patterns.n_of_m` does: the n highest of each group rank above all others."""
    keys = [ops.reshape(_canonical(key, layout), layout.shape) for key, layout in zip(keys, layouts, strict=True)]
    won = [_winners(key, n, m) for key in keys]
    pruned, single = np.int32(LOWEST), [1] * len(keys)
    first = ops.minimum(n_keep, ops.stack([number(win) for win in won]))
    leading = [ops.where(win, key, pruned) for key, win in zip(keys, won, strict=True)]
    others = [ops.where(win, pruned, key) for key, win in zip(keys, won, strict=True)]
    kept = zip(
        keep_highest_of_each(leading, single, first),
        keep_highest_of_each(others, single, n_keep - first),
        layouts,
        strict=True,
    )
    return [_original(ops.logical_or(one, other), layout) for one, other, layout in kept]


def _winners(key: Any, n: int, m: int) -> Any:
    """Return a bool tensor that marks the n highest of each group of m along the input axis; ties go to the first."""
    *positions, rows, columns = key.shape if len(key.shape) > 1 else (*key.shape, 1)
    n_groups = -(-rows // m)
    padding = [(0, 0)] * len(positions) + [(0, n_groups * m - rows), (0, 0)]
    padded = ops.pad(ops.reshape(key, (*positions, rows, columns)), padding, constant_values=LOWEST)
    groups = ops.reshape(padded, (*positions, n_groups, m, columns))
    members = [groups[..., j, :] for j in range(m)]
    ranks = [
        sum(
            ops.cast(other >= member if k < j else other > member, "int32") for k, other in enumerate(members) if k != j
        )
        for j, member in enumerate(members)
    ]
    won = [ops.logical_and(rank < n, member > LOWEST) for rank, member in zip(ranks, members, strict=True)]
    flat = ops.reshape(ops.stack(won, axis=-2), (*positions, n_groups * m, columns))
    return ops.reshape(flat[..., :rows, :], key.shape)


def number(flags: Any, entries: Any = 1) -> Any:
    """Return how many entries the True flags stand for, as int32."""
    return ops.sum(ops.cast(flags, "int32") * entries)


def _canonical(tensor: Any, layout: Layout) -> Any:
    return ops.transpose(tensor, layout.axes)


def _original(mask: Any, layout: Layout) -> Any:
    unfolded = ops.reshape(mask, [layout.given[axis] for axis in layout.axes])
    return ops.transpose(unfolded, tuple(np.argsort(layout.axes).tolist()))


def _highest(holds: Callable[[Any], Any], start: Any, bits: int = 32) -> Any:
    """Search from the top bit down for the highest `bits`-bit number that meets a condition, which 0 must also meet."""

    def next_bit(i: Any, number: Any) -> Any:
        trial = ops.bitwise_or(number, ops.left_shift(ops.ones((), "int32"), ops.cast(bits - 1 - i, "int32")))
        return ops.where(holds(trial), trial, number)

    return ops.fori_loop(0, bits, next_bit, start)


def _signed(number: Any) -> Any:
    """Convert an unsigned number, stored in the bits of an int32, to the signed number of the same rank."""
    return ops.bitwise_xor(number, np.int32(LOWEST))


def _bits(value: Any) -> Any:
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.bitcast_convert_type(value, "int32")
    import tensorflow as tf

    return tf.bitcast(value, tf.int32)


def _places(shape: Any) -> Any:
    """Return each entry's index in C order, summed from one small range per axis to avoid large constants."""
    places: Any = ops.zeros((), "int32")
    for axis, size in enumerate(shape):
        stride = math.prod(shape[axis + 1 :])
        along = ops.arange(size, dtype="int32") * np.int32(stride)
        places = places + ops.reshape(along, (-1, *[1] * (len(shape) - axis - 1)))
    return places
