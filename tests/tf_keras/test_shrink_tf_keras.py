"""Shrink on tf_keras models under tfmot's wrappers."""

import numpy as np
import tf_keras
from tf_keras import layers

import kprune


def agree(model, small, x):
    expected, actual = (m(x, training=False).numpy() for m in (model, small))
    assert np.abs(expected - actual).max() <= 1e-5 * np.abs(expected).max()


def network():
    inputs = tf_keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="b")(x))])
    x = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x))
    x = tf_keras.Sequential([layers.Conv2D(16, 1, name="c"), layers.MaxPooling2D()], name="inner")(x)
    return tf_keras.Model(inputs, layers.Dense(4, "softmax", name="d")(layers.Flatten()(x)))


def dead(kernels):
    """Masks of channel 0 and 1 as outputs of these kernels."""
    return {w.path: np.broadcast_to(np.arange(w.shape[-1]) > 1, w.shape) for w in kernels}


def test_a_wrapped_model():
    model = kprune.mask(network()).model
    kernels = [w for w in kprune.masked_weights(model) if w.shape[-1] in (8, 16)]
    kprune.set_masks(model, dead(kernels))
    small = kprune.shrink(model)
    shapes = {w.path.split("/")[0]: w.shape for w in kprune.masked_weights(small)}
    assert shapes == {"a": (3, 3, 3, 6), "b": (3, 3, 6, 6), "c": (1, 1, 6, 14), "d": (16 * 14, 4)}
    assert all(w.kept().all() for w in kprune.masked_weights(small))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    agree(model, small, x)
    agree(model, kprune.shrink(model, keep_masks=False), x)
    assert all("Prune" not in type(layer).__name__ for layer in kprune.shrink(model, keep_masks=False).layers)


def test_recurrent_and_embedding():
    model = tf_keras.Sequential([layers.Embedding(10, 8, input_length=5), layers.LSTM(6), layers.Dense(2)])
    model.build((None, 5))
    _, kernel, recurrent, _, dense, _ = model.weights
    for weight, rows in ((dense, [1]), (recurrent, [1]), (kernel, [2, 3])):
        value = weight.numpy()
        value[rows] = 0
        weight.assign(value)
    small = kprune.shrink(model)
    assert (small.layers[0].output_dim, small.layers[1].units) == (6, 5)
    agree(model, small, np.arange(10).reshape(2, 5))


def test_channel_groups():
    model = kprune.mask(network()).model
    masks = kprune.prune(model, "magnitude", 0.5, groups="channels:2")
    small = kprune.shrink(model, divisible_by=2)
    left = kprune.masked_weights(small)
    assert all(w.kept().all() for w in left)
    assert sum(w.size for w in left) == sum(int(mask.sum()) for mask in masks.values())
    assert all(w.shape[-1] % 2 == 0 for w in left)
    agree(model, small, np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32"))
