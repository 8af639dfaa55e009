"""A limit on the memory of new variables: a config of a few bytes can ask for any amount."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def variables_within(limit: int, library: Any) -> Iterator[None]:
    """Context in which creating more than `limit` bytes of variables raises ValueError before allocating.

    Args:
        limit: in bytes.
        library: `keras` or `tf_keras`, whose variables are counted.

    >>> import keras
    >>> with variables_within(1000, keras):
    ...     keras.layers.Dense(100).build((None, 100))
    Traceback (most recent call last):
    ...
    ValueError: its config describes layers with more than 1,000 bytes of weights, more than the file contains
    """
    spent = 0

    def spend(shape: Any, dtype: Any) -> None:
        nonlocal spent
        spent += math.prod(int(d) for d in shape) * _bytes(dtype)
        if spent > limit:
            raise ValueError(
                f"its config describes layers with more than {limit:,} bytes of weights, more than the file contains"
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

    with tf.variable_creator_scope(creator):
        yield


@contextmanager
def _keras3(spend: Any) -> Iterator[None]:
    import keras

    # Keras 3 has no scope for this. The constructor is the one place that sees a shape before there is a value; it
    # has been `(initializer, shape=None, dtype=None, ...)` in all versions (3.13 to 3.15).
    owner = next(cls for cls in keras.Variable.__mro__ if "__init__" in vars(cls))
    plain = owner.__init__

    @functools.wraps(plain)
    def within(self: Any, initializer: Any, shape: Any = None, dtype: Any = None, *rest: Any, **more: Any) -> None:
        if shape is not None:
            spend([d for d in ((shape,) if isinstance(shape, int) else shape) if d is not None], dtype)
        plain(self, initializer, shape, dtype, *rest, **more)

    owner.__init__ = within
    try:
        yield
    finally:
        owner.__init__ = plain
