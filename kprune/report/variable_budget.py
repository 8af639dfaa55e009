"""Limit new variables and symbolic tensors, because a config of a few bytes can ask for any number of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# A layer makes a handful of symbolic tensors; an operation that splits makes as many as its config says.
_MOST_TENSORS = 2**17
_MOST_PIECES, _MOST_STEPS = 2**16, 2**12
# The arguments by which TensorFlow's operations are told into how many.
_NUMBERS = ("num_or_size_splits", "num_partitions", "rep")


@contextmanager
def variables_within(limit: int, library: Any) -> Iterator[None]:
    """Provide a context in which creating over `limit` bytes of variables raises ValueError before allocation.

    So does, in Keras 3, creating more than 131,072 symbolic tensors; in tf_keras, splitting one into more than 65,536,
    or unrolling more than 4,096 time steps.

    Args:
        limit: in bytes.
        library: `keras` or `tf_keras`, whose variables are counted.

    >>> import keras
    >>> with variables_within(1000, keras):
    ...     keras.layers.Dense(100).build((None, 100))
    Traceback (most recent call last):
    ...
    ValueError: its config describes layers whose weights exceed 1,000 bytes, more than the file contains
    """
    spent = 0

    def spend(shape: Any, dtype: Any) -> None:
        nonlocal spent
        spent += math.prod(int(d) for d in shape) * _bytes(dtype)
        if spent > limit:
            raise ValueError(
                f"its config describes layers whose weights exceed {limit:,} bytes, more than the file contains"
            )

    with _tf_keras(spend) if library.__name__ == "tf_keras" else _keras3(spend):
        yield


def _bytes(dtype: Any) -> int:
    size = getattr(dtype, "size", None)  # TensorFlow's
    if isinstance(size, int):
        return size
    words = "".join(c for c in str(dtype or "float32") if c.isdigit())
    return max(1, int(words or 8) // 8)


@contextmanager
def _tf_keras(spend: Any) -> Iterator[None]:
    import tensorflow as tf

    def creator(make: Any, **arguments: Any) -> Any:
        shape, value = arguments.get("shape"), arguments.get("initial_value")
        if shape is None and not callable(value):
            shape = getattr(value, "shape", ())
        if shape is not None and tf.TensorShape(shape).is_fully_defined():
            spend(tf.TensorShape(shape), arguments.get("dtype"))
        return make(**arguments)

    import tf_keras

    plain = tf_keras.layers.Layer.__call__

    @functools.wraps(plain)
    def within(self: Any, *inputs: Any, **arguments: Any) -> Any:
        _check_parts(self, tf.nest.flatten(inputs), arguments)
        return plain(self, *inputs, **arguments)

    tf_keras.layers.Layer.__call__ = within
    try:
        with tf.variable_creator_scope(creator):
            yield
    finally:
        tf_keras.layers.Layer.__call__ = plain


def _check_parts(layer: Any, inputs: list[Any], arguments: dict[str, Any]) -> None:
    """Raise ValueError if the layer repeats part of its graph for too many time steps or pieces of its input."""
    shape = tuple(getattr(inputs[0], "shape", ())) if inputs else ()
    if getattr(layer, "unroll", False) and len(shape) > 2:
        steps = shape[0 if getattr(layer, "time_major", False) else 1] or 1
        if steps > _MOST_STEPS:
            raise ValueError(
                f"the layer {layer.name!r:.80} unrolls {steps:,} steps, more than the limit of {_MOST_STEPS:,}"
            )
    if type(layer).__name__ != "TFOpLambda":
        return
    given = next((arguments[name] for name in _NUMBERS if arguments.get(name) is not None), 1)
    pieces = given if isinstance(given, int) else len(given) if isinstance(given, list | tuple) else 1
    if layer.get_config()["function"].rpartition(".")[2] in ("unstack", "repeat_elements"):
        axis = arguments.get("axis", 0)
        pieces *= (shape[axis] if isinstance(axis, int) and -len(shape) <= axis < len(shape) else None) or 1
    if pieces > _MOST_PIECES:
        raise ValueError(
            f"{layer.name!r:.80} splits a tensor into {pieces:,} pieces, more than the limit of {_MOST_PIECES:,}"
        )


@contextmanager
def _keras3(spend: Any) -> Iterator[None]:
    import keras

    # Keras 3 has no scope for this. The constructor is the one place that sees a shape before there is a value; it
    # has been `(initializer, shape=None, dtype=None, ...)` in all versions (3.13 to 3.15).
    owner = next(cls for cls in keras.Variable.__mro__ if "__init__" in vars(cls))
    plain, plain_tensor, tensors = owner.__init__, keras.KerasTensor.__init__, 0

    @functools.wraps(plain)
    def within(self: Any, initializer: Any, shape: Any = None, dtype: Any = None, *rest: Any, **more: Any) -> None:
        if shape is not None:
            spend([d for d in ((shape,) if isinstance(shape, int) else shape) if d is not None], dtype)
        plain(self, initializer, shape, dtype, *rest, **more)

    @functools.wraps(plain_tensor)
    def counted(self: Any, *arguments: Any, **more: Any) -> None:
        nonlocal tensors
        tensors += 1
        if tensors > _MOST_TENSORS:
            raise ValueError(f"its config creates more than {_MOST_TENSORS:,} intermediate tensors")
        plain_tensor(self, *arguments, **more)

    owner.__init__, keras.KerasTensor.__init__ = within, counted
    try:
        yield
    finally:
        owner.__init__, keras.KerasTensor.__init__ = plain, plain_tensor
