"""SynFlow's scorer for tf_keras models, which uses float64 twins of their variables in homogeneous form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ...masks import MaskedWeight
from ...runtime.inputs import call_with
from .linearize import homogeneous
from .twins_tf_keras import Twins


def float64_scorer(
    model: Any, weights: list[MaskedWeight], power: float, given: dict[str, Any]
) -> Callable[[list[np.ndarray]], tuple[float, list[np.ndarray]]]:
    """Return a function that maps bool masks, in the order of `weights`, to R and a float64 score array per weight."""
    with tf.device("CPU:0"):
        twins = Twins(model, "float64")
        for _, twin in twins.pairs():
            if twin.dtype == tf.float64:
                twin.assign(tf.abs(twin) ** power)
    twins.patches += homogeneous(twins.layers, tf_keras.activations.get, tf.where)
    kernels = [twins.of(weight.variable) for weight in weights]
    absolute = [k.numpy() for k in kernels]

    @tf.function
    def score() -> Any:
        with tf.device("CPU:0"), tf.GradientTape() as tape:
            total = sum(tf.reduce_sum(y) for y in tf.nest.flatten(call_with(model, given, training=False)))
        gradients = tape.gradient(total, kernels, unconnected_gradients="zero")
        return total, [tf.abs(g * k) for g, k in zip(gradients, kernels, strict=True)]

    with twins.in_place():
        traced = score.get_concrete_function()

    def scorer(masks: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        for k, value, mask in zip(kernels, absolute, masks, strict=True):
            k.assign(np.where(mask, value, 0.0))
        total, scores = traced()
        return float(total), [s.numpy() for s in scores]

    return scorer
