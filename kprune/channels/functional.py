"""The graph of a subclassed model, found by running its `call` on symbolic inputs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import keras

_PLAIN = (bool, int, float, str)  # attributes by which `call` may choose
_NAME = "_kprune_followed"


def functional(model: Any) -> Any:
    """Return a Functional model with the layers of a subclassed Keras 3 model, or any other model as it is.

    `call` runs once on symbolic tensors, with `training=None` if it takes that. A choice that it makes in Python, from
    a number or a flag, is made once; what it computes outside of layers must be operations of `keras.ops`.

    Args:
        model: a built model of either Keras.

    Raises:
        ValueError: the model's `call` cannot be followed so; the message says why.

    >>> class Net(keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.one, self.two = keras.layers.Dense(3), keras.layers.Dense(2)
    ...     def call(self, x):
    ...         return self.two(keras.ops.relu(self.one(x)))
    >>> net = Net()
    >>> net.build((None, 4))
    >>> [operation.name for operation in functional(net).operations][-3:]
    ['dense', 'relu', 'dense_1']
    """
    if not isinstance(model, keras.Model) or not model.built or hasattr(model, "inputs"):
        return model
    key = [id(layer) for layer in model.layers], {k: v for k, v in vars(model).items() if isinstance(v, _PLAIN)}
    known = vars(model).get(_NAME)
    if known is None or known.key != key:
        # Not through Keras's `__setattr__`, which would make the layers of it the model's own once more.
        known = vars(model)[_NAME] = _Followed(key, _traced(model))
    return known.made


class _Followed:
    """The Functional model traced from a subclassed model, stored with that model but not saved with it."""

    def __init__(self, key: Any, made: Any):
        self.key, self.made = key, made


def _traced(model: Any) -> Any:
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise _refused(model, "`call` takes several arguments, or the model was built without an input shape")
    made = _called(model, shapes, set())
    # What an embedding looks up must not be rounded to the dtype that the model computes in.
    if looked_up := _looked_up(made):
        made = _called(model, shapes, looked_up)
    known = {id(v) for v in made.variables}
    if unknown := [v.path for v in model.weights if id(v) not in known]:
        raise _refused(model, f"`call` does not use {unknown[0]}, or uses it without calling the layer that owns it")
    return made


def _called(model: Any, shapes: Any, integers: set[str]) -> Any:
    """Return the Functional model that `call` makes from inputs of these shapes; inputs in `integers` are int32."""
    numbers = itertools.count()

    def made_input(shape: Any, name: str | None = None) -> Any:
        name = name or f"input_{next(numbers)}"
        return keras.Input(shape[1:], name=name, dtype="int32" if name in integers else model.compute_dtype)

    trains = {"training": None} if "training" in inspect.signature(model.call).parameters else {}
    try:
        if isinstance(shapes, dict):  # Keras asks for inputs that are named as the keys
            given = {name: made_input(shape, name) for name, shape in shapes.items()}
        else:
            given = keras.tree.map_shape_structure(made_input, shapes)
        made = keras.Model(given, model.call(given, **trains), name=model.name)
        config = made.get_config()
    except Exception as error:  # whatever the user's `call` raises on symbolic tensors
        raise _refused(model, f"`call` raises {type(error).__name__}: {str(error)[:300]}") from error
    for layer in config["layers"]:
        entries = list(_entries(layer["inbound_nodes"]))
        # A variable that an operation uses becomes a tensor in the config, which would not train.
        if ("class_name", "__tensor__") in entries:
            raise _refused(model, f"the operation {layer['name']!r} uses a tensor or variable that is not an input")
        if any(key == "training" and value is not None for key, value in entries):
            reason = f"the layer {layer['name']!r} is called with a fixed `training`, which Functional models override"
            raise _refused(model, reason)
    return made


def _looked_up(made: Any) -> set[str]:
    """Return the names of the inputs that an embedding reads."""
    layers = [layer for layer in made.get_config()["layers"] if layer["class_name"] == "Embedding"]
    entries = [entry for layer in layers for entry in _entries(layer["inbound_nodes"])]
    return {value[0] for key, value in entries if key == "keras_history"} & {tensor.name for tensor in made.inputs}


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys of a nested config with their values."""
    if isinstance(config, dict):
        yield from config.items()
        config = list(config.values())
    if isinstance(config, list | tuple):
        for one in config:
            yield from _entries(one)


def _refused(model: Any, reason: str) -> ValueError:
    return ValueError(
        f"The channels of this subclassed model cannot be traced: {reason}. Build the model with "
        f"keras.Sequential or keras.Model(inputs, outputs). Received: model={model.name!r}, "
        f"class={type(model).__name__}"
    )


__all__ = ["functional"]
