"""The graph of a subclassed model: what its `call` does with symbolic inputs."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import keras

_KNOWN: WeakKeyDictionary[Any, tuple[list[int], Any]] = WeakKeyDictionary()


def functional(model: Any) -> Any:
    """A Functional model of the same layers as a subclassed Keras 3 model; any other model as it is.

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
    layers = [id(layer) for layer in model.layers]
    if model not in _KNOWN or _KNOWN[model][0] != layers:
        _KNOWN[model] = layers, _traced(model)
    return _KNOWN[model][1]


def _traced(model: Any) -> Any:
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise _refused(model, "`call` takes several arguments, or the model was built without an input shape")
    if isinstance(shapes, dict):  # Keras asks for inputs that are named as the keys
        given = {name: keras.Input(shape[1:], name=name) for name, shape in shapes.items()}
    else:
        given = keras.tree.map_shape_structure(lambda shape: keras.Input(shape[1:]), shapes)
    trains = {"training": None} if "training" in inspect.signature(model.call).parameters else {}
    try:
        made = keras.Model(given, model.call(given, **trains), name=model.name)
        config = made.get_config()
    except Exception as error:  # whatever the user's `call` raises on symbolic tensors
        raise _refused(model, f"`call` raises {type(error).__name__}: {str(error)[:300]}") from error
    # A variable that an operation uses becomes a tensor in the config, which would not train.
    fixed = [layer["name"] for layer in config["layers"] if _holds_tensor(layer["inbound_nodes"])]
    if fixed:
        raise _refused(model, f"the operation {fixed[0]!r} uses a tensor or variable that is not an input")
    known = {id(v) for v in made.variables}
    if unknown := [v.path for v in model.weights if id(v) not in known]:
        raise _refused(model, f"`call` does not use {unknown[0]} through a layer")
    return made


def _holds_tensor(config: Any) -> bool:
    if isinstance(config, dict):
        return config.get("class_name") == "__tensor__" or any(map(_holds_tensor, config.values()))
    return isinstance(config, list | tuple) and any(map(_holds_tensor, config))


def _refused(model: Any, reason: str) -> ValueError:
    return ValueError(
        f"The channels of this subclassed model cannot be traced: {reason}. Build the model with "
        f"keras.Sequential or keras.Model(inputs, outputs). Received: model={model.name!r}, "
        f"class={type(model).__name__}"
    )


__all__ = ["functional"]
