"""kprune's interface to Keras 3 (see libraries.py), which masks layers in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from absl import logging

from ..runtime.distribution import strategy_scope
from ..runtime.values import Values
from .behind import Behind
from .below import all_layers
from .holders import live, renew
from .masked_layers import attach, detach, is_masked, own_weights
from .merged import factors, merge
from .pulls import Pull
from .pulls import attach as attach_pulls
from .pulls import release as release_pulls
from .store import CARRIER
from .types import (
    FOLLOWS,
    FROZEN,
    WAITS,
    Filters,
    MaskedWeight,
    MaskReport,
    finish_report,
    is_a,
    skip_reason,
    unique_paths,
)
from .variables import was_given_values
from .zeros import check_zeros

package = keras
OPTIMIZERS = (keras.optimizers.Optimizer,)
IN_PLACE = True
ops = keras.ops
BACKENDS = ("tensorflow", "jax")
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def backend() -> str:
    return str(keras.backend.backend())


def weight_names(model: Any) -> set[str]:
    return {weight_name(layer, v) for layer, v in _owned(model)}


def mask_model(model: Any, filters: Filters, weights: Sequence[str], behind: Behind) -> MaskReport:
    if keras.backend.backend() not in BACKENDS:
        raise ValueError(
            f"Masks require the Keras backend {' or '.join(BACKENDS)}, because on other backends layers would train "
            "without their masks. Set KERAS_BACKEND before importing keras. Received: "
            f"backend={keras.backend.backend()!r}"
        )
    owned = _owned(model)
    paths = unique_paths([v.path for _, v in owned])
    chosen, masked, skipped = [], [], {}
    already = {id(weight.variable) for weight in find_masked(model)}
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
            attach(model, chosen, behind)
        renew_functions(model, _masked(model))
    return finish_report(model, masked, skipped)


def take_over(model: Any) -> None:
    waiting = [v for _, v in _owned(model) if v.trainable and getattr(v, WAITS, False)]
    if waiting:
        _attach_too(model, waiting, WAITS, False)
        logging.warning(
            "kprune: these weights were frozen when the model was masked and are trainable now, so kprune has "
            "masked them as well: %s",
            ", ".join(v.path for v in waiting[:4]) + (" ..." if len(waiting) > 4 else ""),
        )


def mask_followers(model: Any, variables: list[Any]) -> None:
    already = {id(weight.variable) for weight in _find(model)}
    new = [v for v in variables if id(v) not in already and "float" in v.dtype]
    if new:
        _attach_too(model, new, FOLLOWS, True)


def _attach_too(model: Any, variables: list[Any], mark: str, value: bool) -> None:
    """Mask `variables` like the weights already masked, and set the attribute `mark` of each variable to `value`."""
    with strategy_scope(model):
        attach(model, variables, behind(model) or Behind())
    for v in variables:
        setattr(v, mark, value)
    renew_functions(model, _masked(model))


def narrow(model: Any, variables: list[Any]) -> None:
    """Remove the masks of all weights except `variables`."""
    wanted = {id(v) for v in variables}
    kept, masked = [one for one in _kept(model) if id(one[0].variable) in wanted], _masked(model)
    detach(model)
    _attach_again(model, kept)
    renew_functions(model, masked)


def _kept(model: Any) -> list[tuple[MaskedWeight, np.ndarray, Behind]]:
    """Return all masked weights, the values of their masks, and how their pruned entries are stored."""
    return [(weight, weight.kept(), weight.layer.mask_store.behind) for weight in _find(model)]


def _attach_again(model: Any, kept: list[tuple[MaskedWeight, np.ndarray, Behind]]) -> None:
    with strategy_scope(model):
        for kind in dict.fromkeys(kind for _, _, kind in kept):
            attach(model, [weight.variable for weight, _, one in kept if one == kind], kind)
    masks = {id(weight.variable): mask for weight, mask, _ in kept}
    for weight in _find(model):
        if id(weight.variable) in masks:
            weight.write(masks[id(weight.variable)])


def behind(model: Any) -> Behind | None:
    return next((layer.mask_store.behind for layer in all_layers(model) if is_masked(layer)), None)


def find_masked(model: Any) -> list[MaskedWeight]:
    return [weight for weight in _find(model) if not getattr(weight.variable, FOLLOWS, False)]


def find_followers(model: Any) -> list[MaskedWeight]:
    return [weight for weight in _find(model) if getattr(weight.variable, FOLLOWS, False)]


def _find(model: Any) -> list[MaskedWeight]:
    found: dict[int, MaskedWeight] = {}
    for layer in _masked(model):
        store = layer.mask_store
        for v, mask in zip(store.masked, store.masks, strict=True):
            found.setdefault(id(v), MaskedWeight(v.path, layer, v, mask, store.behind.store))
    return list(found.values())


def strip_model(model: Any) -> Any:
    masked = _masked(model)
    release_pulls(model)
    for layer in masked:
        merge(layer, layer.mask_store.masked)
    detach(model)
    renew_functions(model, masked)
    return model


def pull(model: Any, kind: type[Pull] = Pull) -> None:
    """Give each masked weight a pull of strength 0 (see pulls.py)."""
    attach_pulls(model, find_masked(model), kind)
    renew_functions(model, _masked(model))


def unpull(model: Any) -> None:
    """Remove all pulls, if there are any."""
    if release_pulls(model):
        renew_functions(model, _masked(model))


def _masked(model: Any) -> list[Any]:
    return [layer for layer in all_layers(model) if is_masked(layer)]


@contextmanager
def plain(model: Any) -> Iterator[Any]:
    kept, layers = _kept(model), _masked(model)
    changed = [layer for layer in layers if layer.mask_store.behind.latent or factors(layer) or _was_given(layer)]
    stored = Values(v for layer in changed for v in (*layer.mask_store.masked, *factors(layer)))
    for layer in changed:
        layer.mask_store.enforce()
        merge(layer, layer.mask_store.masked)
    detach(model)
    try:
        yield model
    finally:
        stored.put_back()
        _attach_again(model, kept)
        renew_functions(model, layers)


def _was_given(layer: Any) -> bool:
    return any(was_given_values(v) for v in layer.mask_store.masked)


def renew_functions(model: Any, layers: list[Any]) -> None:
    """Drop the compiled functions of every model that holds one of these layers, even while `fit` is running.

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


def check_leaks(model: Any, weights: list[MaskedWeight]) -> None:
    unknown = [weight for weight in weights if not was_given_values(weight.variable)]
    check_zeros(unknown, getattr(model, "optimizer", None))


def plain_variables(model: Any) -> list[Any]:
    return list(model.weights)


def seed_states(layer: Any) -> list[Any]:
    weights = {id(v) for v in layer.weights}
    return [v for v in layer.variables if id(v) not in weights and v.name == "seed_generator_state"]


def _owned(model: Any) -> list[tuple[Any, Any]]:
    """Return (layer, weight) once per weight, with the layer whose mask store would hold the weight's mask."""
    found: dict[int, tuple[Any, Any]] = {}
    for layer in all_layers(model):
        for v in own_weights(layer):
            found.setdefault(id(v), (layer, v))
    return list(found.values())


def owned_weights(model: Any) -> list[tuple[Any, Any]]:
    layers = all_layers(model)
    in_rnn = {id(sub) for layer in layers if is_a(layer, "RNN") for sub in all_layers(layer)[1:]}
    return [(layer, v) for layer in layers if id(layer) not in in_rnn for v in own_weights(layer)]


def owner(layer: Any, v: Any) -> Any:
    return layer


def weight_path(v: Any) -> str:
    return str(v.path)


def holds_kernel(layer: Any, v: Any) -> bool:
    # Floats, int8 and float8 are a value each; int4 packs two into one.
    return len(v.shape) > 1 and layer.quantization_mode in (None, "int8", "float8")


def carry(model: Any, carrier: Any) -> None:
    # By the first masked weight, whose store saves it beside the masks.
    variable = find_masked(model)[0].variable
    if carrier is None:
        delattr(variable, CARRIER)
    else:
        setattr(variable, CARRIER, carrier)


def carried(model: Any) -> Any:
    found = find_masked(model)
    return getattr(found[0].variable, CARRIER, None) if found else None


def weight_name(layer: Any, v: Any) -> str:
    # A depthwise layer calls its only weight "kernel", where a separable one says "depthwise_kernel".
    return "depthwise_kernel" if v.name == "kernel" and is_depthwise(layer, v) else v.name


def is_depthwise(layer: Any, v: Any) -> bool:
    """Whether a kernel belongs to a depthwise layer or to a convolution with one group per channel, as in ConvNeXt."""
    if isinstance(layer, DEPTHWISE):
        return True
    grouped = getattr(layer, "groups", 1) > 1 and getattr(layer, "kernel", None) is v
    return bool(grouped) and tuple(v.shape)[-2] == 1


def unfit(layer: Any, v: Any) -> str:
    """Return the reason that a weight of this kind cannot be masked, or "" if it can be."""
    if layer.quantization_mode is not None or "float" not in v.dtype:
        return f"the layer is quantized ({layer.quantization_mode or v.dtype})"
    if len(v.shape) < 2:
        return f"its rank is {len(v.shape)}, and only weights of rank 2 or higher can be masked"
    return ""
