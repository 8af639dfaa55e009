"""Mask updates on an accelerator: scores, masks, weights and optimizer slots stay there; only counts reach the host.

Three programs, compiled once per model. The first counts what is alive, the second, for scopes that rank all weights
together, how many entries of each weight lie above the common cut, and the third makes masks from the number that each
weight keeps, and writes. The scope itself runs on the host, in exact integers, and its numbers go back as int32
tensors, so that a new sparsity compiles nothing. What lies in parts on several devices is counted where it lies.

The score of an entry is a function of its value (the criterion's trait `entrywise`), or the criterion has the scores of
all weights on their devices (`tensors`), in float64: another program makes 32-bit words of them first.

How a program finds a cut is in programs.py. On a CPU the NumPy path is faster, which is also the one for other
criteria, and for scopes and patterns of the user's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from .config import PruningConfig
from .criteria import CRITERIA, Tracker
from .criteria.engines.precision import with_float64
from .cutting import shares_by_counts
from .masks import MaskedWeight, followers, library_of, masked_weights
from .masks.following import follow
from .masks.layout import Layout, layout_of
from .masks.optimizers import fits, trainers
from .masks.variables import forget_given
from .masks.zeros import note_change
from .patterns import PATTERNS, Tiles, unstructured
from .programs import (
    Ranked,
    cut_of_all,
    keep_highest_of_each,
    keep_winners_first,
    kept_tiles,
    number,
    ranked_tiles,
    words_of,
    words_of_float64,
)
from .runtime.distribution import as_tensor, on_host, platforms
from .runtime.optimizers import slots
from .scopes import SCOPES
from .selection import warn_of_ties
from .sparsities import by_group
from .util.interrupts import uninterrupted
from .util.registry import own_trait

Form = tuple[Callable[[Any], Any] | None, str, tuple[Any, ...]]
"""(the score of a weight's tensor, or None if scores are given; the kind of pattern; its sizes): the same object or
numbers in each update."""


def update_on_device(
    model: Any,
    config: PruningConfig,
    sparsity: float | dict[str, float],
    optimizer: Any = None,
    tracker: Tracker | None = None,
) -> dict[str, int] | None:
    """Do what `set_masks(model, config.masks(model, sparsity, trackers=tracker), optimizer)` does, on the device.

    Returns:
        path -> number of entries to keep, of which a pattern of blocks keeps up to a block more; None, and nothing has
        changed, where the host has to do it: the weights lie in its memory, a part of the config has no form for a
        device, or the host has to say what is wrong.
    """
    weights = masked_weights(model)
    form = device_form(config, weights)
    if form is None:
        return None
    programs = _programs(keras.backend.backend(), _alone(model), fits(model))
    given: list[Any] = [()] * len(weights)
    if form[0] is None:
        scores = own_trait(CRITERIA.get(config.criterion), "tensors")(weights, tracker)
        if scores is None:
            return None
        emulated = "tpu" in platforms(weight.variable for weight in weights)
        given = programs.given((form[1], emulated), scores)
    values = [(as_tensor(weight.variable), as_tensor(weight.mask)) for weight in weights]
    # As numbers, by which TensorFlow, too, sees that they are the same in each update.
    layouts = [astuple(layout_of(weight)) for weight in weights]
    seen = programs.look((*form, tuple(layouts)), values, given)
    alive, largest, finite = (np.asarray(numbers) for numbers in seen)
    if not finite.all():
        return None
    by_path = {weight.path: one for weight, *one in zip(weights, values, given, layouts, strict=True)}

    def counts(paths: list[str], n: int) -> list[tuple[int, int]]:
        pairs, scored, asked = zip(*(by_path[path] for path in paths), strict=True)
        above, equal = programs.count((*form, asked), list(pairs), list(scored), np.array(n, np.int32))
        found = list(zip(np.asarray(above).tolist(), np.asarray(equal).tolist(), strict=True))
        if n < sum(left[path] for path in paths):  # else what equals the cut is pruned already
            warn_of_ties(paths, found, n)
        return found

    groups = by_group([weight.path for weight in weights if weight.trainable], sparsity)
    shapes = {weight.path: weight.shape for weight in weights}
    left = dict(zip(by_path, alive.tolist(), strict=True))
    blocks = dict(zip(by_path, largest.tolist(), strict=True))
    n_keep = shares_by_counts(SCOPES.get(config.scope), groups, shapes, left, counts, blocks)
    followed = followers(model)
    optimizers = trainers(model, [weight.variable for weight in (*weights, *followed)], optimizer)
    with uninterrupted():
        if n_keep != left:
            write = functools.partial(programs.write, (*form, tuple(layouts)), values, given)
            _write(weights, write, list(n_keep.values()), optimizers)
        follow(model, followed, optimizers)
        note_change(model)
    return n_keep


def device_form(config: PruningConfig, weights: list[MaskedWeight]) -> Form | None:
    """Return the criterion and pattern in the form that programs use, or None if the host must do the update."""
    criterion = CRITERIA.get(config.criterion)
    entrywise, given = own_trait(criterion, "entrywise"), own_trait(criterion, "tensors")
    pattern = _pattern_form(PATTERNS.get(config.pattern))
    dtypes = {keras.backend.standardize_dtype(weight.variable.dtype) for weight in weights}
    if (
        (entrywise is None and given is None)
        or pattern is None
        or config.rounds > 1
        or config.groups is not None
        or not own_trait(SCOPES.get(config.scope), "counts")
        or not any(weight.trainable for weight in weights)
        or any(weight.store == "latent" or library_of(weight.layer).package is not keras for weight in weights)
        or not dtypes <= {"float32", "bfloat16", "float16"}
        or sum(weight.size for weight in weights) >= 2**31
        or on_host(weight.variable for weight in weights)
    ):
        return None
    return entrywise and getattr(ops, entrywise.__name__), *pattern


def _pattern_form(pattern: Callable[..., Any]) -> tuple[str, tuple[Any, ...]] | None:
    n_of_m, blocks = own_trait(pattern, "n_of_m"), own_trait(pattern, "blocks")
    if n_of_m is not None:
        return "n_of_m", n_of_m
    if isinstance(blocks, Tiles):
        return "tiles", astuple(blocks)
    return ("unstructured", ()) if pattern is unstructured else None


def _write(weights: list[MaskedWeight], write: Callable[..., Any], n_keep: list[int], optimizers: list[Any]) -> None:
    held = [[pair for one in optimizers for pair in slots(one, weight.variable)] for weight in weights]
    initial = [[np.asarray(start, slot.dtype) for slot, start in of_one] for of_one in held]
    tensors = [[as_tensor(slot) for slot, _ in of_one] for of_one in held]
    new = write(tensors, initial, np.array(n_keep, np.int32))
    for weight, of_one, (mask, value, rest) in zip(weights, held, new, strict=True):
        weight.mask.assign(mask)
        weight.variable.assign(value)
        forget_given(weight.variable)
        for (slot, _), tensor in zip(of_one, rest, strict=True):
            slot.assign(tensor)


@dataclass(frozen=True)
class _Programs:
    """The programs of an update, each a function of tensors, recompiled only for new shapes.

    A form is (score, kind of pattern, its sizes, the fields of the weights' layouts). Values are
    [(value, mask)], and given is a list of what was made of the scores, () if the form has them.

    Attributes:
        given: ((kind of pattern, whether float64 is emulated), [float64 scores]) -> [their words, or for tiles float32
            scores].
        look: (form, values, given) -> of each weight the number of entries that are alive, that of its largest block (1
            without blocks), and whether its scores are finite.
        count: (form, values, given, n) -> how many entries of each are above the n-th highest of all, and equal it.
        write: (form, values, given, slots, initial, n of each) -> [(mask, value, slots)] of what is kept.
    """

    given: Callable[..., Any]
    look: Callable[..., Any]
    count: Callable[..., Any]
    write: Callable[..., Any]


@functools.cache
def _programs(backend: str, compiled: bool, donate: bool) -> _Programs:
    make: Callable[..., Any]
    if backend == "jax":
        import jax

        make = functools.partial(jax.jit, static_argnums=0)
        programs = make(_given), make(_look), make(_count), make(_written, donate_argnums=(1, 3) if donate else ())
        return _Programs(lambda *scores: _with_float64(programs[0], *scores), *programs[1:])
    import tensorflow as tf

    make = functools.partial(tf.function, autograph=False, jit_compile=compiled or None)
    return _Programs(make(_given), make(_look), make(_count), make(_written))


def _with_float64(program: Callable[..., Any], *given: Any) -> Any:
    with with_float64():
        return program(*given)


def _given(form: tuple[str, bool], scores: list[Any]) -> list[Any]:
    pattern, emulated = form
    if pattern == "tiles":
        return [ops.cast(score, "float32") for score in scores]
    return [words_of_float64(score, emulated) for score in scores]


def _look(form: Any, values: Any, given: list[Any]) -> tuple[Any, Any, Any]:
    ranked = _ranked(form, values, given)
    alive = [number(one.alive, one.entries) for one in ranked]
    largest = [ops.max(ops.cast(one.alive, "int32") * one.entries) for one in ranked]
    return ops.stack(alive), ops.stack(largest), ops.stack([one.finite for one in ranked])


def _count(form: Any, values: Any, given: list[Any], n: Any) -> tuple[Any, Any]:
    return cut_of_all(_ranked(form, values, given), n)


def _written(
    form: Any, values: Any, given: list[Any], slots: Any, initial: Any, n_keep: Any
) -> list[tuple[Any, Any, list[Any]]]:
    masks = _kept(form, values, given, n_keep)
    return [
        (mask, _where(mask, value, 0), [_where(mask, slot, start) for slot, start in zip(held, starts, strict=True)])
        for mask, (value, _), held, starts in zip(masks, values, slots, initial, strict=True)
    ]


def _ranked(form: Any, values: list[tuple[Any, Any]], given: list[Any]) -> list[Ranked]:
    score, pattern, sizes, layouts = form
    if pattern != "tiles":
        return [
            Ranked(words_of(score(value)) if score else words, mask, 1)
            for (value, mask), words in zip(values, given, strict=True)
        ]
    return [
        ranked_tiles(score(value) if score else scored, mask, Layout(*layout), Tiles(*sizes))
        for (value, mask), scored, layout in zip(values, given, layouts, strict=True)
    ]


def _kept(form: Any, values: list[tuple[Any, Any]], given: list[Any], n_keep: Any) -> list[Any]:
    """Return masks that keep n_keep[i] entries of the i-th weight, or up to one block more if blocks are kept whole."""
    _, pattern, sizes, layouts = form
    ranked, known = _ranked(form, values, given), [Layout(*layout) for layout in layouts]
    words = [one.words for one in ranked]
    if pattern == "n_of_m":
        return keep_winners_first(words, known, n_keep, *sizes)
    kept = keep_highest_of_each(words, [one.entries for one in ranked], n_keep)
    if pattern != "tiles":
        return kept
    # While less than a block is too much, nothing is pruned.
    most = [number(one.alive, one.entries) - ops.max(one.entries) for one in ranked]
    whole = [
        ops.logical_or(n_keep[i] > fewer, kept_tiles(one, layout, Tiles(*sizes)))
        for i, (fewer, one, layout) in enumerate(zip(most, kept, known, strict=True))
    ]
    return [ops.logical_and(mask, one) for (_, mask), one in zip(values, whole, strict=True)]


def _where(mask: Any, value: Any, start: Any) -> Any:
    return ops.where(mask, value, ops.cast(start, value.dtype))


def _alone(model: Any) -> bool:
    """Return whether the model trains on a single replica; with several, Keras does not compile with XLA either."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy is None or strategy.num_replicas_in_sync == 1
