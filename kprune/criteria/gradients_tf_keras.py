"""Derivatives of the loss for tf_keras models: of a float32 clone without wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..batches import Batch
from ..masks import MaskedWeight
from .clone_tf_keras import clone_without_wrappers, copied
from .gradients import Derivative


def derivatives(
    model: Any, weights: list[MaskedWeight], training: bool, heat: Callable[[Any], Any]
) -> tuple[Derivative, Derivative]:
    """The gradient and the Hessian product of `Gradients`; what they update (statistics, seeds) is the clone's."""
    clone, twins = clone_without_wrappers(model, "float32", lambda layer: (copied(layer, "float32"), True))
    # The weights of the losses have no public name (checked with tf_keras 2.21; two outputs, tests/tf_keras/).
    clone.compile("sgd", model.loss, loss_weights=model._get_compile_args(user_metrics=False)["loss_weights"])
    variables = [twins[id(weight.variable)] for weight in weights]
    statistics = [(v, v.numpy()) for v in clone.non_trainable_variables]

    def gradient(batch: Any) -> list[Any]:
        x, y, sample_weight = batch
        with tf.GradientTape() as tape:
            loss = clone.compute_loss(x, y, heat(clone(x, training=training)), sample_weight)
        return tape.gradient(loss, variables, unconnected_gradients="zero")

    def curvature(vectors: list[Any], batch: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            gradients = gradient(batch)
            product = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
        return tape.gradient(product, variables, unconnected_gradients="zero")

    first = tf.function(lambda vectors, batch: gradient(batch), autograph=False)
    second = tf.function(curvature, autograph=False)

    def run(function: Any) -> Derivative:
        def call(values: list[np.ndarray], vectors: list[np.ndarray], batch: Batch) -> list[np.ndarray]:
            for v, value in [*zip(variables, values, strict=True), *statistics]:
                v.assign(value)
            tensors = keras.tree.map_structure(tf.convert_to_tensor, (vectors, batch), none_is_leaf=False)
            x, y, sample_weight = tensors[1]
            if not clone.compiled_loss._built:  # makes its trackers, which a traced function cannot
                clone.compute_loss(x, y, clone(x, training=False), sample_weight)
            return [np.asarray(d) for d in function(*tensors)]

        return call

    return run(first), run(second)
