"""Convolutions as matrix products are what Keras's own convolutions are."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kprune.criteria.engines import convolutions
from kprune.criteria.engines.convolutions import convolutions_as_products

KEPT = [
    (layers.Conv2D(4, (3, 2), strides=(2, 1), padding="same"), (7, 6, 3)),
    (layers.Conv2D(4, 3, padding="same", dilation_rate=2), (5, 6, 3)),
    (layers.Conv2D(4, 5, padding="same"), (2, 2, 3)),
    (layers.Conv2D(4, 1, strides=2), (5, 5, 3)),
    (layers.Conv3D(2, 2, strides=2, padding="same"), (3, 4, 5, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), KEPT, ids=lambda value: getattr(value, "name", None))
def test_is_what_keras_computes(layer, shape):
    draw = np.random.default_rng(0)
    layer.build((2, *shape))
    x = ops.convert_to_tensor(draw.random((2, *shape)), "float32")
    kernel = ops.convert_to_tensor(draw.random(layer.kernel.shape), "float32")
    ((patched, name, product),) = convolutions_as_products([layer])
    assert patched is layer and name == "convolution_op"
    expected = layer.convolution_op(x, kernel)
    np.testing.assert_allclose(
        ops.convert_to_numpy(product(x, kernel)), ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("layer", "size", "small"),
    [
        (layers.Conv2D(2, 3, padding="same"), 3, False),
        (layers.Conv2D(2, 3, padding="same"), 2, True),  # 4 positions, windows of 9
        (layers.Conv2D(2, 3, padding="same", strides=2), 6, False),
        (layers.Conv2D(2, 3, padding="same", strides=2), 4, True),  # its gradient is a convolution of 2x2 images
        (layers.Conv2D(2, 3), 5, False),
        (layers.Conv2D(2, 3), 4, True),
        (layers.Conv2D(2, 1), 1, False),
    ],
)
def test_only_small_images_become_products(monkeypatch, layer, size, small):
    layer.build((1, size, size, 1))
    products, product = [], convolutions._product
    monkeypatch.setattr(convolutions, "_product", lambda *given: products.append(given) or product(*given))
    ((_, _, convolve),) = convolutions_as_products([layer], only_small=True)
    given = (
        ops.reshape(ops.arange(size * size, dtype="float32"), (1, size, size, 1)),
        ops.convert_to_tensor(layer.kernel),
    )
    found, expected = (ops.convert_to_numpy(one(*given)) for one in (convolve, layer.convolution_op))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert bool(products) == small


@pytest.mark.parametrize("only_small", [False, True])
def test_others_are_left_alone(only_small):
    class Own(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            return 2 * super().convolution_op(inputs, kernel)

    others = [
        Own(2, 3),
        layers.Conv2D(2, 3, groups=2),
        layers.Conv2D(2, 3, data_format="channels_first"),
        layers.Conv1D(2, 3),  # whose call does not use its convolution_op
        layers.DepthwiseConv2D(3),
        layers.Conv2DTranspose(2, 3),
        keras.layers.Dense(2),
    ]
    assert convolutions_as_products(others, only_small) == []
