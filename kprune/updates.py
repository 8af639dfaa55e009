"""Mask updates on an accelerator: scores, masks, weights and slots stay there; only counts reach the host.

Three programs, compiled once per model. The first counts what is alive, the second, for scopes that rank all weights
together, how many entries of each weight lie above the common cut, and the third makes masks from the number that each
weight keeps, and writes. The scope itself runs on the host, in exact integers, and its numbers go back as int32
tensors, so that a new sparsity compiles nothing. What lies in parts on several devices is counted where it lies.

The order of floats is that of their bits, those below zero flipped: the cut is found bit by bit, in 32 counts. On a CPU
the NumPy path is faster, which is also the one for criteria, scopes and patterns of the user's own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from .config import PruningConfig
from .criteria import CRITERIA
from .criteria.base import fast_form
from .cutting import shares_by_counts
from .masks import MaskedWeight, followers, library_of, masked_weights
from .masks.layout import Layout, layout_of
from .masks.optimizers import fits, trainers
from .masks.variables import forget_given
from .masks.zeros import note_change
from .patterns import PATTERNS, unstructured
from .runtime.distribution import on_host
from .runtime.optimizers import slots
from .scopes import SCOPES
from .sparsities import by_group
from .util.registry import trait

LOWEST = -(2**31)  # the key of what is pruned; that of -infinity is above it


def update_on_device(
    model: Any, config: PruningConfig, sparsity: float | dict[str, float], optimizer: Any = None
) -> dict[str, int] | None:
    """Prune a masked model like `set_masks(model, config.masks(model, sparsity), optimizer)`, on its device.

    Returns:
        path -> number of entries that are kept; None, and nothing has changed, where the host has to do it: the weights
        lie in its memory, a part of the config has no form for a device, or the host has to say what is wrong.
    """
    weights = masked_weights(model)
    score = device_scores(config, weights)
    if score is None or followers(model):  # whose masks the host derives from those of all kernels
        return None
    programs = _programs(keras.backend.backend(), _alone(model), fits(model))
    values = [(_tensor(weight.variable), _tensor(weight.mask)) for weight in weights]
    alive, finite = (np.asarray(numbers) for numbers in programs.look(score, values))
    if not finite.all():
        return None
    by_path = {weight.path: pair for weight, pair in zip(weights, values, strict=True)}

    def counts(paths: list[str], n: int) -> list[tuple[int, int]]:
        above, equal = programs.count(score, [by_path[path] for path in paths], np.array(n, np.int32))
        return list(zip(np.asarray(above).tolist(), np.asarray(equal).tolist(), strict=True))

    groups = by_group([weight.path for weight in weights if weight.trainable], sparsity)
    shapes = {weight.path: weight.shape for weight in weights}
    left = dict(zip(by_path, alive.tolist(), strict=True))
    n_keep = shares_by_counts(SCOPES.get(config.scope), groups, shapes, left, counts)
    if list(n_keep.values()) != alive.tolist():
        n_of_m = trait(PATTERNS.get(config.pattern), "n_of_m", None)
        # As numbers, by which TensorFlow, too, sees that they are the same in each update.
        layouts = [] if n_of_m is None else [astuple(layout_of(weight)) for weight in weights]
        form = (score, n_of_m, tuple(layouts))
        _write(model, weights, form, values, list(n_keep.values()), optimizer, programs)
    note_change(model)
    return n_keep


def device_scores(config: PruningConfig, weights: list[MaskedWeight]) -> Callable[[Any], Any] | None:
    """The criterion's scores as a function of a weight's tensor, if this config can be updated on the device."""
    entrywise = fast_form(CRITERIA.get(config.criterion), "entrywise")
    dtypes = {keras.backend.standardize_dtype(weight.variable.dtype) for weight in weights}
    pattern = PATTERNS.get(config.pattern)
    plain = config.rounds == 1 and config.groups is None
    plain = plain and (pattern is unstructured or trait(pattern, "n_of_m", None) is not None)
    if (
        entrywise is None
        or not plain
        or not trait(SCOPES.get(config.scope), "counts", False)
        or not any(weight.trainable for weight in weights)
        or any(weight.store == "latent" or library_of(weight.layer).package is not keras for weight in weights)
        or not dtypes <= {"float32", "bfloat16", "float16"}
        or sum(weight.size for weight in weights) >= -LOWEST
        or on_host(weight.variable for weight in weights)
    ):
        return None
    score: Callable[[Any], Any] = getattr(ops, entrywise.__name__)
    return score


def _write(
    model: Any, weights: list[MaskedWeight], form: Any, values: Any, n_keep: list[int], optimizer: Any, programs: Any
) -> None:
    optimizers = trainers(model, [weight.variable for weight in weights], optimizer)
    held = [[pair for one in optimizers for pair in slots(one, weight.variable)] for weight in weights]
    initial = [[np.asarray(start, slot.dtype) for slot, start in of_one] for of_one in held]
    tensors = [[_tensor(slot) for slot, _ in of_one] for of_one in held]
    new = programs.write(form, values, tensors, initial, np.array(n_keep, np.int32))
    for weight, of_one, (mask, value, rest) in zip(weights, held, new, strict=True):
        weight.mask.assign(mask)
        weight.variable.assign(value)
        forget_given(weight.variable)
        for (slot, _), tensor in zip(of_one, rest, strict=True):
            slot.assign(tensor)


@dataclass(frozen=True)
class _Programs:
    """The three programs, each a function of tensors, recompiled only for new shapes.

    Attributes:
        look: (score, [(value, mask)]) -> the numbers of entries that are alive, and whether their scores are finite.
        count: (score, [(value, mask)], n) -> how many entries of each are above the n-th highest of all, and equal it.
        write: ((score, n_of_m, layouts), [(value, mask)], slots, initial, n of each) -> [(mask, value, slots)] of what
            is kept.
    """

    look: Callable[..., Any]
    count: Callable[..., Any]
    write: Callable[..., Any]


@functools.cache
def _programs(backend: str, compiled: bool, donate: bool) -> _Programs:
    if backend == "jax":
        import jax

        def make(function: Callable[..., Any], donated: tuple[int, ...]) -> Callable[..., Any]:
            return jax.jit(function, static_argnums=0, donate_argnums=donated if donate else ())

    else:
        import tensorflow as tf

        def make(function: Callable[..., Any], donated: tuple[int, ...]) -> Callable[..., Any]:
            return tf.function(function, autograph=False, jit_compile=compiled or None)

    return _Programs(make(_look, ()), make(_count, ()), make(_written, (1, 2)))


def _look(score: Any, values: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    alive = [_number(mask) for _, mask in values]
    finite = [ops.all(ops.logical_or(ops.isfinite(score(value)), ops.logical_not(mask))) for value, mask in values]
    return ops.stack(alive), ops.stack(finite)


def _count(score: Any, values: list[tuple[Any, Any]], n: Any) -> tuple[Any, Any]:
    keys = [_key(score(value), mask) for value, mask in values]
    cut = _highest(lambda trial: sum(_number(key >= _signed(trial)) for key in keys) >= n, ops.zeros((), "int32"))
    cut = _signed(cut)
    return ops.stack([_number(key > cut) for key in keys]), ops.stack([_number(key == cut) for key in keys])


def _written(form: Any, values: Any, slots: Any, initial: Any, n_keep: Any) -> list[tuple[Any, Any, list[Any]]]:
    score, n_of_m, layouts = form
    keys = [_key(score(value), mask) for value, mask in values]
    masks = _highest_of_each(keys, n_keep) if n_of_m is None else _winners_first(keys, n_keep, layouts, *n_of_m)
    return [
        (mask, _where(mask, value, 0), [_where(mask, slot, start) for slot, start in zip(held, starts, strict=True)])
        for mask, (value, _), held, starts in zip(masks, values, slots, initial, strict=True)
    ]


def _highest_of_each(keys: list[Any], n_keep: Any) -> list[Any]:
    """Masks that keep the n_keep[i] highest entries of keys[i]; ties go to the lowest index."""

    def all_of(numbers: list[Any]) -> Any:
        return ops.stack(numbers)

    def reached(trial: Any) -> Any:
        return all_of([_number(key >= _signed(trial[i])) for i, key in enumerate(keys)]) >= n_keep

    cut = _signed(_highest(reached, ops.zeros((len(keys),), "int32")))
    above = all_of([_number(key > cut[i]) for i, key in enumerate(keys)])
    equal = all_of([_number(key == cut[i]) for i, key in enumerate(keys)])

    def from_the_cut() -> list[Any]:
        return [key >= cut[i] for i, key in enumerate(keys)]

    def in_order() -> list[Any]:
        # The same search over indices: those of equal keys that are below `end` stay.
        places = [_places(key.shape) for key in keys]

        def fits(trial: Any) -> Any:
            taken = [
                _number(ops.logical_and(key == cut[i], place < trial[i]))
                for i, (key, place) in enumerate(zip(keys, places, strict=True))
            ]
            return all_of(taken) <= n_keep - above

        end = _highest(fits, ops.zeros((len(keys),), "int32"), bits=31)
        return [
            ops.logical_or(key > cut[i], ops.logical_and(key == cut[i], place < end[i]))
            for i, (key, place) in enumerate(zip(keys, places, strict=True))
        ]

    return ops.cond(ops.all(above + equal == n_keep), from_the_cut, in_order)


def _winners_first(keys: list[Any], n_keep: Any, layouts: tuple[tuple[Any, ...], ...], n: int, m: int) -> list[Any]:
    """`kprune.patterns.n_of_m`: the n highest of each group rank above all others; layouts as their fields."""
    known = [Layout(*fields) for fields in layouts]
    keys = [ops.reshape(ops.transpose(key, layout.axes), layout.shape) for key, layout in zip(keys, known, strict=True)]
    won = [_winners(key, n, m) for key in keys]
    pruned = np.int32(LOWEST)
    first = ops.minimum(n_keep, ops.stack([_number(win) for win in won]))
    winners = _highest_of_each([ops.where(win, key, pruned) for key, win in zip(keys, won, strict=True)], first)
    others = _highest_of_each([ops.where(win, pruned, key) for key, win in zip(keys, won, strict=True)], n_keep - first)
    return [
        ops.transpose(
            ops.reshape(ops.logical_or(one, other), [layout.given[axis] for axis in layout.axes]),
            tuple(np.argsort(layout.axes).tolist()),
        )
        for one, other, layout in zip(winners, others, known, strict=True)
    ]


def _winners(key: Any, n: int, m: int) -> Any:
    """Which entries are among the n highest of their group of m along the input axis; ties go to the first."""
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


def _highest(holds: Callable[[Any], Any], start: Any, bits: int = 32) -> Any:
    """The highest number of this many bits for which the condition holds, from the top bit down; true for 0."""

    def next_bit(i: Any, number: Any) -> Any:
        trial = ops.bitwise_or(number, ops.left_shift(ops.ones((), "int32"), ops.cast(bits - 1 - i, "int32")))
        return ops.where(holds(trial), trial, number)

    return ops.fori_loop(0, bits, next_bit, start)


def _signed(number: Any) -> Any:
    """An unsigned number, in the bits of an int32, as the signed number of the same rank."""
    return ops.bitwise_xor(number, np.int32(LOWEST))


def _key(score: Any, mask: Any) -> Any:
    """An int32 in the order of the scores, of either sign; -0.0 equals 0.0, and pruned entries rank below all."""
    wide = ops.cast(score, "float32")
    raw = _bits(ops.where(wide == 0, ops.zeros((), "float32"), wide))
    flipped = ops.bitwise_xor(raw, np.int32(2**31 - 1))
    return ops.where(mask, ops.where(raw < 0, flipped, raw), np.int32(LOWEST))


def _bits(value: Any) -> Any:
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.bitcast_convert_type(value, "int32")
    import tensorflow as tf

    return tf.bitcast(value, tf.int32)


def _places(shape: Any) -> Any:
    """Each entry's index in C order, summed from one small range per axis to avoid large constants."""
    places: Any = ops.zeros((), "int32")
    for axis, size in enumerate(shape):
        stride = math.prod(shape[axis + 1 :])
        along = ops.arange(size, dtype="int32") * np.int32(stride)
        places = places + ops.reshape(along, (-1, *[1] * (len(shape) - axis - 1)))
    return places


def _number(flags: Any) -> Any:
    return ops.sum(ops.cast(flags, "int32"))


def _where(mask: Any, value: Any, start: Any) -> Any:
    return ops.where(mask, value, ops.cast(start, value.dtype))


def _tensor(variable: Any) -> Any:
    if keras.backend.backend() == "jax":
        return variable.value
    import tensorflow as tf

    return tf.convert_to_tensor(variable.value)


def _alone(model: Any) -> bool:
    """Whether no `tf.distribute` strategy is active: under one, Keras does not compile with XLA either."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy is None or strategy.num_replicas_in_sync == 1
