"""Build a smaller model with the same outputs, without the channels that masks or zeros have removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from absl import logging

from ..channels import ChannelGraph, channel_graph, functional
from ..channels.graph import reader
from ..masks import KNOWN_WEIGHTS, library_of, mask, masked_weights, plain, set_masks
from ..runtime.distribution import to_numpy
from ..runtime.inputs import call_with, check_inputs, input_like
from ..util.checks import check_flag, check_integer, check_number
from .dead import Plan, Read, plan

LIBRARIES = ("keras", "tf_keras")


def shrink(
    model: Any, *, inputs: Any = None, divisible_by: int = 1, keep_masks: bool = True, tolerance: float = 1e-5
) -> Any:
    """Build a smaller model that makes the same predictions without the channels whose weights are all zero.

    A channel goes, with its bias, its normalization and all that reads it, where

    - nothing that lives reads it: all its outgoing weights are zero;
    - or it is constant, as all its incoming weights are zero (or gamma is): at 0 it just goes; any other constant is
      added to the bias of the layer that reads it. Where that layer pads with zeros the sum would be wrong at the
      borders, so one such channel stays, and the others are merged into it.

    It does not matter what made the zeros: channel masks, unstructured ones, or none. Channels that an addition,
    multiplication or concatenation ties go together or stay. What no rule describes (layer and group normalization,
    softmax over the channels, layers of your own) is kept whole, with the channels that it reads and makes.

    Args:
        model: a built Sequential or Functional model of either Keras, with other such models inside it or not, or a
            subclassed Keras 3 model whose `call` works on symbolic tensors; masked or not. It stays as it is.
        inputs: inputs to compare the outputs on, as the model takes them; by default four random examples.
        divisible_by: each layer keeps a multiple of this many channels, or all of them; hardware may run those faster.
        keep_masks: the new model has masks where the old one has, so that what stays zero stays zero in training;
            False returns a plain model.
        tolerance: largest difference of the outputs, relative to the largest output, that is let pass.

    Returns:
        A model of the same library, with the same names of layers; not compiled. Where nothing is dead, it is a copy.
            For a subclassed model it is a Functional one.

    Raises:
        ValueError: an argument is wrong, the model is not built, its graph is not known, or it holds a layer that
            cannot be made from its config; or the shape of its inputs is not fixed and no `inputs` are given.
        RuntimeError: the smaller model predicts something else.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> _ = kprune.prune(model, "magnitude", {"dense/": 0.5}, pattern="channel")
    >>> kprune.shrink(model).layers[0].units
    4
    """
    masked = masked_weights(model)  # raises for what is no model
    check_integer("divisible_by", divisible_by, 1)
    check_flag("keep_masks", keep_masks)
    check_number("tolerance", tolerance, ">= 0", lambda value: value >= 0)
    if inputs is not None:
        check_inputs(inputs)
    arguments = {"": inputs} if inputs is not None else input_like(model, _random(model), batch=4)
    expected = _outputs(model, arguments)
    masks = {id(weight.variable): weight.kept() for weight in masked}
    with plain(model) as stripped:
        stripped = functional(stripped)
        graph = channel_graph(stripped)
        read = reader(masks)
        planned = plan(graph, read, divisible_by)
        made = _rebuilt(stripped, graph, planned)
        places = _places(stripped, made, planned)
    if keep_masks and masks:
        made = _masked(made, masks, places, planned, read)
    _fill(made, places, planned, read)
    _compare(expected, _outputs(made, arguments), tolerance)
    return made


def _rebuilt(model: Any, graph: ChannelGraph, planned: Plan) -> Any:
    """Rebuild the model from its config with the remaining numbers of channels."""
    for size in graph.sizes:
        config = graph.configs[id(size.layer)]["config"]
        count = int(planned.stays(size.atoms).sum())
        if size.axis is None:
            config[size.key] = count
        else:
            shape = list(config[size.key])
            shape[size.axis] = count
            config[size.key] = tuple(shape)
    for layer in planned.new_biases:
        graph.configs[layer]["config"]["use_bias"] = True
    library = library_of(model).package
    own = {
        cls.__name__: cls for layer in _layers(model) if (cls := type(layer)).__module__.split(".")[0] not in LIBRARIES
    }
    try:
        with library.utils.custom_object_scope(own):
            made = _class(model).from_config(graph.config)
        if not made.built:
            made.build(model.input_shape)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            "The smaller model cannot be built from this model's config: custom layers need `get_config`, and a "
            "Lambda layer with an anonymous function cannot be copied. "
            f"Cause: {str(error)[:500].rstrip('.')}. Received: model={model.name!r}"
        ) from error
    return made


def _class(model: Any) -> Any:
    """Return the Keras class, Sequential or Model, that can read this model's config."""
    library = library_of(model).package
    return library.Sequential if hasattr(model, "add") else library.Model


def _places(old: Any, new: Any, planned: Plan) -> list[tuple[Any, Any]]:
    """Pair each weight of the old model with its counterpart in the new one, and fill in biases that were added."""
    places: list[tuple[Any, Any]] = []
    for source, target in _pairs(old, new):
        given, wanted = list(source.weights), list(target.weights)
        if id(source) in planned.new_biases:
            wanted = [v for v in wanted if v is not target.bias]
            columns = next(m.outgoing for m in planned.graph.mixers if m.layer is source)
            target.bias.assign(_as(planned.new_biases[id(source)][planned.stays(columns)], target.bias))
        if len(given) != len(wanted):
            raise ValueError(
                "Rebuilding the layer from its config gives a different number of weights: its `get_config` must "
                f"return all constructor arguments. Received: layer={source.name!r}, weights={len(given)}, "
                f"rebuilt={len(wanted)}"
            )
        places += zip(given, wanted, strict=True)
    return places


def _fill(made: Any, places: list[tuple[Any, Any]], planned: Plan, read: Read) -> None:
    """Assign the new model's weights."""
    for v, w in places:
        w.assign(_as(planned.new_value(v, read), w))
    for layer in _layers(made):
        if hasattr(layer, "finalize_state"):  # a preprocessing layer computes with what it makes of its weights
            layer.finalize_state()


def _as(value: np.ndarray, variable: Any) -> np.ndarray:
    return value.astype(keras.backend.standardize_dtype(variable.dtype))


def _masked(made: Any, masks: dict[int, np.ndarray], places: list[tuple[Any, Any]], planned: Plan, read: Read) -> Any:
    """Return the new model with the old model's masks for the remaining weights."""
    # A weight that takes over constants is not zero where its mask said so.
    kept = {
        id(w): planned.cut(v, masks[id(v)]) | (planned.new_value(v, read) != 0) for v, w in places if id(v) in masks
    }
    paths = [_path(w) for _, w in places if id(w) in kept]
    names = {*KNOWN_WEIGHTS, *(path.rpartition("/")[2] for path in paths)}
    made = mask(made, [f"^{re.escape(path)}$" for path in paths], sorted(names)).model
    found = {weight.path: weight for weight in masked_weights(made) if id(weight.variable) in kept}
    if len(found) < len(masks):
        logging.warning(
            "kprune.shrink: %d of %d masks were dropped because their weights are frozen. The weights keep their "
            "zeros.",
            len(masks) - len(found),
            len(masks),
        )
    set_masks(made, {path: kept[id(weight.variable)] for path, weight in found.items()})
    return made


def _path(variable: Any) -> str:
    return variable.path if hasattr(variable, "path") else str(variable.name).partition(":")[0]


def _random(model: Any) -> Callable[[tuple[int, ...], str], np.ndarray]:
    """Return a function that draws normal inputs, or zeros and ones for integer inputs and models with embeddings."""
    rng = np.random.default_rng(0)
    looked_up = any(type(layer).__name__ == "Embedding" for layer in _layers(model))

    def make(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if "float" in dtype and not looked_up:
            return rng.normal(size=shape).astype("float32")
        return rng.integers(0, 2, shape).astype(dtype)

    return make


def _outputs(model: Any, arguments: dict[str, Any]) -> list[np.ndarray]:
    outputs = keras.tree.flatten(call_with(model, arguments, training=False))
    return [to_numpy(output).astype(np.float64) for output in outputs]


def _compare(expected: list[np.ndarray], actual: list[np.ndarray], tolerance: float) -> None:
    """Raise RuntimeError if any output differs by more than the tolerance, relative to its largest value."""
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        scale = float(np.abs(one).max(initial=0.0)) or 1.0
        worst = float(np.abs(one - other).max(initial=0.0)) / scale
        if not worst <= tolerance:
            raise RuntimeError(
                f"The smaller model and the original produce different outputs (output {number}), so no model was "
                f"returned. Found: relative difference={worst:.3g}, tolerance={tolerance}"
            )


def _pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each layer that is not a model, with its rebuilt counterpart."""
    for source in old.layers:
        target = new.get_layer(source.name)
        if hasattr(source, "layers") and not hasattr(source, "layer"):
            yield from _pairs(source, target)
        else:
            yield source, target


def _layers(model: Any) -> Iterator[Any]:
    for source, _ in _pairs(model, model):
        yield source
