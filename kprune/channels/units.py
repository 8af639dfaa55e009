"""Rules for layers with several weights per channel: RNN units and attention heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..masks import library_of
from .elementwise import is_elementwise
from .graph import OTHER_AXIS, ChannelGraph, Mixer, Shape, Size, Tensor


def recurrent(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    """Apply the rule for RNN units, each of which has a column in every gate and a row in the recurrent kernel.

    They are never constant, because their state evolves.
    """
    if layer.return_state or layer.stateful or len(inputs) != 1:
        return "its state is used outside the layer"
    cell = layer.cell
    if not is_elementwise(cell.activation) or not is_elementwise(getattr(cell, "recurrent_activation", None)):
        return "its activation mixes units"
    units = int(cell.units)
    gates = int(cell.kernel.shape[1]) // units
    incoming = graph.read(inputs[0], -1, int(cell.kernel.shape[0]))
    if incoming is None:
        return OTHER_AXIS
    if shape is None:
        return "its shape is not known"
    outgoing = graph.new(units)
    columns = np.tile(outgoing, gates)
    made = Tensor(shape, len(shape) - 1, outgoing)
    for weight, rows in ((cell.kernel, incoming), (cell.recurrent_kernel, outgoing)):
        graph.slot(layer, weight, 0, rows, "in")
        graph.slot(layer, weight, 1, columns, "out")

        def weights(read: Callable[[Any], np.ndarray], weight: Any = weight) -> tuple[np.ndarray, np.ndarray]:
            return read(weight) != 0, read(weight)

        given = inputs[0] if weight is cell.kernel else None
        graph.order.append(
            Mixer(layer, given, made, rows, columns, weights, foldable=False, constant=False, border=True)
        )
    graph.slot(layer, cell.bias if cell.use_bias else None, -1, columns, "along")
    graph.sizes.append(Size(layer, "units", outgoing))
    return made


def attention(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    """Apply the rule for attention heads, which are removed where the output projection ignores them.

    The layer's inputs and outputs stay whole. Where several heads of the query share one of the key and the value, they
    go with it or stay with it.
    """
    # By their names, as Keras (checked with 3.13.2 and 3.15.1) has no public attributes for all of them.
    parts = {part.name: part for part in library_of(layer).all_layers(layer)}
    if not {"query", "key", "value", "attention_output"} <= set(parts):
        return "its projections have other names in this version of Keras"
    output = parts["attention_output"]
    for tensor in inputs:
        graph.keep_whole(tensor)
    heads = graph.new(int(parts["key"].kernel.shape[1]))
    queries = np.repeat(heads, int(output.kernel.shape[0]) // len(heads))
    for name, atoms in {"query": queries, "gate": queries, "key": heads, "value": heads}.items():
        if name in parts:
            graph.slot(parts[name], parts[name].kernel, 1, atoms, "out")
            graph.slot(parts[name], parts[name].bias, 0, atoms, "along")
    graph.slot(output, output.kernel, 0, queries, "in")
    if hasattr(layer, "num_key_value_heads"):
        graph.sizes += [Size(layer, "num_query_heads", queries), Size(layer, "num_key_value_heads", heads)]
    else:
        graph.sizes.append(Size(layer, "num_heads", heads))

    def weights(read: Callable[[Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        value = read(output.kernel).reshape(len(queries), -1)
        return (value != 0).any(axis=1, keepdims=True), value.sum(axis=1, keepdims=True)

    made, outgoing = Tensor(shape), np.zeros(1, int)
    graph.order.append(
        Mixer(layer, None, made, queries, outgoing, weights, foldable=False, constant=False, border=True)
    )
    return made


__all__ = ["attention", "recurrent"]
