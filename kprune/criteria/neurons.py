"""Criteria for units, meant for the pattern "channel": all weights of a unit or feature map share its score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from ..channels.elementwise import is_elementwise
from ..masks import MaskedWeight, library_of
from ..masks.layout import Layout, einsum_labels, label_axis, layout_of
from ..masks.types import is_a
from ..runtime.distribution import as_numpy
from ..runtime.inputs import input_like
from .base import CRITERIA, Context, Scores
from .engines.calls import Call, calls_of, following, is_concrete
from .engines.derivatives import gradients_of

_NO_GAMMA = (
    "kprune: no masked weight of %s leads to a batch normalization with gamma, so network slimming ranks all units "
    "only by mean magnitude. Add BatchNormalization layers after the masked layers, or choose another criterion."
)
NORMALIZATIONS = ("BatchNormalization", "LayerNormalization", "GroupNormalization")
ACTIVATIONS = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "PReLU"),
    *("Relu", "Relu6", "Silu", "Sigmoid", "Tanh", "HardSilu", "Gelu"),  # operations of a Keras 3 graph
)
# Of their inputs they hand on each channel in its place.
SAME = (
    *("Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Identity", "ActivityRegularization"),
    *(f"SpatialDropout{n}D" for n in (1, 2, 3)),
)


@CRITERIA.register("apoz", needs=("data",))
def apoz(context: Context) -> Scores:
    """How often a unit is active: score = 1 - APoZ, where APoZ is the average percentage of zeros (arXiv:1607.03250).

        score of unit c = share of its activations that are not 0, over all examples and positions

    All weights that lead to the unit have its score. The activation is the layer's own, or that of the first activation
    layer behind it: after normalizations, dropout and additions. In inference mode, under the current masks. A unit
    whose activation is never 0, of a linear or tanh layer, has the score 1 and goes last.

    Args:
        context: needs data, of which it reads the inputs; the paper uses the validation set. The model need not be
            compiled.

    Returns:
        path -> float64 array of the weight's shape, from 0 to 1, without unit.

    Raises:
        ValueError: no unit of any layer is ever 0, so that there is nothing to go by; or what a weight leads to cannot
            be seen, as in a recurrent layer.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(2, "relu", use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0, 3.0], [1.0, -9.0]])])
    >>> x = np.array([[1.0, 1.0], [2.0, 1.0], [9.0, 1.0]])  # the second unit is active once
    >>> _ = kprune.prune(model, "apoz", 0.5, pattern="channel", data=(x,))
    >>> dense.kernel.numpy().tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    active: dict[str, Any] = {weight.path: 0 for weight in context.weights}
    of = dict.fromkeys(active, 0)
    for x, _, _ in context.data:
        calls = calls_of(context, {"": x})
        for weight in context.weights:
            for made in _activations(calls, weight):
                active[weight.path] = active[weight.path] + np.count_nonzero(made, axis=0)
                of[weight.path] += len(made)
    if all(np.all(count == of[path]) for path, count in active.items()):
        raise ValueError(
            "No activation is 0 on this data. APoZ ranks units by how often their activation is 0, so the model "
            f"needs ReLU layers. Received: model={context.model.name!r}"
        )
    return _spread(context, lambda weight: active[weight.path] / of[weight.path])


@CRITERIA.register("network_slimming")
def network_slimming(context: Context) -> Scores:
    """Network slimming: score = |gamma| of the batch normalization after a unit (arXiv:1708.06519).

    All weights that lead to the unit have its score. The normalization may come after the activation; behind several,
    the largest gamma counts. Weights that lead to none rank above all that do, since the paper leaves them alone, and
    among themselves by the mean magnitude of what leads to a unit; a warning says so where there are no others. The
    paper trains with an L1 penalty on gamma: `BatchNormalization(gamma_regularizer="l1")`.

    Returns:
        path -> float64 array of the weight's shape, >= 0.

    Raises:
        ValueError: the model does not know its inputs' shape, and there are no data.

    >>> import keras, kprune, numpy as np
    >>> conv, norm = keras.layers.Conv2D(2, 1, use_bias=False), keras.layers.BatchNormalization()
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), conv, norm])
    >>> _ = conv.kernel.assign([[[[5.0, 1.0]]]]), norm.gamma.assign([0.1, -0.7])
    >>> _ = kprune.prune(model, "network_slimming", 0.5, pattern="channel")
    >>> conv.kernel.numpy().ravel().tolist()
    [0.0, 1.0]
    """
    arguments = {"": context.data[0][0]} if context.data else input_like(context.model, np.ones)
    calls = calls_of(context, arguments)
    gammas = {weight.path: _gamma(calls, weight) for weight in context.weights}
    found = [float(gamma.max()) for gamma in gammas.values() if gamma is not None]
    if not found:
        context.once("slimming's warning", lambda: logging.warning(_NO_GAMMA, context.model.name))
    above = 1.0 + max(found, default=0.0)
    values = {w.path: v for w, v in zip(context.weights, context.kept_values(), strict=True)}

    def of(weight: MaskedWeight) -> np.ndarray:
        gamma = gammas[weight.path]
        if gamma is not None:
            return gamma
        value = np.abs(layout_of(weight).canonical(values[weight.path])).astype(np.float64)
        return np.asarray(above + value.reshape(-1, value.shape[-1]).mean(axis=0))

    return _spread(context, of)


@CRITERIA.register("taylor_gates", needs=("data", "loss"))
def taylor_gates(context: Context, training: bool = False) -> Scores:
    """Taylor expansion on gates: a unit's score = mean over batches of (sum of w * dL/dw over its weights)^2.

    If the weighted sum of each unit passes a gate z = 1, dL/dz is that sum: the loss's squared change to first order
    if the gate closed (arXiv:1906.10771). Unlike `taylor`, weights of a unit that pull in opposite directions cancel.
    All weights that lead to the unit have its score; its bias is not counted.

    Args:
        context: needs data.
        training: True for batch normalization and dropout in training mode.

    Returns:
        path -> float64 array of the weight's shape, >= 0, in squared units of the loss.

    Raises:
        ValueError: the model is not compiled with a loss.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(2, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense]); model.compile("sgd", "mse")
    >>> dense.set_weights([np.array([[1.0, 3.0], [1.0, -3.0]])])
    >>> batch = np.array([[1.0, 1.0]]), np.array([[0.0, 9.0]])  # w dL/dw = (2, 2) and (-27, 27)
    >>> _ = kprune.prune(model, "taylor_gates", 0.5, pattern="channel", data=batch)
    >>> dense.kernel.numpy().tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    values, derivatives = context.kept_values(), gradients_of(context, training)
    layouts = [layout_of(weight) for weight in context.weights]
    totals = [np.zeros(layout.shape[-1]) for layout in layouts]
    for batch in context.data:
        gradients = derivatives.gradient(values, batch)
        for total, layout, v, g in zip(totals, layouts, values, gradients, strict=True):
            product = layout.canonical(v.astype(np.float64) * g)
            total += product.reshape(-1, product.shape[-1]).sum(axis=0) ** 2 / len(context.data)
    of = dict(zip((weight.path for weight in context.weights), totals, strict=True))
    return _spread(context, lambda weight: of[weight.path])


def _spread(context: Context, of: Callable[[MaskedWeight], np.ndarray]) -> Scores:
    """Map each path to the scores of its units, each repeated for all weights of the unit."""

    def spread(weight: MaskedWeight) -> np.ndarray:
        layout = layout_of(weight)
        units = np.asarray(of(weight), np.float64).reshape(layout.shape[-1:])
        return layout.original(np.broadcast_to(units, layout.shape))

    return {weight.path: spread(weight) for weight in context.weights}


def _owner(weight: MaskedWeight) -> Any:
    return library_of(weight.layer).owner(weight.layer, weight.variable)


def _outputs(calls: list[Call], weight: MaskedWeight) -> list[Any]:
    """Return the outputs of a weight's layer, one per call; raise ValueError unless each has one value per unit."""
    layer, layout = _owner(weight), layout_of(weight)
    made = [call.made[0] for call in calls if call.layer is layer]
    recurrent = hasattr(layer, "state_size") or hasattr(layer, "cell")
    inner = getattr(layer, "depthwise_kernel", None) is weight.variable and hasattr(layer, "pointwise_kernel")
    if not made or recurrent or inner or not all(is_concrete(tensor) for tensor in made):
        raise ValueError(
            f"This criterion needs the activations that {weight.path} produces, but its layer does not expose them. "
            f"Exclude this weight with the `filters` argument of kprune.mask. Received: layer={layer.name!r}"
        )
    for tensor in made:
        per_unit(layer, layout, tensor)
    return made


def per_unit(layer: Any, layout: Layout, tensor: Any) -> np.ndarray:
    """Return a layer's output as an array of shape (examples * positions, units), with units in the layout's order."""
    value = as_numpy(tensor)
    if is_a(layer, "EinsumDense"):
        _, kernel, output = einsum_labels(layer)
        axes = [label_axis(output, label) % value.ndim for label in kernel if label in output]
    else:
        axes = [1 if getattr(layer, "data_format", "channels_last") == "channels_first" else value.ndim - 1]
    others = [axis for axis in range(value.ndim) if axis not in axes]
    units = int(np.prod([value.shape[axis] for axis in axes]))
    if units != layout.shape[-1]:
        raise ValueError(
            f"The output of layer {layer.name}, of shape {value.shape}, does not have one value for each of its "
            f"{layout.shape[-1]} units: exclude the layer with the `filters` argument of kprune.mask. Received: "
            f"layer={layer.name!r}"
        )
    return value.transpose(*others, *axes).reshape(-1, units)


def _activations(calls: list[Call], weight: MaskedWeight) -> list[np.ndarray]:
    """Return the activations of a weight's units as arrays of shape (examples * positions, units)."""
    layer, layout, found = _owner(weight), layout_of(weight), []
    for tensor in _outputs(calls, weight):
        made = [tensor]
        if _is_linear(layer):
            behind = following(calls, tensor, lambda one: is_a(one, *NORMALIZATIONS, *SAME, "Add"))
            acts = [call for call in behind if is_a(call.layer, *ACTIVATIONS) and not _is_linear(call.layer)]
            made = [acts[0].made[0]] if acts else made
        found += [per_unit(layer, layout, one) for one in made]
    return found


def _is_linear(layer: Any) -> bool:
    return getattr(getattr(layer, "activation", None), "__name__", "linear") == "linear" and not is_a(
        layer, *(name for name in ACTIVATIONS if name != "Activation")
    )


def _gamma(calls: list[Call], weight: MaskedWeight) -> np.ndarray | None:
    """Return the largest |gamma| of the batch normalizations after each unit of a weight, or None if there are none."""
    largest: np.ndarray | None = None
    layer = _owner(weight)
    made = [call.made[0] for call in calls if call.layer is layer and call.made]
    units = layout_of(weight).shape[-1]
    if not is_elementwise(getattr(layer, "activation", None)):
        return None
    for tensor in made:
        for call in following(calls, tensor, lambda one: is_a(one, *ACTIVATIONS, *SAME)):
            gamma = getattr(call.layer, "gamma", None)
            if not is_a(call.layer, "BatchNormalization") or gamma is None or int(gamma.shape[0]) != units:
                continue
            size = np.abs(as_numpy(gamma).astype(np.float64))
            largest = size if largest is None else np.maximum(largest, size)
    return largest
