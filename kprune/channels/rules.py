"""The channel rules: how each kind of layer maps the channels of its inputs to those of its output.

`RULES` has one row per kind, by the names that both Kerases share. A rule is a function of the graph, the layer, the
tensors that it is given and the shape of its output; it enters in the graph what it knows and returns the output, or
the reason why this layer is not one that it describes. What no rule describes is a barrier: it and its neighbors stay
whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .elementwise import is_elementwise
from .graph import OTHER_AXIS, Call, ChannelGraph, Mixer, Shape, Size, Tensor
from .products import channel_axis, convolution, dense, einsum, made_by, transposed
from .units import attention, recurrent
from .wrappers import bidirectional, time_distributed

Rule = Callable[[ChannelGraph, Any, list[Tensor], Shape], Tensor | str]


def _depthwise(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    kernel = getattr(layer, "depthwise_kernel", None)
    kernel = layer.kernel if kernel is None else kernel
    axis, multiplier = channel_axis(layer), int(kernel.shape[-1])
    incoming = graph.read(inputs[0], axis, int(kernel.shape[-2]))
    if incoming is None:
        return OTHER_AXIS
    graph.slot(layer, kernel, -2, incoming, "along")
    graph.slot(layer, layer.bias if layer.use_bias else None, -1, np.repeat(incoming, multiplier), "along")
    made = made_by(graph, layer, axis, np.repeat(incoming, multiplier), shape)
    graph.order.append(Call("depthwise", layer, inputs, made))
    return made


def _separable(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
    axis, multiplier = channel_axis(layer), int(depthwise.shape[-1])
    incoming = graph.read(inputs[0], axis, int(depthwise.shape[-2]))
    if incoming is None:
        return OTHER_AXIS
    made = made_by(graph, layer, axis, graph.new(int(pointwise.shape[-1])), shape)
    outgoing = made.atoms if made.atoms is not None else np.zeros(int(pointwise.shape[-1]), int)
    bias = layer.bias if layer.use_bias else None

    def weights(read: Callable[[Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        points = read(pointwise).reshape(len(incoming), multiplier, -1)
        windows = read(depthwise)
        flat = tuple(range(windows.ndim - 2))
        used = ((windows != 0).any(axis=flat)[..., None] & (points != 0)).any(axis=1)
        return used, (windows.sum(axis=flat)[..., None] * points).sum(axis=1)

    graph.slot(layer, depthwise, -2, incoming, "in")
    graph.slot(layer, pointwise, -2, np.repeat(incoming, multiplier), "in")
    graph.slot(layer, pointwise, -1, outgoing, "out")
    graph.slot(layer, bias, -1, outgoing, "along")
    graph.sizes.append(Size(layer, "filters", outgoing))
    border = math.prod(int(size) for size in depthwise.shape[:-2]) > 1 and layer.padding != "valid"
    graph.order.append(Mixer(layer, inputs[0], made, incoming, outgoing, weights, bias=bias, border=border))
    return made


def _embedding(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    table = layer.embeddings
    made = made_by(graph, layer, -1, graph.new(int(table.shape[1])), shape)
    outgoing = made.atoms if made.atoms is not None else np.zeros(int(table.shape[1]), int)
    graph.keep_whole(inputs[0])
    graph.slot(layer, table, 1, outgoing, "out")
    graph.sizes.append(Size(layer, "output_dim", outgoing))
    graph.order.append(Call("embedding", layer, [], made))
    return made


def _normalization(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    if len(axes) != 1:
        return "it normalizes several axes"
    atoms = graph.read(inputs[0], axes[0], int(layer.moving_mean.shape[0]))
    if atoms is None:
        return OTHER_AXIS
    for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        graph.slot(layer, variable, 0, atoms, "along")
    made = Tensor(shape, axes[0] % len(shape) if shape else -1, atoms if shape else None)
    graph.order.append(Call("normalization", layer, inputs, made))
    return made


def _same(kind: str) -> Rule:
    """Return the rule for layers that treat every channel alike."""

    def rule(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
        [given] = inputs
        if given.atoms is None or shape is None or given.shape is None:
            return Tensor(shape)
        axis = given.axis if len(shape) == len(given.shape) else len(shape) - 1  # the latter of global pooling
        if shape[axis] != given.shape[given.axis]:
            return "it changes the number of channels"
        made = Tensor(shape, axis, given.atoms)
        graph.order.append(Call(kind, layer, inputs, made))
        return made

    return rule


def _spatial(kind: str) -> Rule:
    """Return the rule for layers that work along the positions of each channel: pooling, padding and resizing."""

    def rule(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
        [given] = inputs
        known = given.atoms is not None and given.shape is not None
        if known and channel_axis(layer) % len(given.shape or ()) != given.axis:
            return OTHER_AXIS
        return _same(kind)(graph, layer, inputs, shape)

    return rule


def _activation(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    if not is_elementwise(getattr(layer, "activation", None)):
        return "its activation mixes channels"
    return _same("elementwise")(graph, layer, inputs, shape)


def _prelu(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    [given] = inputs
    if given.shape is None or given.axis != len(given.shape) - 1:
        return "its channels are not along its last axis"
    if given.atoms is not None:
        if int(layer.alpha.shape[-1]) != len(given.atoms):
            return "its parameters are shared by the channels"
        graph.slot(layer, layer.alpha, -1, given.atoms, "along")
    return _same("prelu")(graph, layer, inputs, shape)


def _merge(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    if shape is None or any(t.shape is None or len(t.shape) != len(shape) for t in inputs):
        return "it broadcasts shapes of different ranks"
    known = [t for t in inputs if t.atoms is not None]
    if not known:
        return Tensor(shape)
    first = known[0]
    if first.atoms is None or any(t.axis != first.axis for t in known):
        return "its inputs have their channels along different axes"
    size = len(first.atoms)
    if any(t.shape is None or t.shape[first.axis] != size for t in inputs):
        return "it broadcasts along the channels"
    for tensor in inputs:
        graph.tie(first.atoms, tensor.atoms if tensor.atoms is not None else np.zeros(size, int))
    made = Tensor(shape, first.axis, first.atoms)
    graph.order.append(Call("merge", layer, inputs, made))
    return made


def _concatenate(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    if shape is None or any(t.shape is None for t in inputs):
        return "the shapes of its inputs or output are not known"
    axis = layer.axis % len(shape)
    known = [t for t in inputs if t.atoms is not None]
    if not known:
        return Tensor(shape)
    if any(t.axis != axis for t in known) or any(t.shape is None or t.shape[axis] is None for t in inputs):
        return "its inputs have their channels along different axes"
    atoms = [t.atoms if t.atoms is not None else np.zeros(int((t.shape or ())[axis] or 0), int) for t in inputs]
    made = Tensor(shape, axis, np.concatenate(atoms))
    graph.order.append(Call("concatenate", layer, inputs, made))
    return made


def _reshape(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    [given] = inputs
    if given.atoms is None:
        return Tensor(shape)
    if shape is None or given.shape is None or None in (*given.shape[1:], *shape[1:]):
        return "its shape is not fixed"
    if given.axis != len(given.shape) - 1 or getattr(layer, "data_format", "channels_last") == "channels_first":
        return "its channels are not along the last axis of its input"
    size = len(given.atoms)
    if not shape[-1] or shape[-1] % size:
        return "it splits channels"
    made = Tensor(shape, len(shape) - 1, np.tile(given.atoms, shape[-1] // size))
    if hasattr(layer, "target_shape"):
        graph.sizes.append(Size(layer, "target_shape", made.atoms, axis=-1, own=False))  # type: ignore[arg-type]
    graph.order.append(Call("tile", layer, inputs, made))
    return made


RULES: dict[str, Rule] = {
    "Dense": dense,
    "EinsumDense": einsum,
    **{f"Conv{n}D": convolution for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": transposed for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _depthwise for n in (1, 2)},
    **{f"SeparableConv{n}D": _separable for n in (1, 2)},
    "Embedding": _embedding,
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU"), recurrent),
    **dict.fromkeys(("MultiHeadAttention", "GroupedQueryAttention"), attention),
    "BatchNormalization": _normalization,
    "Activation": _activation,
    "PReLU": _prelu,
    **dict.fromkeys(("ReLU", "LeakyReLU", "ELU"), _same("elementwise")),
    # Operations on the symbolic tensors of a Keras 3 model.
    **dict.fromkeys(("Relu", "Relu6", "Silu", "Sigmoid", "Tanh", "HardSilu", "Gelu", "Absolute"), _same("elementwise")),
    **dict.fromkeys(("Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Identity"), _same("identity")),
    **{f"SpatialDropout{n}D": _same("identity") for n in (1, 2, 3)},
    "ActivityRegularization": _same("identity"),
    **{f"{kind}Pooling{n}D": _spatial("constant") for kind in ("Max", "Average") for n in (1, 2, 3)},
    **{f"Global{kind}Pooling{n}D": _spatial("constant") for kind in ("Max", "Average") for n in (1, 2, 3)},
    **{f"ZeroPadding{n}D": _spatial("padding") for n in (1, 2, 3)},
    **{f"{kind}{n}D": _spatial("constant") for kind in ("Cropping", "UpSampling") for n in (1, 2, 3)},
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), _merge),
    "Concatenate": _concatenate,
    **dict.fromkeys(("Flatten", "Reshape"), _reshape),
}
# What it runs at each step has a rule of its own, and no state.
RULES["TimeDistributed"] = time_distributed({kind: rule for kind, rule in RULES.items() if kind != "Embedding"})
RULES["Bidirectional"] = bidirectional
# Of an operation on a tensor and a number: x + 3.
WITH_A_NUMBER = _same("varying")

__all__ = ["RULES", "WITH_A_NUMBER"]
