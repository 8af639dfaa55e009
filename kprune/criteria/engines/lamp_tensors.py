"""LAMP's scores as tensors on the devices of the weights (see `kprune.criteria.lamp`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from ...masks import MaskedWeight
from ...runtime.distribution import as_tensor, platforms
from .precision import with_float64


def lamp_tensors(weights: list[MaskedWeight], tracker: Any = None) -> list[Any] | None:
    """Return the scores of Keras 3 weights as float64 tensors of their shapes, or None if the host must compute them.

    To sort a weight that lies in parts on several devices would gather it on each, and the sum of float64 that a TPU
    emulates takes minutes to compile.
    """
    values = [as_tensor(weight.variable) for weight in weights]
    if any(hasattr(value, "sharding") and not value.sharding.is_fully_replicated for value in values):
        return None
    if "tpu" in platforms(weight.variable for weight in weights):
        return None
    return _program(keras.backend.backend())(values, [as_tensor(weight.mask) for weight in weights])


@functools.cache
def _program(backend: str) -> Callable[[list[Any], list[Any]], list[Any]]:
    """Return a compiled function (values, masks) -> scores."""

    def of_each(score: Callable[[Any, Any], Any]) -> Callable[[list[Any], list[Any]], list[Any]]:
        return lambda values, masks: list(map(score, values, masks))

    if backend == "jax":
        import jax

        compiled = jax.jit(of_each(_in_jax))

        def with_wide_floats(values: list[Any], masks: list[Any]) -> list[Any]:
            with with_float64():
                return compiled(values, masks)

        return with_wide_floats
    import tensorflow as tf

    return tf.function(of_each(_in_tensorflow), autograph=False)


def _in_jax(value: Any, mask: Any) -> Any:
    from jax import numpy as jnp

    magnitudes = jnp.where(mask, jnp.abs(value), 0).astype("float32").reshape(-1)
    order = jnp.argsort(magnitudes, stable=True)
    squares = jnp.square(magnitudes[order].astype("float64"))
    above = jnp.cumsum(squares[::-1])[::-1]
    ranked = jnp.where(above == 0, 0, squares / above)
    return jnp.zeros_like(ranked).at[order].set(ranked, unique_indices=True).reshape(value.shape)


def _in_tensorflow(value: Any, mask: Any) -> Any:
    import tensorflow as tf

    magnitudes = tf.reshape(tf.cast(tf.where(mask, tf.abs(value), tf.zeros_like(value)), "float32"), [-1])
    order = tf.argsort(magnitudes, stable=True)
    squares = tf.square(tf.cast(tf.gather(magnitudes, order), "float64"))
    above = tf.cumsum(squares, reverse=True)
    ranked = tf.math.divide_no_nan(squares, above)
    return tf.reshape(tf.scatter_nd(order[:, None], ranked, tf.shape(magnitudes)), tf.shape(value))
