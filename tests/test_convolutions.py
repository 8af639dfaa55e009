"""Convolutions as matrix products are what Keras's own convolutions are."""

import keras
import numpy as np
import pytest
from keras import layers, ops

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


def test_others_are_left_alone():
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
    assert convolutions_as_products(others) == []
