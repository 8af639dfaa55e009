"""Mean and variance on TensorFlow that support Hessian products."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf


@contextmanager
def twice_differentiable_moments() -> Iterator[None]:
    """Make Keras 3 and tf_keras normalization layers use moments with correct second derivatives within the context.

    `tf.nn.moments` itself takes the mean in the variance for a constant, which the first derivative does not notice.
    Batch, layer and group normalization look it up here when they are traced (checked with TensorFlow 2.21, Keras
    3.13.2 and 3.15.1, tf_keras 2.21; Hessian products in test_gradients.py and tests/tf_keras/).
    """
    modules = [tf.nn, importlib.import_module("tensorflow.compat.v2").nn]
    before = [module.moments for module in modules]
    try:
        for module in modules:
            module.moments = _moments
        yield
    finally:
        for module, moments in zip(modules, before, strict=True):
            module.moments = moments


def _moments(x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: Any = None) -> tuple[Any, Any]:
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
    return mean if keepdims else tf.squeeze(mean, axes), variance
