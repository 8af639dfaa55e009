"""Small tf_keras models and checks that several test files use; checks of masks are in tests/helpers.py."""

import numpy as np
import tensorflow as tf
import tf_keras
from helpers import built, halve
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper
from tf_keras import layers

import kprune


def sequential(shape, *stack, dtype=None):
    return tf_keras.Sequential([tf_keras.Input(shape, dtype=dtype), *stack])


def mlp(outputs=3, units=12, **dense):
    """8 -> units -> units -> outputs, relu."""
    hidden = [layers.Dense(units, "relu", name=name, **dense) for name in ("hidden1", "hidden2")]
    return sequential((8,), *hidden, layers.Dense(outputs, name="logits", **dense))


def masked_mlp(optimizer="sgd", half=True, **compile_args):
    """A compiled, masked mlp, with a random half of each weight pruned."""
    model = kprune.mask(mlp()).model
    model.compile(optimizer, "mse", **compile_args)
    built(model)
    if half:
        halve(model)
    return model


def wrappers(model):
    return [layer for layer in model.submodules if isinstance(layer, pruning_wrapper.PruneLowMagnitude)]


def outputs(model, x):
    return [np.asarray(y) for y in tf.nest.flatten(model(x, training=False))]


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def state(model):
    """Every variable of the model and of its optimizer, bit by bit."""
    variables = [*model.variables, *(model.optimizer.variables if model.optimizer else [])]
    return [(v.name, v.numpy().tobytes()) for v in variables]


def pruned_fraction(model):
    weights = kprune.masked_weights(model)
    return sum((~w.kept()).sum() for w in weights) / sum(w.size for w in weights)
