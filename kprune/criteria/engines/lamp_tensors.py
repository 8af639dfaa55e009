"""LAMP's scores as tensors on the devices of the weights (see `kprune.criteria.lamp`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from ...masks import MaskedWeight
from ...runtime.distribution import as_tensor
from .precision import with_float64


def lamp_tensors(weights: list[MaskedWeight], tracker: Any = None) -> list[Any] | None:
    """Return the scores of Keras 3 weights as float64 tensors of their shapes, or None if parts lie on several devices.

    To sort such a weight would gather it on each of them.
    """
    values = [as_tensor(weight.variable) for weight in weights]
    if any(hasattr(value, "sharding") and not value.sharding.is_fully_replicated for value in values):
        return None
    score = _program(keras.backend.backend())
    return [score(value, as_tensor(weight.mask)) for value, weight in zip(values, weights, strict=True)]


@functools.cache
def _program(backend: str) -> Callable[[Any, Any], Any]:
    """Return a compiled function (value, mask) -> score."""
    if backend == "jax":
        import jax

        compiled = jax.jit(scores_in_jax)

        def with_wide_floats(value: Any, mask: Any) -> Any:
            with with_float64():
                return compiled(value, mask)

        return with_wide_floats
    import tensorflow as tf

    return tf.function(_scores_in_tensorflow, autograph=False)


def scores_in_jax(value: Any, mask: Any) -> Any:
    """Return the scores; JAX must allow float64 where this is traced."""
    from jax import numpy as jnp

    magnitudes = jnp.where(mask, jnp.abs(value), 0).astype("float32").reshape(-1)
    order = jnp.argsort(magnitudes, stable=True)
    squares = jnp.square(magnitudes[order].astype("float64"))
    above = jnp.cumsum(squares[::-1])[::-1]
    ranked = jnp.where(above > 0, squares / above, 0)
    return jnp.zeros_like(ranked).at[order].set(ranked, unique_indices=True).reshape(value.shape)


def _scores_in_tensorflow(value: Any, mask: Any) -> Any:
    import tensorflow as tf

    magnitudes = tf.reshape(tf.cast(tf.where(mask, tf.abs(value), tf.zeros_like(value)), "float32"), [-1])
    order = tf.argsort(magnitudes, stable=True)
    squares = tf.square(tf.cast(tf.gather(magnitudes, order), "float64"))
    above = tf.cumsum(squares, reverse=True)
    ranked = tf.math.divide_no_nan(squares, above)
    return tf.reshape(tf.scatter_nd(order[:, None], ranked, tf.shape(magnitudes)), tf.shape(value))
