"""Derivatives of the loss for tf_keras models, computed by the models themselves with twins of their variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from ...data.batches import Batch
from ..base import Context, Derivative
from .moments_tensorflow import twice_differentiable_moments
from .precision_tensorflow import without_tf32
from .twins_tf_keras import Twins


def derivatives(
    context: Context, training: bool, heat: Callable[[Any], Any], no_loss: Callable[[Any], Exception]
) -> tuple[Derivative, Derivative]:
    """Return the gradient and Hessian product for `Gradients`; raise `no_loss(model)` if the model has no loss."""
    model, twins = context.model, Twins(context.model, context.dtype())
    variables = [twins.of(weight.variable) for weight in context.weights]
    loss, plain = _own_loss(model), type(model).compute_loss is tf_keras.Model.compute_loss
    twins.patches.append((model, "compiled_loss", loss))

    def gradient(batch: Any) -> list[Any]:
        x, y, sample_weight = batch
        with tf.GradientTape() as tape:
            total = model.compute_loss(x, y, heat(model(x, training=training)), sample_weight)
        return tape.gradient(total, variables, unconnected_gradients="zero")

    def curvature(vectors: list[Any], batch: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            gradients = gradient(batch)
            product = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
        return tape.gradient(product, variables, unconnected_gradients="zero")

    first = tf.function(lambda vectors, batch: gradient(batch))
    second = tf.function(curvature)

    def run(function: Any) -> Derivative:
        def call(values: list[np.ndarray], vectors: list[np.ndarray], batch: Batch) -> list[np.ndarray]:
            tensors = keras.tree.map_structure(tf.convert_to_tensor, (vectors, batch), none_is_leaf=False)
            with twins.in_place(), twice_differentiable_moments(), without_tf32():
                if not loss._built:  # makes its trackers, which a traced function cannot
                    x, y, sample_weight = tensors[1]
                    y_pred = model(x, training=False)
                    if not model.loss and plain and not model.losses:
                        raise no_loss(model)
                    model.compute_loss(x, y, y_pred, sample_weight)
                twins.reset()
                for v, value in zip(variables, values, strict=True):
                    v.assign(value)
                return [np.asarray(d) for d in function(*tensors)]

        return call

    return run(first), run(second)


def _own_loss(model: Any) -> Any:
    """Return a copy of the compiled loss that has separate trackers.

    The loss has no public name (checked with tf_keras 2.21; two outputs, tests/tf_keras/).
    """
    loss = model.compiled_loss
    return type(loss)(loss._user_losses, loss._user_loss_weights, loss._output_names)
