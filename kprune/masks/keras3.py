"""Masks in Keras 3 models: the in-place half of `kprune.mask` and `kprune.strip`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from absl import logging

from ..runtime.distribution import strategy_scope, to_numpy
from ..runtime.values import Values
from .below import all_layers
from .holders import live, renew
from .masked_layers import attach, detach, is_masked, own_weights
from .merged import factors, merge
from .types import FOLLOWS, FROZEN, WAITS, Filters, MaskedWeight, MaskReport, finish_report, skip_reason, unique_paths

BACKENDS = ("tensorflow", "jax")
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def weight_names(model: Any) -> set[str]:
    """The names by which `mask(weights=...)` knows the model's weights."""
    return {weight_name(layer, v) for layer, v in _owned(model)}


def mask_model(model: Any, filters: Filters, weights: Sequence[str]) -> MaskReport:
    if keras.backend.backend() not in BACKENDS:
        raise ValueError(
            f"Masks need one of the Keras backends {', '.join(BACKENDS)}: on others a layer would train without its "
            f"mask. Set KERAS_BACKEND before keras is imported. Received: backend={keras.backend.backend()!r}"
        )
    owned = _owned(model)
    paths = unique_paths([v.path for _, v in owned])
    chosen, masked, skipped = [], [], {}
    already = {id(v) for _, _, v, _ in find_masked(model)}
    for (layer, v), path in zip(owned, paths, strict=True):
        reason = skip_reason(weight_name(layer, v), v, path, layer, filters, weights, unfit(layer, v))
        setattr(v, WAITS, reason == FROZEN and id(v) not in already)
        if id(v) in already or not reason:
            masked.append(path)
            chosen.append(v)
            setattr(v, FOLLOWS, False)
        else:
            skipped[path] = reason
    if any(id(v) not in already for v in chosen):
        with strategy_scope(model):
            attach(model, chosen)
        renew_functions(model, _masked(model))
    return finish_report(model, masked, skipped)


def mask_unfrozen(model: Any) -> None:
    """Mask weights that were skipped because they were frozen, and that train now."""
    waiting = [v for _, v in _owned(model) if v.trainable and getattr(v, WAITS, False)]
    if waiting:
        with strategy_scope(model):
            attach(model, waiting)
        for v in waiting:
            setattr(v, WAITS, False)
        renew_functions(model, _masked(model))
        logging.warning(
            "kprune: these weights were frozen when the model was masked; they train now, so they are now masked: %s",
            ", ".join(v.path for v in waiting[:4]) + (" ..." if len(waiting) > 4 else ""),
        )


def mask_followers(model: Any, variables: list[Any]) -> None:
    """Mask weights that are pruned only with a channel; those that have masks stay as they are."""
    already = {id(v) for _, _, v, _ in _find(model)}
    new = [v for v in variables if id(v) not in already and "float" in v.dtype]
    if new:
        with strategy_scope(model):
            attach(model, new)
        for v in new:
            setattr(v, FOLLOWS, True)
        renew_functions(model, _masked(model))


def narrow(model: Any, variables: list[Any]) -> None:
    """Remove the masks of all weights but these."""
    wanted = {id(v) for v in variables}
    kept = [(v, to_numpy(mask)) for _, _, v, mask in _find(model) if id(v) in wanted]
    masked = _masked(model)
    detach(model)
    _attach_again(model, kept)
    renew_functions(model, masked)


def _attach_again(model: Any, kept: list[tuple[Any, np.ndarray]]) -> None:
    with strategy_scope(model):
        attach(model, [v for v, _ in kept])
    masks = {id(v): mask for v, mask in kept}
    for path, layer, v, mask in _find(model):
        if id(v) in masks:
            weight = MaskedWeight(path, layer, v, mask)
            weight.write(masks[id(v)])


def find_masked(model: Any) -> list[tuple[str, Any, Any, Any]]:
    return [found for found in _find(model) if not getattr(found[2], FOLLOWS, False)]


def find_followers(model: Any) -> list[tuple[str, Any, Any, Any]]:
    return [found for found in _find(model) if getattr(found[2], FOLLOWS, False)]


def _find(model: Any) -> list[tuple[str, Any, Any, Any]]:
    found: dict[int, tuple[str, Any, Any, Any]] = {}
    for layer in all_layers(model):
        if is_masked(layer):
            for v, mask in zip(layer.mask_store.masked, layer.mask_store.masks, strict=True):
                found.setdefault(id(v), (v.path, layer, v, mask))
    return list(found.values())


def strip_model(model: Any) -> Any:
    masked = _masked(model)
    for layer in masked:
        merge(layer, layer.mask_store.masked)
    detach(model)
    renew_functions(model, masked)
    return model


def _masked(model: Any) -> list[Any]:
    return [layer for layer in all_layers(model) if is_masked(layer)]


@contextmanager
def plain(model: Any) -> Iterator[Any]:
    """Inside, the model is stripped in place; afterwards its masks are back."""
    kept = [(v, to_numpy(mask)) for _, _, v, mask in _find(model)]
    layers = _masked(model)
    unmerged = Values(v for layer in layers if factors(layer) for v in (*layer.mask_store.masked, *factors(layer)))
    for layer in layers:
        merge(layer, layer.mask_store.masked)
    detach(model)
    try:
        yield model
    finally:
        unmerged.put_back()
        _attach_again(model, kept)
        renew_functions(model, _masked(model))


def renew_functions(model: Any, layers: list[Any]) -> None:
    """Drop what was compiled, also in the middle of a fit, by any model that holds one of these layers.

    These are the model's own train, test and predict functions and those of other live models: the second one of a GAN,
    for example, which knows the layer though the layer does not know it. Methods that are a `tf.function` are traced
    anew, too.
    """
    changed = {id(layer) for layer in layers}
    others = [other for other in live(keras.Model) if hasattr(other, "built")]  # which `Layer.__init__` sets
    for owner in {id(one): one for one in [model, *all_layers(model), *others]}.values():
        below = all_layers(owner)
        if changed.intersection(map(id, below)):
            renew(owner, below)


def seed_states(layer: Any) -> list[Any]:
    """The states of the seed generators at and below the layer (dropout ...), which Keras counts as no weights."""
    weights = {id(v) for v in layer.weights}
    return [v for v in layer.variables if id(v) not in weights and v.name == "seed_generator_state"]


def _owned(model: Any) -> list[tuple[Any, Any]]:
    """(layer, weight) for each weight, with the layer whose mask store would hold its mask, each weight once."""
    found: dict[int, tuple[Any, Any]] = {}
    for layer in all_layers(model):
        for v in own_weights(layer):
            found.setdefault(id(v), (layer, v))
    return list(found.values())


def weight_name(layer: Any, v: Any) -> str:
    """The name by which `mask(weights=...)` knows a weight of this layer."""
    # A depthwise layer calls its only weight "kernel", where a separable one says "depthwise_kernel".
    return "depthwise_kernel" if v.name == "kernel" and is_depthwise(layer, v) else v.name


def is_depthwise(layer: Any, v: Any) -> bool:
    """Whether a kernel is one of a depthwise layer, or of a convolution with a group per channel, as in ConvNeXt."""
    if isinstance(layer, DEPTHWISE):
        return True
    grouped = getattr(layer, "groups", 1) > 1 and getattr(layer, "kernel", None) is v
    return bool(grouped) and tuple(v.shape)[-2] == 1


def unfit(layer: Any, v: Any) -> str:
    """Why a weight of this kind cannot be masked, or ""."""
    if layer.quantization_mode is not None or "float" not in v.dtype:
        return f"the layer is quantized ({layer.quantization_mode or v.dtype})"
    if len(v.shape) < 2:
        return f"it has rank {len(v.shape)}; masks are for kernels"
    return ""
