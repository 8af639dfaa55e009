"""Shrink on tf_keras models under tfmot's wrappers."""

import numpy as np
import tf_keras
from tf_keras import layers

import kprune
from kprune.masks import followers


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


def test_what_follows_a_pruned_channel_stays_0_in_training():
    model = kprune.mask(network()).model
    model.compile(tf_keras.optimizers.AdamW(0.01, weight_decay=0.1), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 3)).astype("float32"), rng.normal(size=(16, 4)).astype("float32")
    options = dict(begin=0.0, end=0.5, frequency=1, scope="uniform", pattern="channel")
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[kprune.callbacks.GradualPruning(0.5, **options)])
    kernels = {w.path.split("/")[0]: w.kept().any(axis=(0, 1, 2)) for w in kprune.masked_weights(model)[:2]}
    held = {f.path: f for f in followers(model)}
    for name, kept in kernels.items():
        assert 0 < kept.sum() < 8
        np.testing.assert_array_equal(held[f"{name}/bias"].kept(), kept)
    assert all(not f.value()[~f.kept()].any() for f in held.values())
    [gamma] = [f for path, f in held.items() if path.endswith("gamma")]
    np.testing.assert_array_equal(gamma.kept(), kernels["b"])
    expected = model.predict(x, verbose=0)
    stripped = kprune.strip(model)
    np.testing.assert_array_equal(stripped.predict(x, verbose=0), expected)
    assert followers(stripped) == [] and stripped.get_layer("a").bias.constraint is None
