"""SynFlow's scorer for tf_keras models: a float64 clone of the model in its homogeneous form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ..inputs import call_with
from ..masks import MaskedWeight
from .clone_tf_keras import clone_without_wrappers, copied
from .linearize import activation_for, geometric_mean, kind


class _GeometricMean(tf_keras.layers.Layer):
    def call(self, inputs: list[Any]) -> Any:
        return geometric_mean(inputs, tf.where)


def float64_scorer(
    model: Any, weights: list[MaskedWeight], power: int, given: dict[str, Any]
) -> Callable[[list[np.ndarray]], tuple[float, list[np.ndarray]]]:
    """Takes bool masks in the order of `weights`; returns R and one float64 array of scores per weight."""
    clone, twin = clone_without_wrappers(model, "float64", _homogeneous)
    for v in twin.values():
        if v.dtype.is_floating:
            v.assign(tf.abs(v) ** power)
    kernels = [twin[id(weight.variable)] for weight in weights]
    absolute = [k.numpy() for k in kernels]

    @tf.function(autograph=False)
    def score() -> Any:
        with tf.device("CPU:0"), tf.GradientTape() as tape:
            total = sum(tf.reduce_sum(y) for y in tf.nest.flatten(call_with(clone, given, training=False)))
        gradients = tape.gradient(total, kernels, unconnected_gradients="zero")
        return total, [tf.abs(g * k) for g, k in zip(gradients, kernels, strict=True)]

    def scorer(masks: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        for k, value, mask in zip(kernels, absolute, masks, strict=True):
            k.assign(np.where(mask, value, 0.0))
        total, scores = score()
        return float(total), [s.numpy() for s in scores]

    return scorer


def _homogeneous(layer: Any) -> tuple[Any, bool]:
    """The float64 layer that stands in for this one, and whether it has its weights."""
    what = kind(layer)
    if what == "identity":
        return tf_keras.layers.Activation("linear", name=layer.name, dtype="float64"), False
    if what == "multiply":
        return _GeometricMean(name=layer.name, dtype="float64"), False
    if what == "relu":
        return copied(layer, "float64", max_value=None, threshold=0.0), True
    if callable(getattr(layer, "activation", None)):
        return copied(layer, "float64", activation=activation_for(layer.activation.__name__)), True
    return copied(layer, "float64"), True
