"""Masks: which weights of a model are masked, and the one way to read and change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import keras
import numpy as np

from ..runtime.optimizers import reset_slots
from ..util.checks import check_expression, check_strings
from .built import check_built
from .following import follow, held_by
from .holders import fits, trainers
from .types import DEFAULT_WEIGHTS, KNOWN_WEIGHTS, Filters, MaskedWeight, MaskReport, Masks, is_tf_keras, unique_paths
from .zeros import check_leaks, note_change


def mask(model: Any, filters: Filters = None, weights: Sequence[str] = DEFAULT_WEIGHTS) -> MaskReport:
    """Give the weights of a built model masks, all True at first: the model predicts exactly as before.

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

    Returns:
        `MaskReport`: the model, the masked paths, and why each other weight was skipped.

    Raises:
        ValueError: the model is not built, Keras runs on another backend than TensorFlow or JAX, a name in `weights`
            is not known, or `filters` is of another type.
        RuntimeError: the model has masks, and training has given pruned entries values.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)])
    >>> report = kprune.mask(model, filters="hidden")
    >>> report.masked
    ('sequential/hidden/kernel',)
    """
    backend = _backend(model)
    check_built(model)
    check_leaks(model, masked_weights(model))
    return backend.mask_model(model, *_checked(backend.weight_names(model), filters, weights))


def masked_weights(model: Any) -> list[MaskedWeight]:
    """The masked weights of a model, in model order; empty if it has none.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> kprune.masked_weights(model)
    []
    >>> _ = kprune.mask(model)
    >>> [(weight.shape, int(weight.kept().sum())) for weight in kprune.masked_weights(model)]
    [((4, 3), 12)]
    """
    found = _backend(model).find_masked(model)
    paths = unique_paths([path for path, *_ in found])
    return [MaskedWeight(path, *rest) for path, (_, *rest) in zip(paths, found, strict=True)]


def followers(model: Any) -> list[MaskedWeight]:
    """The biases, gammas and betas that are masked with their channels; empty if no channels are pruned.

    They are no part of any sparsity, and `kprune.masked_weights` does not list them.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    >>> _ = kprune.prune(model, "magnitude", 0.5, groups="channels", verbose=0)
    >>> [(weight.shape, int(weight.kept().sum())) for weight in followers(model)]
    [((4,), 2), ((2,), 2)]
    """
    return held_by(_backend(model), model)


def mask_followers(model: Any, variables: list[Any]) -> None:
    """Give these weights masks that follow those of the kernels: see kprune/masks/following.py."""
    _backend(model).mask_followers(model, variables)
    set_masks(model, {})


def current_masks(model: Any) -> Masks:
    """path -> bool array of the weight's shape, True = kept; in model order."""
    return {weight.path: weight.kept() for weight in masked_weights(model)}


def set_masks(model: Any, masks: Masks, optimizer: Any = None) -> None:
    """Change masks; the pruned weights become exactly 0 and the optimizer forgets what changed.

    w <- where(mask, w, 0); each optimizer slot of w (momentum, averages, accumulated gradients) takes its initial
    value wherever the new mask is False or differs from the old one. That goes for every optimizer of this process that
    trains w: the model's own, that of another model that shares the layer, those of a `train_step` or a custom training
    loop. Biases and normalization that follow a channel (`kprune.masks.followers`) come along. Nothing is retraced or
    recompiled.

    Args:
        model: a masked model.
        masks: path -> bool array of the weight's shape, True = kept. Weights not named keep their mask.
        optimizer: one to reset besides, such as one that only looks like one of Keras's.

    Raises:
        ValueError: a path or a shape is wrong. Nothing has been changed then.
        RuntimeError: training has given pruned entries values since the masks were set.
    """
    by_path = check_masks(model, masks)
    if not fits(model):  # whose callbacks look after each step
        check_leaks(model, list(by_path.values()))
    held = followers(model)
    optimizers = trainers(model, [weight.variable for weight in (*by_path.values(), *held)])
    optimizers += [] if optimizer is None or any(optimizer is known for known in optimizers) else [optimizer]
    for path, new in masks.items():
        weight = by_path[path]
        new = np.asarray(new)
        changed = ~new | (new != weight.kept())
        weight.write(new, weight.value())
        if changed.any():
            for trainer in optimizers:
                reset_slots(trainer, weight.variable, changed)
    follow(model, held, optimizers)
    note_change(model)


def check_masks(model: Any, masks: Masks) -> dict[str, MaskedWeight]:
    """The masked weights of a model by their path; ValueError if they cannot take these masks."""
    if not isinstance(masks, Mapping):
        raise ValueError(f"`masks` must be a dict: path -> bool array. Received: masks={masks!r:.200}")
    by_path = {weight.path: weight for weight in masked_weights(model)}
    for path, new in masks.items():
        if path not in by_path:
            raise ValueError(
                "No masked weight has this path. Masked weights: "
                f"{', '.join(by_path) or 'none: call kprune.mask first'}."
                f" Received: path={path!r}"
            )
        if np.shape(new) != by_path[path].shape or np.asarray(new).dtype != np.bool_:
            raise ValueError(
                f"The mask of {path} must be a bool array of shape {by_path[path].shape}. "
                f"Received: shape={np.shape(new)}, dtype={np.asarray(new).dtype}"
            )
    return by_path


def strip(model: Any) -> Any:
    """The plain model: every pruned weight stored as 0, no kprune or tfmot class left in it.

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
    for weight in (*weights, *followers(model)):
        value = weight.value()
        weight.variable.assign(np.where(weight.kept(), value, np.zeros((), value.dtype)))
    return _backend(model).strip_model(model)


@contextmanager
def plain(model: Any) -> Iterator[Any]:
    """Inside, the stripped model; afterwards the model is masked again as it was."""
    check_leaks(model, masked_weights(model))
    with _backend(model).plain(model) as stripped:
        yield stripped


def moved_weights(model: Any) -> list[str]:
    """Paths of the masked weights with a pruned entry that is not exactly 0; empty when all is well."""
    return [weight.path for weight in masked_weights(model) if np.any(weight.value()[~weight.kept()] != 0)]


def _backend(model: Any) -> ModuleType:
    """The module that masks this kind of model: `kprune.masks.keras3`, or `kprune.masks.tf_keras` for tf_keras."""
    if isinstance(model, keras.layers.Layer):
        from . import keras3

        return keras3
    if is_tf_keras(model):
        from . import tf_keras as wrappers

        return wrappers
    raise ValueError(f"Expected a keras.Model (Keras 3) or a tf_keras.Model. Received: model={type(model)!r}")


def _checked(present: set[str], filters: Filters, weights: Sequence[str]) -> tuple[Filters, tuple[str, ...]]:
    weights = check_strings("weights", weights)
    known = sorted(present | set(KNOWN_WEIGHTS))
    for name in weights:
        if name not in known:
            raise ValueError(f"Unknown weight name. This model has {known}. Received: weights={weights!r}")
    if filters is not None and not isinstance(filters, str | list | tuple) and not callable(filters):
        raise ValueError(
            "`filters` must be a regular expression, a sequence of them, or a function of a layer. Received: "
            f"filters={filters!r}"
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
    "current_masks",
    "followers",
    "is_tf_keras",
    "mask",
    "masked_weights",
    "moved_weights",
    "set_masks",
    "strip",
]
