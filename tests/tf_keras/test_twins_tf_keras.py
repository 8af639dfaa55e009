"""Scoring tf_keras models in place: what users write into models of their own."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from helpers import data
from tf_keras import layers
from tfk_helpers import assert_same, sequential, state

import kprune
from kprune.criteria import CRITERIA, Context
from kprune.criteria.engines.twins_tf_keras import Twins
from kprune.data.batches import take_batches


def scores_of(model, name, batch, **arguments):
    weights = kprune.masked_weights(model)
    context = Context(model, weights, {w.path: w.kept() for w in weights}, data=take_batches(batch))
    return list(CRITERIA.get(name)(context, **arguments).values())


class Plain(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = tfmot.sparsity.keras.prune_low_magnitude(layers.Dense(6, "relu", kernel_regularizer="l2"))
        self.stack = tf_keras.Sequential([layers.Dense(5, "relu"), layers.BatchNormalization(), layers.Dropout(0.5)])
        self.logits = tfmot.sparsity.keras.prune_low_magnitude(layers.Dense(3))
        self.scales = {"all": [self.add_weight("scale", shape=(), initializer=lambda *_, **__: 0.3)]}

    def call(self, x, training=None):
        return self.logits(self.stack(self.hidden(x), training=training)) * self.scales["all"][0]


class Traced(Plain):
    @tf.function
    def call(self, x, training=None):
        if tf.reduce_sum(x) > -1e9:  # needs AutoGraph
            x = x * 1.0
        return super().call(x, training=training)


class TracedInInit(Plain):
    def __init__(self):
        super().__init__()
        self.score = tf.function(super().call)

    def call(self, x, training=None):
        return self.score(x, training=training)


def made(cls):
    tf_keras.utils.set_random_seed(1)
    model = cls()
    model(data()[0])
    kprune.mask(model)
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("cls", [Traced, TracedInInit])
@pytest.mark.parametrize("name", ["grasp", "synflow"])
def test_a_call_that_was_traced_before_sees_the_twins_and_does_not_keep_them(name, cls):
    (x, y), models = data(), [made(Plain), made(cls)]
    for model in models:
        model(x, training=False)
    one, other = (scores_of(model, name, (x, y)) for model in models)
    assert all(score.any() for score in one)
    assert_same(one, other)
    for model in models:
        kprune.masked_weights(model)[0].variable.assign(np.ones((8, 6)))
    np.testing.assert_allclose(*(model(x, training=False) for model in models), rtol=1e-6)


@pytest.mark.parametrize("name", ["snip", "synflow"])
def test_a_call_sees_the_values_of_now(name):
    (x, y), model = data(), made(Plain)
    before = scores_of(model, name, (x, y))
    model.set_weights([w * 2 for w in model.get_weights()])
    for one, other in zip(before, scores_of(model, name, (x, y)), strict=True):
        assert not np.allclose(one, other)


def test_regularisers_of_the_weights_count():
    model = kprune.mask(sequential((2,), layers.Dense(1, use_bias=False, kernel_regularizer="l2"))).model
    kprune.masked_weights(model)[0].variable.assign([[1.0], [2.0]])
    model.compile("sgd", "mse")
    [score] = scores_of(model, "taylor", (np.array([[3.0, 1.0]]), np.array([[0.0]])))
    # Output 5: gradient 10 * (3, 1) of the error, 0.01 * 2 * (1, 2) of the regularizer.
    np.testing.assert_allclose(score[:, 0], [30.02, 20.08], rtol=1e-6)


@pytest.mark.parametrize("enabled", [False, True])
def test_dropout_in_training_mode_leaves_its_seeds_and_statistics(enabled):
    switch = tf_keras.backend.experimental
    (switch.enable_tf_random_generator if enabled else switch.disable_tf_random_generator)()
    try:
        (x, y), model = data(), made(Plain)
        generator = model.stack.layers[-1]._random_generator
        assert (generator._generator is not None) == enabled
        drawn = generator._generator.state.numpy().tolist() if enabled else None
        before, scores = state(model), [scores_of(model, "snip", (x, y), training=mode) for mode in (False, True)]
        assert state(model) == before
        if enabled:
            assert generator._generator.state.numpy().tolist() == drawn
            assert_same(scores_of(model, "snip", (x, y), training=True), scores[1])
        assert not np.array_equal(scores[0][0], scores[1][0])
    finally:
        switch.disable_tf_random_generator()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_layers_compute_in_the_dtype_with_twins_of_all(dtype):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    inner = tf_keras.Sequential([layers.Dense(4, dtype="float32"), layers.BatchNormalization()])
    x = tf_keras.Input((8,))
    y = layers.Reshape((2, 2, 1))(inner(layers.Dense(6)(x)))
    model = kprune.mask(tf_keras.Model(x, layers.BatchNormalization()(layers.Conv2D(2, 1)(y)))).model
    rows = tf.ones((3, 8), tf.float64)
    assert model(rows).dtype == tf.bfloat16
    twins = Twins(model, dtype)
    with twins.in_place():
        assert model(rows).dtype == dtype
        twins.reset()
        assert all(v.dtype == dtype for v in model.trainable_variables)
        for variable, twin in twins.pairs():
            np.testing.assert_array_equal(variable.numpy(), twin.numpy())
            twin.assign(tf.zeros_like(twin))
    assert model(rows).dtype == tf.bfloat16 and np.asarray(model(rows)).any()


def test_a_callback_prunes_a_subclassed_model_by_flow():
    model = made(Plain)
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[kprune.callbacks.SynFlow(0.8, rounds=3)])
    assert kprune.summary(model).zeros == 50  # 0.8 * (8 * 6 + 5 * 3) = 50.4


def test_a_layer_that_synflow_cannot_see_through_is_named():
    class Odd(layers.Layer):
        def call(self, x):
            return tf.sin(x)

    class Model(Plain):
        def __init__(self):
            super().__init__()
            self.stack = Odd(name="odd")

        def call(self, x):
            return self.logits(self.stack(self.hidden(x)))

    model = made(Model)
    before = state(model)
    with pytest.raises(ValueError, match=r"assume_homogeneous\(Odd\).*Received: layer='odd', class=Odd"):
        kprune.prune(model, "synflow", 0.5)
    assert state(model) == before
