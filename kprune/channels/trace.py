"""Find a model's channels by following every call of every layer in its config, nested models included.

Nothing is run and the model is not touched. A subclassed model's `call` runs once on symbolic tensors instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from ..masks.masked_layers import plain_type
from .functional import functional
from .graph import ChannelGraph, Shape, Size, Tensor
from .rules import RULES, WITH_A_NUMBER

Key = tuple[str, int, int]  # name of a layer, number of its call, number of the output
# Operations that a Keras 3 model can hold beside layers; others share their names with layers that do something else.
_OPERATIONS = frozenset(
    {"Absolute", "Gelu", "HardSilu", "Relu", "Relu6", "Sigmoid", "Silu", "Tanh"}
    | {"Add", "Subtract", "Multiply", "Maximum", "Minimum"}
)


def channel_graph(model: Any) -> ChannelGraph:
    """Return the channels of a Keras 3 or tf_keras model, masked or not, including those of nested models.

    Raises:
        ValueError: the model is not built, or its graph is unknown: it is a subclassed model of tf_keras, or one that
            `functional` cannot follow, or it holds a subclassed model.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> [(slot.variable.path.split("/", 1)[1], slot.axis, slot.role) for slot in channel_graph(model).slots][1:3]
    [('dense/kernel', 1, 'out'), ('dense/bias', 0, 'along')]
    """
    model = functional(model)
    _check_known(model)
    graph = ChannelGraph(config=model.get_config())
    shapes = keras.tree.flatten([_as_shape(tensor) for tensor in model.inputs])
    inputs = [Tensor(shape.shape) for shape in shapes]
    for made in _run(graph, model, graph.config, inputs):
        graph.keep_whole(made)
    return graph


class _Shape:
    """A shape that `keras.tree` treats as a single leaf."""

    def __init__(self, shape: Any):
        self.shape = tuple(shape)


def _as_shape(tensor: Any) -> _Shape:
    return _Shape(tensor.shape)


def _run(graph: ChannelGraph, model: Any, config: dict[str, Any], inputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs of a model for these inputs, and record in the graph what its layers do."""
    if hasattr(model, "add"):
        return _run_sequential(graph, model, config, inputs)
    nodes = {entry["name"]: entry for entry in config["layers"]}
    operations = _operations(model)
    tensors: dict[Key, Tensor] = {}
    for key, tensor in zip(_references(config["input_layers"], nodes), inputs, strict=True):
        tensors[key] = tensor
        _configured(graph, operations[key[0]], nodes[key[0]])
        _resized(graph, operations[key[0]], tensor)
    waiting = [(name, number, call) for name in nodes for number, call in enumerate(nodes[name]["inbound_nodes"])]
    first = _first_calls(config, nodes)
    while waiting:
        later = []
        for name, number, call in waiting:
            keys = list(_references(call, nodes))
            if any(key not in tensors for key in keys):
                later.append((name, number, call))
                continue
            made = _call(
                graph, operations[name], nodes[name], [tensors[key] for key in keys], list(_others(call, keys))
            )
            for position, tensor in enumerate(made):
                tensors[name, first.get(name, 0) + number, position] = tensor
        if len(later) == len(waiting):
            raise ValueError(
                f"The model's layers form a cycle: rebuild the model without the cycle. Received: model={model.name!r}"
            )
        waiting = later
    return [tensors[key] for key in _references(config["output_layers"], nodes)]


def _run_sequential(graph: ChannelGraph, model: Any, config: dict[str, Any], inputs: list[Tensor]) -> list[Tensor]:
    operations = {layer.name: layer for layer in model.layers}
    for entry in config["layers"]:
        name = entry["config"]["name"]
        if name in operations:
            inputs = _call(graph, operations[name], entry, inputs, [])
            if len(inputs) != 1:
                raise ValueError(f"Layers of a Sequential model must have exactly one output. Received: layer={name!r}")
        elif entry["class_name"] == "InputLayer":
            stand_in = graph.configs.setdefault(id(entry), entry)
            _resized(graph, _Stand(stand_in), inputs[0])
    return inputs


class _Stand:
    """A stand-in for the input layer of a Sequential model, which the model itself does not list."""

    def __init__(self, entry: dict[str, Any]):
        self.entry = entry


def _call(
    graph: ChannelGraph, layer: Any, entry: dict[str, Any], inputs: list[Tensor], others: list[Any]
) -> list[Tensor]:
    """Return the outputs of one call of a layer or nested model."""
    if type(layer).__name__ == "PruneLowMagnitude":  # tfmot's wrapper
        layer = layer.layer
    _configured(graph, layer, entry)
    _resized(graph, layer, inputs[0] if inputs else Tensor())
    if hasattr(layer, "layers") and not hasattr(layer, "layer"):
        _check_known(layer)
        return _run(graph, layer, entry["config"], inputs)
    shapes = _output_shapes(layer, inputs)
    reason = _unknown(layer, inputs, others)
    if not reason:
        rule = WITH_A_NUMBER if others else RULES[plain_type(layer).__name__]
        made = rule(graph, layer, inputs, shapes[0])
        if isinstance(made, Tensor):
            return [made]
        reason = made
    graph.barriers[layer.name] = reason
    for tensor in inputs:
        graph.keep_whole(tensor)
    return [Tensor(shape) for shape in shapes]


def _unknown(layer: Any, inputs: list[Tensor], others: list[Any]) -> str:
    """Return the reason why no rule applies to this call, or "" if a rule does."""
    kind, home = plain_type(layer).__name__, plain_type(layer).__module__.split(".")
    is_layer = hasattr(layer, "weights")
    if home[0] not in ("keras", "tf_keras") or kind not in RULES or not (is_layer or kind in _OPERATIONS):
        return f"there is no pruning rule for {kind}"
    if is_layer and kind in _OPERATIONS and "ops" in home:
        return f"there is no pruning rule for {kind}"
    numbers = kind in ("Add", "Subtract", "Multiply") and len(inputs) == 1 and not is_layer
    if not inputs or (others and not (numbers and all(type(other) in (int, float) for other in others))):
        return "it is called with arguments that are not tensors"
    if getattr(layer, "quantization_mode", None) is not None or getattr(layer, "lora_enabled", False):
        return "it is quantized or has LoRA weights"
    return ""


def _output_shapes(layer: Any, inputs: list[Tensor]) -> list[Shape]:
    """Return the shapes of a layer's outputs, with None for unknown shapes."""
    given = [tensor.shape for tensor in inputs]
    if hasattr(layer, "weights") and given and None not in given:
        try:
            return _as_shapes(layer.compute_output_shape(given[0] if len(given) == 1 else given))
        except Exception:  # a layer of the user's own, or one that takes its inputs by name: ask what it made
            return _made_shapes(layer)
    return _made_shapes(layer) if not (given and given[0] is not None) else _broadcast(layer, given)


def _broadcast(layer: Any, given: list[Shape]) -> list[Shape]:
    """Compute the output shape of a Keras 3 elementwise operation by broadcasting the shapes of its inputs."""
    if type(layer).__name__ not in _OPERATIONS or any(g is None or len(g) != len(given[0] or ()) for g in given):
        return _made_shapes(layer)
    columns = zip(*(g for g in given if g is not None), strict=True)
    return [tuple(None if None in column else max(size for size in column if size) for column in columns)]


def _made_shapes(layer: Any) -> list[Shape]:
    try:
        made = layer.output
    except (AttributeError, RuntimeError, ValueError):  # called more than once, or never
        return [None]
    return [tuple(tensor.shape) for tensor in keras.tree.flatten(made)]


def _as_shapes(made: Any) -> list[Shape]:
    if hasattr(made, "as_list"):
        return [tuple(made.as_list())]
    if all(size is None or isinstance(size, int) for size in made):
        return [tuple(made)]
    return [shape for part in (made.values() if isinstance(made, dict) else made) for shape in _as_shapes(part)]


def _configured(graph: ChannelGraph, layer: Any, entry: dict[str, Any]) -> None:
    """Record where the layer's config is, and drop the shapes that Keras saved in it when the layer was built."""
    known = graph.configs.setdefault(id(layer), entry)
    if known is not entry:
        raise ValueError(
            "Two models nested in this model share a layer, which a Keras config cannot express: give each of them "
            f"its own layer. Received: layer={layer.name!r}"
        )
    entry.pop("build_config", None)
    if isinstance(entry.get("config"), dict):
        entry["config"].pop("build_input_shape", None)


def _resized(graph: ChannelGraph, layer: Any, given: Tensor) -> None:
    """Record that the layer's config contains the shape of its input."""
    entry = layer.entry if isinstance(layer, _Stand) else graph.configs[id(layer)]
    for key in ("batch_shape", "batch_input_shape"):
        if given.atoms is not None and entry["config"].get(key) is not None:
            graph.configs[id(layer)] = entry
            graph.sizes.append(Size(layer, key, given.atoms, given.axis, own=False))


def _operations(model: Any) -> dict[str, Any]:
    return {operation.name: operation for operation in getattr(model, "operations", model.layers)}


def _references(structure: Any, nodes: dict[str, Any]) -> Iterator[Key]:
    """Yield the tensors that part of a config refers to, as (name, call, output), however deeply nested."""
    if isinstance(structure, dict):
        for value in structure.values():
            yield from _references(value, nodes)
    elif isinstance(structure, list | tuple):
        if _is_reference(structure, nodes):
            yield structure[0], structure[1], structure[2]
            structure = structure[3:]
        for value in structure:
            yield from _references(value, nodes)


def _is_reference(structure: Any, nodes: dict[str, Any]) -> bool:
    return (
        len(structure) >= 3
        and isinstance(structure[0], str)
        and structure[0] in nodes
        and all(type(number) is int for number in structure[1:3])
    )


def _first_calls(config: dict[str, Any], nodes: dict[str, Any]) -> dict[str, int]:
    """Map each layer's name to its first call's number, which is 1, not 0, for models called on their own inputs."""
    first: dict[str, int] = {}
    parts = [config["output_layers"], *(entry["inbound_nodes"] for entry in nodes.values())]
    for name, number, _ in _references(parts, nodes):
        first[name] = min(number, first.get(name, number))
    return first


def _others(structure: Any, keys: list[Key]) -> Iterator[Any]:
    """Yield a call's non-tensor arguments (numbers, names, arrays), leaving out None and False."""
    if isinstance(structure, dict):
        if structure.get("class_name") != "__keras_tensor__":
            for name, value in structure.items():
                if name not in ("mask", "training", "use_causal_mask"):
                    yield from _others(value, keys)
    elif isinstance(structure, list | tuple):
        if len(structure) == 4 and isinstance(structure[0], str) and tuple(structure[:3]) in keys:
            structure = structure[3:]
        for value in structure:
            yield from _others(value, keys)
    elif structure is not None and structure is not False:
        yield structure


def _check_known(model: Any) -> None:
    """Raise ValueError if the model's graph is unknown."""
    config = model.get_config() if hasattr(model, "get_config") else {}
    sequential = hasattr(model, "add") and hasattr(model, "layers")
    if not getattr(model, "built", False) or (sequential and not getattr(model, "inputs", None)):
        raise ValueError(
            "The model is not built yet: build it with keras.Input or `model.build(input_shape)`. Received: "
            f"model={getattr(model, 'name', model)!r}"
        )
    if not sequential and not {"layers", "input_layers", "output_layers"} <= set(config):
        raise ValueError(
            "The channels of a subclassed tf_keras model, or of a subclassed model inside another, cannot be traced. "
            f"Build it with keras.Sequential or keras.Model(inputs, outputs). Received: model={model.name!r}, "
            f"class={type(model).__name__}"
        )
