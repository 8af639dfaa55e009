"""Wanda, APoZ and SparseGPT on tf_keras models under tfmot's wrappers, beside the same network in Keras 3."""

import keras
import numpy as np
import pytest
import tf_keras

import kprune
from kprune.config import PruningConfig
from kprune.criteria import CRITERIA, Context


def network(library):
    """The same weights in either Keras."""
    layers = library.layers
    stack = [layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)]
    model = library.Sequential([layers.Input((6, 6, 2)), *stack])
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=v.shape) ** (1 if v.ndim > 1 else 2) for v in model.get_weights()])
    return kprune.mask(model).model


def batch():
    return np.random.default_rng(1).normal(size=(20, 6, 6, 2)).astype("float32")


@pytest.mark.parametrize("name", ["apoz", "network_slimming", "wanda"])
def test_scores_are_those_of_keras_3(name):
    found = []
    for library in (keras, tf_keras):
        model = network(library)
        weights = kprune.masked_weights(model)
        data = PruningConfig(name).take((batch(),))
        scores = CRITERIA.get(name)(Context(model, weights, {w.path: w.kept() for w in weights}, data=data))
        found.append(list(scores.values()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_sparsegpt_is_that_of_keras_3():
    models = [network(library) for library in (keras, tf_keras)]
    for model in models:
        kprune.prune_after_training(model, 0.5, data=(batch(),), verbose=0)
    for one, other in zip(*map(kprune.masked_weights, models), strict=True):
        np.testing.assert_array_equal(one.kept(), other.kept())
        np.testing.assert_allclose(one.value(), other.value(), rtol=1e-3, atol=1e-4)
        assert int((~other.kept()).sum()) == other.size // 2


def test_a_penalty_for_a_model_of_tf_keras_is_refused():
    model = network(tf_keras)
    with pytest.raises(
        ValueError, match=r"supports Keras 3 models only.*kernel_regularizer.*Received: model='.*', library='tf_keras'$"
    ):
        kprune.regularize(model, kprune.regularizers.GroupLasso(0.1))
