"""Rules for layers that wrap another layer and run it at each time step, or forward and backward in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..masks.masked_layers import plain_type
from .graph import OTHER_AXIS, Call, ChannelGraph, Mixer, Shape, Tensor
from .units import recurrent

Rule = Callable[[ChannelGraph, Any, list[Tensor], Shape], Tensor | str]


def time_distributed(rules: dict[str, Rule]) -> Rule:
    """Return the rule for a layer that runs another layer, which has its own rule, at each time step."""

    def rule(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
        inner, [given] = layer.layer, inputs
        kind, home = plain_type(inner).__name__, plain_type(inner).__module__.split(".")[0]
        if kind not in rules or home not in ("keras", "tf_keras") or hasattr(inner, "cell"):
            return f"there is no pruning rule for {kind} at each time step"
        if shape is None or given.shape is None:
            return "its shape is not known"
        if given.atoms is not None and given.axis == 1:
            return OTHER_AXIS
        _configured(graph, inner, graph.configs[id(layer)]["config"]["layer"])
        step = Tensor((given.shape[0], *given.shape[2:]), given.axis - 1 if given.axis > 0 else -1, given.atoms)
        if given.atoms is not None:
            graph.order.append(Call("identity", layer, inputs, step))
        made = rules[kind](graph, inner, [step], (shape[0], *shape[2:]))
        if isinstance(made, str):
            return made
        # A bias that is made is looked for in the layer that the model lists, not in the one inside.
        graph.order[:] = [
            replace(entry, foldable=False)
            if isinstance(entry, Mixer) and entry.layer is inner and entry.bias is None
            else entry
            for entry in graph.order
        ]
        if made.atoms is None:
            return Tensor(shape)
        whole = Tensor(shape, made.axis + 1, made.atoms)
        graph.order.append(Call("identity", layer, [made], whole))
        return whole

    return rule


def bidirectional(graph: ChannelGraph, layer: Any, inputs: list[Tensor], shape: Shape) -> Tensor | str:
    """Tie each unit of the forward layer to the same unit of the backward layer, since both may share a config."""
    forward, backward = layer.forward_layer, layer.backward_layer
    if plain_type(forward) is not plain_type(backward) or not hasattr(forward, "cell"):
        return "its two layers are of different kinds"
    if layer.merge_mode is None or shape is None or forward.cell.units != backward.cell.units:
        return "the outputs of its two layers are not merged"
    if plain_type(forward).__name__ not in ("SimpleRNN", "LSTM", "GRU"):
        return f"there is no pruning rule for {plain_type(forward).__name__} in two directions"
    entry = graph.configs[id(layer)]["config"]
    parts: list[Tensor] = []
    for inner, key in ((forward, "layer"), (backward, "backward_layer")):
        _configured(graph, inner, entry[key] if entry.get(key) else entry["layer"])
        made = recurrent(graph, inner, inputs, (*shape[:-1], int(inner.cell.units)))
        if isinstance(made, str):
            for part in parts:
                graph.keep_whole(part)
            return made
        parts.append(made)
    atoms = [part.atoms for part in parts if part.atoms is not None]
    graph.tie(*atoms)
    together = layer.merge_mode == "concat"
    made = Tensor(shape, len(shape) - 1, np.concatenate(atoms) if together else atoms[0])
    graph.order.append(Call("concatenate" if together else "varying", layer, parts, made))
    return made


def _configured(graph: ChannelGraph, inner: Any, entry: dict[str, Any]) -> None:
    graph.configs[id(inner)] = entry
    entry.pop("build_config", None)
    entry["config"].pop("build_input_shape", None)


__all__ = ["bidirectional", "time_distributed"]
