"""Clones of tf_keras models to score in place of the model, so that nothing in it can change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper


def clone_without_wrappers(model: Any, dtype: str, stand_in: Callable[[Any], tuple[Any, bool]]) -> tuple[Any, dict]:
    """A clone without wrappers, with weights and computation in `dtype` and values copied.

    Args:
        model: a Sequential or Functional model.
        dtype: "float32" or "float64".
        stand_in: takes a plain layer; returns the new one, and whether it has the weights of the old one.

    Returns:
        The clone, and id of each variable of the model -> its twin in the clone.

    Raises:
        ValueError: the model is subclassed.
    """
    if not (isinstance(model, tf_keras.Sequential) or model._is_graph_network):
        raise ValueError(
            "A tf_keras model is cloned to be scored, which needs a Sequential or Functional one. "
            f"Received: model={model.name!r} of class {type(model).__name__}"
        )
    pairs: list[tuple[Any, Any]] = []

    def make(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            # Its inputs in this dtype too, or it would cast what it is given.
            inputs = [
                tf_keras.Input(batch_shape=x.shape, dtype=dtype if x.dtype.is_floating else x.dtype)
                for x in layer.inputs
            ]
            return tf_keras.models.clone_model(layer, inputs, make)
        if isinstance(layer, pruning_wrapper.PruneLowMagnitude):
            layer = layer.layer
        new, same = stand_in(layer)
        if same:
            pairs.append((layer, new))
        return new

    clone = tf_keras.models.clone_model(model, clone_function=make)
    if not clone.built:
        clone.build(model.input_shape)
    twins = {}
    for layer, new in pairs:
        for w, v in zip(layer.weights, new.weights, strict=True):
            v.assign(tf.cast(w, v.dtype))
            twins[id(w)] = v
    return clone, twins


def copied(layer: Any, dtype: str, **config: Any) -> Any:
    """A new layer of the same class and config, but for what is given."""
    return type(layer).from_config({**layer.get_config(), "dtype": dtype, **config})
