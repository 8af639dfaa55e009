"""Rules for layers that mix channels by one kernel: dense layers, convolutions, and products over any axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..masks.layout import einsum_labels, label_axis
from .elementwise import is_elementwise
from .graph import OTHER_AXIS, ChannelGraph, Mixer, Shape, Size, Tensor


def channel_axis(layer: Any) -> int:
    """Return the axis that a layer treats as the channel axis."""
    return 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else -1


def made_by(graph: ChannelGraph, layer: Any, axis: int, atoms: np.ndarray, shape: Shape) -> Tensor:
    """Return the output of a layer; if the layer's activation mixes channels, all of them must stay."""
    if shape is None:
        graph.tie(atoms, np.zeros_like(atoms))
        return Tensor()
    made = Tensor(shape, axis % len(shape), atoms)
    if not is_elementwise(getattr(layer, "activation", None)):
        graph.keep_whole(made)
    return made


def dense(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    """Apply the rule for a matrix product along the last axis."""
    return _mix(graph, layer, inputs[0], shape, (-1, -1), (0, 1), ("units", None))


def convolution(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    """Apply the rule for a convolution that mixes all channels."""
    if layer.groups != 1:
        return "its convolution is grouped"
    return _mix(graph, layer, inputs[0], shape, (channel_axis(layer),) * 2, (-2, -1), ("filters", None))


def transposed(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    """Apply the rule for a transposed convolution, whose kernel has the output axis before the input axis."""
    return _mix(graph, layer, inputs[0], shape, (channel_axis(layer),) * 2, (-1, -2), ("filters", None))


def einsum(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    """Apply the rule for an EinsumDense layer that makes one new axis, like a dense layer over one or more axes."""
    [given] = inputs
    left, names, right = einsum_labels(layer)
    new = [name for name in right if name in names and name not in left]
    summed = [name for name in left if name in names and name not in right]
    kept = [name for name in left if name in right]
    once = all(len(set(side)) == len(side) for side in (names, left.replace("...", ""), right.replace("...", "")))
    if not (len(new) == 1 and summed and once and {*names} == {*new, *summed} and {*left} == {*kept, *summed}):
        return "its equation does not sum over some axes to make exactly one new axis"
    if shape is None or (given.atoms is not None and given.shape is None):
        return "its shape is not known"
    columns = names.index(new[0])
    if layer.bias is not None and tuple(layer.bias.shape) != (layer.kernel.shape[columns],):
        return "its bias has axes other than the one it makes"
    # An axis that is summed over beside that of the channels is one of positions.
    places = {label_axis(left, name) % len(given.shape or left): name for name in summed}
    if given.atoms is not None and given.axis not in places:
        return OTHER_AXIS
    axis = label_axis(right, new[0]) % len(shape)
    rows = names.index(places[given.axis] if given.atoms is not None else summed[-1])
    # The config holds the shape behind the batch, or one number.
    number = isinstance(graph.configs[id(layer)]["config"]["output_shape"], int)
    size = ("output_shape", None if number else axis - len(shape))
    # Which axes a bias has is in the config, so none is made for what is folded.
    return _mix(graph, layer, given, shape, (given.axis, axis), (rows, columns), size, foldable=layer.bias is not None)


def _mix(
    graph: ChannelGraph,
    layer: Any,
    given: Tensor,
    shape: Shape,
    axes: tuple[int, int],
    kernel_axes: tuple[int, int],
    size: tuple[str, int | None],
    foldable: bool = True,
) -> Tensor | str:
    """Apply the rule for a product with a single kernel.

    Args:
        graph, layer, given, shape: as a rule takes them.
        axes: the axes of the channels in the input and in the output.
        kernel_axes: those of the kernel for the inputs and for the outputs.
        size: `key` and `axis` of the layer's `Size`.
        foldable: as in `Mixer`.
    """
    kernel, bias = layer.kernel, getattr(layer, "bias", None)
    rows, columns = (axis % len(kernel.shape) for axis in kernel_axes)
    incoming = graph.read(given, axes[0], int(kernel.shape[rows]))
    if incoming is None:
        return OTHER_AXIS
    made = made_by(graph, layer, axes[1], graph.new(int(kernel.shape[columns])), shape)
    outgoing = made.atoms if made.atoms is not None else np.zeros(int(kernel.shape[columns]), int)
    positions = tuple(a for a in range(len(kernel.shape)) if a not in (rows, columns))

    def weights(read: Callable[[Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        value = np.moveaxis(read(kernel), (rows, columns), (-2, -1))
        flat = tuple(range(len(positions)))
        return (value != 0).any(axis=flat), value.sum(axis=flat)

    graph.slot(layer, kernel, rows, incoming, "in")
    graph.slot(layer, kernel, columns, outgoing, "out")
    graph.slot(layer, bias, -1, outgoing, "along")
    graph.sizes.append(Size(layer, size[0], outgoing, size[1]))
    spatial = math.prod(int(kernel.shape[a]) for a in positions)
    border = "Transpose" in type(layer).__name__ or (spatial > 1 and getattr(layer, "padding", "valid") != "valid")
    graph.order.append(
        Mixer(layer, given, made, incoming, outgoing, weights, kernel, rows, bias, foldable=foldable, border=border)
    )
    return made


__all__ = ["channel_axis", "convolution", "dense", "einsum", "made_by", "transposed"]
