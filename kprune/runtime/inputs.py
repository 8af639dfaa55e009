"""Create inputs of the right shape for a Keras 3 or tf_keras model from the model's own description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def input_like(model: Any, make: Callable[[tuple[int, ...], str], Any], batch: int = 1) -> dict[str, Any]:
    """Return keyword arguments for calling a model, with `make(shape, dtype)` as the value of each input.

    Args:
        model: a built model; Functional, Sequential or subclassed.
        make: takes a full shape (the batch first) and a dtype name, returns the array or tensor.
        batch: the batch size.

    Raises:
        ValueError: a dimension besides the batch is not fixed, or the model does not know its inputs.
    """
    inputs = getattr(model, "inputs", None)
    if inputs:
        made = [make(_fixed(model, tuple(x.shape), batch), _dtype_name(x.dtype)) for x in inputs]
        # A Functional model knows the structure (a list, a dict) of its inputs, a Sequential one has a single input.
        structure = inputs[0] if hasattr(model, "add") else model.input
        return {"": keras.tree.pack_sequence_as(structure, made)}
    config = model.get_build_config() if hasattr(model, "get_build_config") else None
    if not config:
        raise ValueError(
            "The model's input shape is unknown: call the model once on data, or build it with "
            f"`model.build(input_shape)`. Received: model={model.name!r}"
        )
    shapes = config.get("shapes_dict") or {"": config["input_shape"]}

    def made_for(shape: Any) -> Any:
        return make(_fixed(model, tuple(shape), batch), keras.config.floatx())

    return {
        name.removesuffix("_shape"): keras.tree.map_shape_structure(made_for, shape) for name, shape in shapes.items()
    }


def check_inputs(inputs: Any) -> None:
    """Raise ValueError unless the user's `inputs` are arrays with one example per row, in any structure.

    >>> import numpy as np
    >>> check_inputs({"a": np.ones((4, 2)), "b": [np.ones(4)]})
    """
    shapes = [getattr(leaf, "shape", None) for leaf in keras.tree.flatten(inputs)]
    shapes = [None if shape is None else tuple(shape) for shape in shapes]
    if not shapes or not all(shapes):
        raise ValueError(
            f"`inputs` must be arrays with examples along the first axis. Received: inputs={inputs!r:.200}"
        )


def call_with(model: Any, arguments: dict[str, Any], **kwargs: Any) -> Any:
    """Call a model or layer with the result of `input_like`."""
    arguments = dict(arguments)
    positional = [arguments.pop("")] if "" in arguments else []
    return model(*positional, **arguments, **kwargs)


def _fixed(model: Any, shape: tuple[int | None, ...], batch: int) -> tuple[int, ...]:
    if any(d is None for d in shape[1:]):
        raise ValueError(
            "An input of the model has an unknown dimension: build the model with a fixed input shape. "
            f"Received: model={model.name!r}, input_shape={shape}"
        )
    return (batch, *(int(d) for d in shape[1:] if d is not None))


def _dtype_name(dtype: Any) -> str:
    return dtype if isinstance(dtype, str) else dtype.name
