"""The reference networks on tf_keras are those of Keras 3, weight by weight."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tf_keras

from kprune import models

PAPER_COUNTS = {
    "lenet-300-100": 266_200,
    "vgg-11": 9_222_848,
    "vgg-16": 14_715_584,
    "resnet-18": 11_164_352,
    "resnet-20": 270_896,
}


@pytest.mark.parametrize("name", PAPER_COUNTS)
def test_prunable_count_is_the_papers(name):
    model = models.get(name)(library=tf_keras)
    kernels = [w for w in model.trainable_weights if w.name.endswith("/kernel:0")]
    assert sum(int(np.prod(w.shape)) for w in kernels) == PAPER_COUNTS[name]


@pytest.mark.parametrize("name", models.MODELS)
def test_same_network_as_on_keras_3(name):
    arguments = {"input_shape": (32, 32, 3), "width": 1.0 if name == "wide-resnet" else 0.1}
    three = models.get(name)(**arguments)
    two = models.get(name)(**arguments, library=tf_keras)
    assert isinstance(two, tf_keras.Model) and two.built
    assert two.output_shape == (None, 10)
    assert [layer.name for layer in two.layers] == [layer.name for layer in three.layers]
    assert [(w.name, tuple(w.shape)) for w in two.weights] == [(f"{w.path}:0", tuple(w.shape)) for w in three.weights]
    # Equal weights, equal logits: padding, strides, pooling and constants agree as well.
    two.set_weights(three.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    logits = keras.ops.convert_to_numpy(three(images, training=False))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(two(images, training=False).numpy(), logits, rtol=1e-3, atol=1e-3)


def test_bad_arguments_are_refused_as_on_keras_3():
    with pytest.raises(ValueError, match=r"Received: width=0$"):
        models.vgg_11(width=0, library=tf_keras)
