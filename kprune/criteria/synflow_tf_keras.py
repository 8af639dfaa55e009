"""SynFlow's scorer for tf_keras models: a float64 clone of the model in its homogeneous form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

from ..inputs import call_with, input_like
from ..masks import MaskedWeight
from .linearize import activation_for, geometric_mean, kind


class _GeometricMean(tf_keras.layers.Layer):
    def call(self, inputs: list[Any]) -> Any:
        return geometric_mean(inputs, tf.where)


def float64_scorer(
    model: Any, weights: list[MaskedWeight]
) -> Callable[[list[np.ndarray]], tuple[float, list[np.ndarray]]]:
    """Takes bool masks in the order of `weights`; returns R and one float64 array of scores per weight."""
    if not (isinstance(model, tf_keras.Sequential) or model._is_graph_network):
        raise ValueError(
            "SynFlow clones a tf_keras model to score it, which needs a Sequential or Functional one. "
            f"Received: model={model.name!r} of class {type(model).__name__}"
        )
    pairs: list[tuple[Any, Any]] = []
    clone = tf_keras.models.clone_model(model, clone_function=lambda layer: _homogeneous(layer, pairs))
    twin = {id(w): v for layer, new in pairs for w, v in zip(layer.weights, new.weights, strict=True)}
    originals = {id(w): w for layer, _ in pairs for w in layer.weights}
    for key, v in twin.items():
        value = originals[key].numpy()
        v.assign(np.abs(value.astype(np.float64)) if v.dtype.is_floating else value)
    kernels = [twin[id(weight.variable)] for weight in weights]
    absolute = [k.numpy() for k in kernels]
    ones = input_like(clone, lambda shape, dtype: tf.ones(shape, "float64" if "float" in dtype else dtype))

    @tf.function(autograph=False)
    def score() -> Any:
        with tf.device("CPU:0"), tf.GradientTape() as tape:
            total = sum(tf.reduce_sum(y) for y in tf.nest.flatten(call_with(clone, ones, training=False)))
        gradients = tape.gradient(total, kernels, unconnected_gradients="zero")
        return total, [tf.abs(g * k) for g, k in zip(gradients, kernels, strict=True)]

    def scorer(masks: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        for k, value, mask in zip(kernels, absolute, masks, strict=True):
            k.assign(np.where(mask, value, 0.0))
        total, scores = score()
        return float(total), [s.numpy() for s in scores]

    return scorer


def _homogeneous(layer: Any, pairs: list[tuple[Any, Any]]) -> Any:
    """The float64 layer that stands in for this one; (layer, stand-in) goes to `pairs`."""
    if isinstance(layer, tf_keras.Model):
        # Its inputs in float64 too, or it would cast what it is given to float32.
        inputs = [
            tf_keras.Input(batch_shape=x.shape, dtype="float64" if x.dtype.is_floating else x.dtype)
            for x in layer.inputs
        ]
        return tf_keras.models.clone_model(layer, inputs, lambda inner: _homogeneous(inner, pairs))
    if isinstance(layer, pruning_wrapper.PruneLowMagnitude):
        layer = layer.layer
    what = kind(layer)
    if what == "identity":
        return tf_keras.layers.Activation("linear", name=layer.name, dtype="float64")
    if what == "multiply":
        return _GeometricMean(name=layer.name, dtype="float64")
    config = {**layer.get_config(), "dtype": "float64"}
    if what == "relu":
        config.update(max_value=None, threshold=0.0)
    elif callable(getattr(layer, "activation", None)):
        config["activation"] = activation_for(layer.activation.__name__)
    new = type(layer).from_config(config)
    pairs.append((layer, new))
    return new
