"""Selection of the highest scores inside compiled programs of either backend, for several patterns.

The order of floats is that of their bits, those below zero flipped: a cut is found bit by bit, in 32 counts, and equal
scores are put in order only where they straddle it. Of float64 there are two words of 32 bits, and so 64 counts: a
program may have no wider type. Everything has a static shape, and the numbers to keep are tensors.
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

Words = tuple[Any, ...]
"""Signed int32 tensors of a weight's shape, the most significant first, in the order of the scores; -0.0 equals 0.0."""

LOWEST = -(2**31)  # each word of what is pruned; the first of -infinity is above it
_INFINITY = 0x7F800000  # of float32; as the first word of a float64, 2**1017


@dataclass(frozen=True)
class Ranked:
    """The parts of a weight that are kept or pruned as a whole, in C order: its single entries or its blocks.

    Attributes:
        given: the words of their scores, which say nothing of what is pruned already.
        alive: bool tensor of their shape: not pruned already.
        entries: the number of entries that each stands for, int32: a tensor of their shape, or 1.
    """

    given: Words
    alive: Any
    entries: Any

    @property
    def words(self) -> Words:
        """The words, of which pruned entries rank below all others."""
        return tuple(ops.where(self.alive, word, np.int32(LOWEST)) for word in self.given)

    @property
    def finite(self) -> Any:
        """Whether all scores of what is alive are neither NaN nor infinite, or nearly so, as a bool scalar."""
        inside = ops.logical_and(self.given[0] < np.int32(_INFINITY), self.given[0] > np.int32(~_INFINITY))
        return ops.all(ops.logical_or(inside, ops.logical_not(self.alive)))


def words_of(score: Any) -> Words:
    """Return the one word of a float tensor of at most 32 bits."""
    wide = ops.cast(score, "float32")
    raw = _bits(ops.where(wide == 0, ops.zeros((), "float32"), wide))
    return (ops.where(raw < 0, _flipped(raw), raw),)


def words_of_float64(score: Any, emulated: bool) -> Words:
    """Return the two words of a float64 tensor; JAX must allow that type where this is traced.

    Args:
        score: the tensor.
        emulated: whether the device has no float64, but adds up two float32 in its place, as TPUs do.
    """
    if emulated:
        first = ops.cast(score, "float32")
        return words_of(first) + words_of(score - ops.cast(first, "float64"))
    pair = _bits(score)
    low, high = pair[..., 0], pair[..., 1]
    high = ops.where(ops.logical_and(high == np.int32(LOWEST), low == 0), np.int32(0), high)  # -0.0
    low = ops.where(high < 0, ops.bitwise_not(low), low)
    return ops.where(high < 0, _flipped(high), high), _signed(low)


def ranked_tiles(score: Any, mask: Any, layout: Layout, tiles: Tiles) -> Ranked:
    """Return the blocks of a weight, ranked by the means of their unpruned entries (see `kprune.patterns.block`).

    The means are float32, where those of NumPy's path are float64: of two that are closer than that tells apart,
    either may rank first.
    """
    wide = _tiled(ops.where(mask, ops.cast(score, "float32"), ops.zeros((), "float32")), layout, tiles)
    entries = ops.sum(_tiled(ops.cast(mask, "int32"), layout, tiles), axis=(2, 4))
    means = ops.sum(wide, axis=(2, 4)) / ops.cast(ops.maximum(entries, 1), "float32")
    return Ranked(words_of(means), entries > 0, entries)


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
    entries = [one.entries for one in ranked]
    above, equal, _ = _beside_cut([one.words for one in ranked], entries, n, together=True)
    return _numbers(above, entries), _numbers(equal, entries)


def keep_highest_of_each(words: list[Words], entries: list[Any], n_keep: Any) -> list[Any]:
    """Return masks that keep the highest of the i-th weight until n_keep[i] entries are kept; ties: the lowest index.

    Args:
        words: of each weight.
        entries: as of `Ranked`: where all stand for 1, exactly n_keep[i] are kept.
        n_keep: int32 vector.
    """
    above, equal, left = _beside_cut(words, entries, n_keep, together=False)

    def from_the_cut() -> list[Any]:
        return _each(ops.logical_or, above, equal)

    def in_order() -> list[Any]:
        # The same search over indices: of equal scores those up to `last` stay, before which there are too few.
        places = [_places(flags.shape) for flags in equal]

        def up_to(compare: Callable[[Any, Any], Any], index: Any) -> list[Any]:
            return [ops.logical_and(flags, compare(places[i], index[i])) for i, flags in enumerate(equal)]

        last = _highest(
            lambda trial: _numbers(up_to(ops.less, trial), entries) < left,
            ops.zeros((len(words),), "int32"),
            bits=31,
        )
        return _each(ops.logical_or, above, up_to(ops.less_equal, last))

    return ops.cond(ops.all(_numbers(equal, entries) == left), from_the_cut, in_order)


def _beside_cut(words: list[Words], entries: list[Any], n: Any, together: bool) -> tuple[list[Any], list[Any], Any]:
    """Return which entries are above the n-th highest and which equal it, as bool tensors, and n less those above.

    Args:
        words: of each weight.
        entries: as of `Ranked`.
        n: int32: a scalar, if the n-th highest is that of all weights together; else a vector, one for each weight.
        together: which of the two.
    """

    def count(flags: list[Any]) -> Any:
        return sum(map(number, flags, entries)) if together else _numbers(flags, entries)

    def beside(word: tuple[Any, ...], among: list[Any], n: Any) -> tuple[list[Any], list[Any]]:
        def against(compare: Callable[[Any, Any], Any], cut: Any) -> list[Any]:
            flags = [compare(one, cut if together else cut[i]) for i, one in enumerate(word)]
            return _each(ops.logical_and, among, flags) if among else flags

        cut = _signed(_highest(lambda trial: count(against(ops.greater_equal, _signed(trial))) >= n, ops.zeros_like(n)))
        return against(ops.greater, cut), against(ops.equal, cut)

    above: list[Any] = []
    equal: list[Any] = []  # in the words so far
    for word in zip(*words, strict=True):
        higher, equal = beside(word, equal, n)
        above = _each(ops.logical_or, above, higher) if above else higher
        n = n - count(higher)
    return above, equal, n


def keep_winners_first(words: list[Words], layouts: list[Layout], n_keep: Any, n: int, m: int) -> list[Any]:
    """Return masks as `kprune.patterns.n_of_m` does: the n highest of each group rank above all others."""
    words = [
        tuple(ops.reshape(_canonical(word, layout), layout.shape) for word in one)
        for one, layout in zip(words, layouts, strict=True)
    ]
    won = [_winners(one, n, m) for one in words]
    pruned, single = np.int32(LOWEST), [1] * len(words)
    first = ops.minimum(n_keep, _numbers(won, single))
    leading = [tuple(ops.where(win, word, pruned) for word in one) for one, win in zip(words, won, strict=True)]
    others = [tuple(ops.where(win, pruned, word) for word in one) for one, win in zip(words, won, strict=True)]
    kept = zip(
        keep_highest_of_each(leading, single, first),
        keep_highest_of_each(others, single, n_keep - first),
        layouts,
        strict=True,
    )
    return [_original(ops.logical_or(one, other), layout) for one, other, layout in kept]


def _winners(words: Words, n: int, m: int) -> Any:
    """Return a bool tensor that marks the n highest of each group of m along the input axis; ties go to the first."""
    shape = words[0].shape
    *positions, rows, columns = shape if len(shape) > 1 else (*shape, 1)
    n_groups = -(-rows // m)
    padding = [(0, 0)] * len(positions) + [(0, n_groups * m - rows), (0, 0)]

    def grouped(word: Any) -> Any:
        padded = ops.pad(ops.reshape(word, (*positions, rows, columns)), padding, constant_values=LOWEST)
        return ops.reshape(padded, (*positions, n_groups, m, columns))

    groups = [grouped(word) for word in words]
    members = [tuple(group[..., j, :] for group in groups) for j in range(m)]
    ranks = [
        sum(
            ops.cast(ops.logical_not(_above(member, other)) if k < j else _above(other, member), "int32")
            for k, other in enumerate(members)
            if k != j
        )
        for j, member in enumerate(members)
    ]
    won = [ops.logical_and(rank < n, member[0] > LOWEST) for rank, member in zip(ranks, members, strict=True)]
    flat = ops.reshape(ops.stack(won, axis=-2), (*positions, n_groups * m, columns))
    return ops.reshape(flat[..., :rows, :], shape)


def _above(words: Words, others: Words) -> Any:
    """Return where the first are higher, entry by entry."""
    higher = words[-1] > others[-1]
    for word, other in zip(words[-2::-1], others[-2::-1], strict=True):
        higher = ops.logical_or(word > other, ops.logical_and(word == other, higher))
    return higher


def number(flags: Any, entries: Any = 1) -> Any:
    """Return how many entries the True flags stand for, as int32."""
    return ops.sum(ops.cast(flags, "int32") * entries)


def _numbers(flags: list[Any], entries: list[Any]) -> Any:
    return ops.stack(list(map(number, flags, entries)))


def _each(combine: Callable[[Any, Any], Any], ones: list[Any], others: list[Any]) -> list[Any]:
    return list(map(combine, ones, others))


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


def _flipped(word: Any) -> Any:
    """Return the first word of a number below zero, whose bits fall as it rises, in the order of the numbers."""
    return ops.bitwise_xor(word, np.int32(2**31 - 1))


def _bits(value: Any) -> Any:
    """Return the bits as int32; those of float64 with an axis more, last, the low word first."""
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
