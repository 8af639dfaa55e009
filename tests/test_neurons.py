"""Criteria of units (APoZ, network slimming, Taylor on gates) against hand-computed values."""

import keras
import numpy as np
import pytest
from helpers import assert_zero
from keras import layers, ops

import kprune
from kprune.config import PruningConfig
from kprune.criteria import Context, apoz, network_slimming, taylor_gates


def scores(model, criterion, data=None):
    """The scores of a model's weights, in their order."""
    kprune.mask(model)
    weights = kprune.masked_weights(model)
    batches = PruningConfig(criterion).take(data, None) if data is not None else []
    found = criterion(Context(model, weights, {w.path: w.kept() for w in weights}, data=batches))
    return [found[weight.path] for weight in weights]


def with_weights(model, *values):
    for v, value in zip(model.trainable_variables, values, strict=True):
        v.assign(value)
    return model


def test_apoz_of_two_units_by_hand():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "relu"), layers.Dense(1)])
    with_weights(model, [[1.0, 2.0], [-1.0, 0.0]], [0.0, -3.0], [[1.0], [1.0]], [1.0])
    # relu(a - b) and relu(2 a - 3): active in 1 of 4, and in 3 of 4.
    x = np.array([[1.0, 1.0], [2.0, 2.0], [2.0, 3.0], [2.0, 1.0]])
    first, second = scores(model, apoz, [(x[:3], None), (x[3:], None)])  # as if in one batch
    np.testing.assert_array_equal(first, [[0.25, 0.75], [0.25, 0.75]])
    np.testing.assert_array_equal(second, [[1.0], [1.0]])  # linear


def test_apoz_counts_the_pruned_network():
    model = with_weights(keras.Sequential([keras.Input((2,)), layers.Dense(1, "relu")]), [[1.0], [-5.0]], [0.0])
    x = np.array([[1.0, 1.0], [2.0, 2.0], [-1.0, 0.0]])
    assert scores(model, apoz, (x,))[0].ravel().tolist() == [0.0, 0.0]
    kprune.set_masks(model, {"sequential/dense/kernel": np.array([[True], [False]])})
    assert scores(model, apoz, (x,))[0].ravel().tolist() == [2 / 3, 2 / 3]


def residual():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 1, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Add()([x, layers.Conv2D(2, 1, use_bias=False, name="shortcut")(inputs)])
    return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(layers.ReLU()(layers.Dropout(0.5)(x)))))


class Written(keras.Model):
    """The same first two layers, in a `call` of the user's own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(2, 1, use_bias=False, name="conv"), layers.BatchNormalization()
        self.act = layers.ReLU()

    def call(self, x):
        return ops.mean(self.act(self.norm(self.conv(x))), axis=(1, 2))


def test_apoz_finds_the_activation_behind_normalization_dropout_and_addition():
    x = np.zeros((1, 4, 4, 1), "float32")
    x[0, 0, 0, 0] = 1.0
    model = residual()
    with_weights(model, [[[[1.0, -1.0]]]], [1.0, 1.0], [0.0, 0.5], [[[[1.0, -1.0]]]], *model.get_weights()[-2:])
    conv, shortcut, dense = scores(model, apoz, (x,))
    # The sum is 2 at a place and 0 elsewhere; -2 at that place and 0.5, the beta, elsewhere.
    np.testing.assert_array_equal(conv, [[[[1 / 16, 15 / 16]]]])
    np.testing.assert_array_equal(shortcut, conv)
    np.testing.assert_array_equal(dense, np.ones((32, 1)))
    written = Written()
    written(x)
    with_weights(written, [[[[1.0, -1.0]]]], [1.0, 1.0], [0.0, 0.5])
    np.testing.assert_array_equal(scores(written, apoz, (x,))[0], conv)


def test_apoz_of_heads_of_an_einsum_by_hand():
    inputs = keras.Input((3, 2))
    dense = layers.EinsumDense("abc,cde->abde", (3, 2, 2), activation="relu")
    model = keras.Model(inputs, dense(inputs))
    kernel = np.array([[[1.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [-1.0, 1.0]]])
    with_weights(model, kernel)
    x = np.array([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    [score] = scores(model, apoz, (x,))
    # Per head and unit: relu of a, -a, a - b, b.
    np.testing.assert_array_equal(score, np.broadcast_to([[2 / 3, 0.0], [1 / 3, 2 / 3]], (2, 2, 2)))


def test_apoz_refuses_what_it_says_nothing_about():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, "tanh"), layers.Dense(1)])
    with pytest.raises(ValueError, match=r"needs ReLU layers. Received: model='sequential'$"):
        kprune.prune(model, "apoz", 0.5, data=(np.ones((4, 2)),))
    assert not kprune.masked_weights(model)
    with pytest.raises(ValueError, match=r"'apoz' needs data: pass data=\(x,\). Received: data=None$"):
        kprune.prune(model, "apoz", 0.5)
    model = keras.Sequential([keras.Input((4, 2)), layers.SimpleRNN(3, activation="relu"), layers.Dense(1, "relu")])
    with pytest.raises(ValueError, match=r"needs the activations .* does not expose them.*Received: layer='simple_rnn"):
        kprune.prune(model, "apoz", 0.5, data=(np.ones((4, 4, 2)),))
    kprune.mask(model, filters="dense")
    model.layers[-1].kernel.assign(np.zeros((3, 1)))
    kprune.prune(model, "apoz", 0.5, data=(np.ones((4, 4, 2)),))
    assert_zero(model)


def test_network_slimming_by_hand():
    model = residual()
    with_weights(
        model,
        [[[[9.0, -1.0]]]],
        [-0.5, 0.25],
        [0.0, 0.5],
        [[[[1.0, -3.0]]]],
        np.full((32, 1), -2.0),
        model.get_weights()[-1],
    )
    conv, shortcut, dense = scores(model, network_slimming)
    np.testing.assert_array_equal(conv, [[[[0.5, 0.25]]]])
    # No normalization behind them: above all others, by mean magnitude.
    np.testing.assert_array_equal(shortcut, [[[[1.5 + 1.0, 1.5 + 3.0]]]])
    np.testing.assert_array_equal(dense, np.full((32, 1), 1.5 + 2.0))


def test_network_slimming_passes_activations_and_no_other_weights():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            *(layers.Dense(2, use_bias=False), layers.ReLU(), layers.Dropout(0.5), layers.BatchNormalization()),
            *(layers.Dense(2, use_bias=False), layers.Dense(2, use_bias=False), layers.BatchNormalization()),
        ]
    )
    weights = model.trainable_variables
    weights[1].assign([0.1, 0.2])
    weights[5].assign([0.3, 0.4])
    weights[3].assign([[1.0, 0.0], [1.0, 0.0]])
    first, second, third = scores(model, network_slimming)
    np.testing.assert_allclose(first[0], [0.1, 0.2])
    np.testing.assert_allclose(second[0], [2.4, 1.4])
    np.testing.assert_allclose(third[0], [0.3, 0.4])


def test_network_slimming_prunes_filters_with_their_gammas():
    model = residual()
    norm = model.get_layer("norm")
    norm.gamma.assign([1.0, 1e-3])
    kprune.prune(model, "network_slimming", {"conv": 0.5}, pattern="channel")
    assert np.asarray(norm.gamma).tolist() == [1.0, 0.0]
    assert (np.asarray(model.get_layer("conv").kernel) != 0).ravel().tolist() == [True, False]


def test_network_slimming_without_a_gamma_says_that_it_goes_by_magnitude(caplog):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2), layers.BatchNormalization(scale=False)], name="plain")
    model.layers[0].kernel.assign([[1.0, -2.0], [1.0, -4.0]])
    masks = kprune.prune(model, "network_slimming", 0.5, pattern="channel", rounds=2)
    assert next(iter(masks.values())).tolist() == [[False, True]] * 2
    assert caplog.text.count("no masked weight of plain leads to a batch normalization with gamma") == 1


def test_taylor_on_gates_by_hand():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    with_weights(model, [[1.0, 3.0], [1.0, -3.0]])
    model.compile("sgd", "mse")
    # mse = mean of 2: dL/dy = y - t. Batch 1: y = (2, 0), t = (0, 9): w dL/dw = x w (y - t): (2, 2), (-27, 27).
    one = np.array([[1.0, 1.0]]), np.array([[0.0, 9.0]])
    # Batch 2: y = (1, 3), t = (0, 1): (1, 0), (6, 0).
    two = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    [score] = scores(model, taylor_gates, [one, two])
    np.testing.assert_allclose(score, [[(16 + 1) / 2, (0 + 36) / 2]] * 2)
