"""The masks of a model's weights, and the only way to read and change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from absl import logging

from ..runtime.optimizers import slots
from ..runtime.values import Values
from ..runtime.writing import keep_where
from ..util.checks import check_expression, check_strings
from ..util.interrupts import uninterrupted
from .behind import Behind
from .built import check_built
from .following import follow
from .libraries import library_of
from .optimizers import check_like_optimizer, fits, trainers
from .types import (
    DEFAULT_WEIGHTS,
    KNOWN_WEIGHTS,
    Filters,
    MaskedWeight,
    MaskReport,
    Masks,
    is_tf_keras,
    matches,
    unique_paths,
)
from .zeros import moved_paths, note_change, warn_of_zeros


def mask(
    model: Any,
    filters: Filters = None,
    weights: Sequence[str] = DEFAULT_WEIGHTS,
    *,
    store: str | None = None,
    gradient: str | None = None,
) -> MaskReport:
    """Add masks to the weights of a built model; they keep all entries at first, so predictions do not change.

    A Keras 3 model is masked in place. A tf_keras model comes back as `report.model`, a clone under tfmot's
    `PruneLowMagnitude` wrappers that shares its layers, to be compiled again. Layers that you have wrapped with tfmot
    are taken over: tfmot's own schedule is switched off, so masks no longer move by themselves. Calling it twice
    changes nothing.

    Args:
        model: a built `keras.Model` or `tf_keras.Model` (or layer, with Keras 3).
        filters: which weights: a regular expression, or several, searched in the weight's path; or a function of the
            layer that returns bool; None for all.
        weights: names of the weights to mask, among "kernel", "recurrent_kernel", "pointwise_kernel" (the default),
            "depthwise_kernel", "embeddings" and names that the model's own layers use. On tf_keras, tfmot's registry
            says which weights of a layer can be masked.
        store: "zero" (the default): pruned entries are exactly 0 in the weight itself. "latent" (Keras 3 only): they
            keep values behind the mask, and return with them; the layer reads where(mask, w, 0) all the same, and so do
            `kprune.summary`, `strip`, `export` and `shrink`. What a model has already, it keeps by default.
        gradient: of the loss by an entry behind the mask, with store="latent": "straight_through" (the default there),
            as if it were kept, or "masked", which is 0.

    Returns:
        `MaskReport`: the model, the masked paths, and why each other weight was skipped.

    Raises:
        ValueError: the model is not built, Keras runs on another backend than TensorFlow or JAX, a name in `weights`
            is not known, `filters` is of another type, or `store` is none that the model's library can have, or not
            the one that it has.
        RuntimeError: the model has masks, and training has given pruned entries values.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)])
    >>> report = kprune.mask(model, filters="hidden")
    >>> report.masked
    ('sequential/hidden/kernel',)
    """
    report, fresh = _masked(model, filters, weights, store, gradient)
    warn_of_zeros(fresh)
    return report


def adopt(model: Any, filters: Filters = None, weights: Sequence[str] = DEFAULT_WEIGHTS) -> MaskReport:
    """Turn the zeros of a model pruned by any tool into masks, so that these zeros stay zero in further training.

    mask <- mask and (w != 0), for each weight that `kprune.mask` would mask. The model predicts exactly as before. A
    weight without a value left is taken as it is, and a warning names it: it cannot train.

    Args:
        model: a built model of either Keras: one that was trained under masks or other tools and stripped, or loaded
            from its file.
        filters, weights: which weights, as for `kprune.mask`; of a model that has masks already, those of these.

    Returns:
        `MaskReport`, as `kprune.mask` does; its `model` is the one to train, a clone in the case of tf_keras.

    Raises:
        ValueError, RuntimeError: as `kprune.mask` does.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> plain = kprune.strip(model)  # or keras.models.load_model("sparse.keras")
    >>> _ = kprune.adopt(plain)
    >>> int(kprune.masked_weights(plain)[0].kept().sum())
    6
    """
    report, fresh = _masked(model, filters, weights)
    new = {weight.path for weight in fresh}
    wanted = [w for w in masked_weights(report.model) if w.path in new or matches(filters, w.layer, w.path)]
    masks = {weight.path: weight.kept() & (weight.value() != 0) for weight in wanted}
    empty = [path for path, kept in masks.items() if kept.size and not kept.any()]
    if empty:
        logging.warning(
            "kprune.adopt: all entries of %s are 0, so their masks keep no entries, and these weights will never "
            "train. If they are 0 only because their layers were initialized to 0, exclude them with `filters`.",
            ", ".join(empty[:4]) + (" ..." if len(empty) > 4 else ""),
        )
    if all(kept.all() for kept in masks.values()):
        logging.warning("kprune.adopt: found no zeros in the %d weights of %r.", len(masks), report.model.name)
    set_masks(report.model, masks)
    return report


def _masked(
    model: Any, filters: Filters, weights: Sequence[str], store: str | None = None, gradient: str | None = None
) -> tuple[MaskReport, list[MaskedWeight]]:
    """Mask a model, and return the report of `mask` and the weights that had no mask before."""
    library = library_of(model)
    check_built(model)
    before = masked_weights(model)
    check_leaks(model, before)
    behind = Behind.of(store, gradient, library.behind(model))
    report = library.mask_model(model, *_checked(library.weight_names(model), filters, weights), behind)
    known = {id(weight.variable) for weight in before}
    return report, [weight for weight in masked_weights(report.model) if id(weight.variable) not in known]


def masked_weights(model: Any) -> list[MaskedWeight]:
    """Return the masked weights of a model in model order; the list is empty if it has none.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> kprune.masked_weights(model)
    []
    >>> _ = kprune.mask(model)
    >>> [(weight.shape, int(weight.kept().sum())) for weight in kprune.masked_weights(model)]
    [((4, 3), 12)]
    """
    return _told_apart(library_of(model).find_masked(model))


def followers(model: Any) -> list[MaskedWeight]:
    """Return the biases, gammas and betas masked along with their channels; [] if no channels are pruned.

    They are no part of any sparsity, and `kprune.masked_weights` does not list them.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    >>> _ = kprune.prune(model, "magnitude", 0.5, groups="channels", verbose=0)
    >>> [(weight.shape, int(weight.kept().sum())) for weight in followers(model)]
    [((4,), 2), ((2,), 2)]
    """
    return _told_apart(library_of(model).find_followers(model))


def mask_followers(model: Any, variables: list[Any]) -> None:
    """Give these weights masks that follow the kernels' masks (see kprune/masks/following.py)."""
    library_of(model).mask_followers(model, variables)
    set_masks(model, {})


def current_masks(model: Any) -> Masks:
    """Map the path of each masked weight, in model order, to a bool array of the weight's shape (True = kept)."""
    return {weight.path: weight.kept() for weight in masked_weights(model)}


def set_masks(model: Any, masks: Masks, optimizer: Any = None) -> None:
    """Change masks, set pruned weights to exactly 0, and reset the optimizer's slots where masks changed.

    w <- where(mask, w, 0); each optimizer slot of w (momentum, averages, accumulated gradients) takes its initial
    value wherever the new mask is False or differs from the old one. That goes for every optimizer of this process that
    trains w: the model's own, that of another model that shares the layer, those of a `train_step` or a custom training
    loop. Biases and normalization that follow a channel (`kprune.masks.followers`) come along. Nothing is retraced or
    recompiled. Where values stay behind the mask (`kprune.mask(store="latent")`), neither weight nor slots change.
    Ctrl-C interrupts when all masks are set, not between two of them.

    Args:
        model: a masked model.
        masks: path -> bool array of the weight's shape, True = kept. Weights not named keep their mask.
        optimizer: one to reset besides, such as one that only looks like one of Keras's.

    Raises:
        ValueError: a path, a shape or a dtype is wrong, or `optimizer` is none. Nothing has been changed then.
        RuntimeError: training has given pruned entries values since the masks were set.
    """
    by_path = check_masks(model, masks)
    check_like_optimizer(optimizer)
    # A fit's callbacks look after each step themselves, and its steps donate their arrays, too.
    donate = fits(model)
    if not donate:
        check_leaks(model, list(by_path.values()))
    followed = followers(model)
    optimizers = trainers(model, [weight.variable for weight in (*by_path.values(), *followed)], optimizer)
    with uninterrupted():
        for path, new in masks.items():
            weight, new = by_path[path], np.asarray(new)
            stays = new & weight.seen_mask()
            if stays.all():
                continue
            latent = weight.store == "latent"
            held = [] if latent else [pair for trainer in optimizers for pair in slots(trainer, weight.variable)]
            if latent or np.array_equal(stays, new):
                weight.write(new, held, donate)
            else:
                weight.write(new, donate=donate)
                keep_where(stays, held, donate)
        follow(model, followed, optimizers)
        note_change(model)


def check_masks(model: Any, masks: Masks) -> dict[str, MaskedWeight]:
    """Return the model's masked weights by path, or raise ValueError if they cannot take these masks."""
    if not isinstance(masks, Mapping):
        raise ValueError(f"`masks` must be a dict that maps paths to bool arrays. Received: masks={masks!r:.200}")
    by_path = {weight.path: weight for weight in masked_weights(model)}
    for path, new in masks.items():
        if path not in by_path:
            raise ValueError(
                "No masked weight of the model has this path. Its masked weights are: "
                f"{', '.join(by_path) or 'none (call kprune.mask first)'}."
                f" Received: path={path!r}"
            )
        if np.shape(new) != by_path[path].shape or np.asarray(new).dtype != np.bool_:
            raise ValueError(
                f"The mask of {path} must be a bool array of shape {by_path[path].shape}. "
                f"Received: shape={np.shape(new)}, dtype={np.asarray(new).dtype}"
            )
    return by_path


def strip(model: Any) -> Any:
    """Return the plain model, with pruned weights stored as 0 and without any kprune or tfmot classes.

    A Keras 3 model is stripped in place and returned; of a tf_keras model a clone without wrappers is returned.
    Predictions are those of the masked model, bit for bit.

    Raises:
        RuntimeError: training has given pruned entries values: the model is not the one that was trained.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> type(kprune.strip(model).layers[0]).__name__
    'Dense'
    """
    weights = masked_weights(model)
    check_leaks(model, weights)
    every = [*weights, *followers(model)]
    behind = Values(weight.variable for weight in every if weight.store == "latent")
    try:
        for weight in every:
            weight.variable.assign(weight.read())
    except BaseException:
        behind.put_back()  # what is behind the masks would be lost
        raise
    return library_of(model).strip_model(model)


@contextmanager
def plain(model: Any) -> Iterator[Any]:
    """Strip the model for the duration of a `with` block, then mask it again as before."""
    check_leaks(model, masked_weights(model))
    with library_of(model).plain(model) as stripped:
        yield stripped


def check_leaks(model: Any, weights: list[MaskedWeight]) -> None:
    """Raise RuntimeError if training, not the user, made pruned entries nonzero; call this only outside `fit`.

    tf_keras does not say who did, so there it is a warning.
    """
    library_of(model).check_leaks(model, weights)


def moved_weights(model: Any) -> list[str]:
    """Return the paths of the masked weights with a pruned entry that should be 0 but is not."""
    return moved_paths(masked_weights(model))


def _told_apart(found: list[MaskedWeight]) -> list[MaskedWeight]:
    """Return the weights with their paths made unique."""
    paths = unique_paths([weight.path for weight in found])
    return [replace(weight, path=path) for weight, path in zip(found, paths, strict=True)]


def _checked(present: set[str], filters: Filters, weights: Sequence[str]) -> tuple[Filters, tuple[str, ...]]:
    weights = check_strings("weights", weights)
    known = sorted(present | set(KNOWN_WEIGHTS))
    for name in weights:
        if name not in known:
            raise ValueError(
                f"Unknown weight name: the names accepted for this model are {', '.join(known)}. Received: "
                f"weights={weights!r}"
            )
    if filters is not None and not isinstance(filters, str | list | tuple) and not callable(filters):
        raise ValueError(
            "`filters` must be a regular expression, a sequence of regular expressions, or a function of a layer. "
            f"Received: filters={filters!r}"
        )
    if not callable(filters):
        for expression in [filters] if isinstance(filters, str) else filters or ():
            check_expression(expression, "filters")
    return filters, weights


__all__ = [
    "DEFAULT_WEIGHTS",
    "MaskReport",
    "MaskedWeight",
    "Masks",
    "adopt",
    "current_masks",
    "followers",
    "is_tf_keras",
    "mask",
    "masked_weights",
    "moved_weights",
    "set_masks",
    "strip",
]
