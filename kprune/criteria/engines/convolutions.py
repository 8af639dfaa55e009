"""Convolutions as matrix products, where a compiler has fast products but slow convolutions.

XLA on a CPU is such a compiler for float64: SynFlow's scores of VGG-16 took it four to eight times as much processor
time by its own convolution (JAX 0.10). For float32 its convolution takes 20 to 30 times as long as the product where a
window has more positions than the output, and otherwise mostly less time than the product.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import keras
from keras import ops

from ...masks.masked_layers import plain_type


def is_plain_convolution(layer: Any) -> bool:
    """Return whether the layer is a Keras 3 convolution that equals a matrix product of input windows and its kernel.

    Those with channels first, with groups, or with a `convolution_op` or a `call` of their own are none; the `call` of
    Conv1D goes past its `convolution_op`.
    """
    return (
        getattr(type(layer), "convolution_op", None) is keras.layers.Conv2D.convolution_op
        and getattr(plain_type(layer), "call", None) is keras.layers.Conv2D.call
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and layer.padding in ("same", "valid")
    )


def convolutions_as_products(layers: list[Any], only_small: bool = False) -> list[tuple[Any, str, Any]]:
    """Return (layer, "convolution_op", replacement) for each Keras 3 convolution that can be a matrix product.

    With `only_small`, a replacement uses the product only where the output has fewer positions than a window has.
    """
    product = _product_if_small if only_small else _product
    plain = filter(is_plain_convolution, layers)
    return [(layer, "convolution_op", functools.partial(product, layer)) for layer in plain]


def _product_if_small(layer: Any, inputs: Any, kernel: Any) -> Any:
    # The base class's method, since one of the layer's own may leave sizes unknown.
    positions, window = keras.layers.Conv2D.compute_output_shape(layer, inputs.shape)[1:-1], kernel.shape[:-2]
    convolve = _product if math.prod(positions) < math.prod(window) else type(layer).convolution_op
    return convolve(layer, inputs, kernel)


def _product(layer: Any, inputs: Any, kernel: Any) -> Any:
    """Compute the result of `layer.convolution_op` as the product of a matrix of input windows and the kernel."""
    rows = windows(layer, inputs, kernel.shape)
    return ops.matmul(rows, ops.reshape(kernel, (rows.shape[-1], kernel.shape[-1])))


def windows(layer: Any, inputs: Any, shape: tuple[int, ...]) -> Any:
    """Return the input windows that the kernel is applied to, as (batch, *positions, entries of a window).

    Args:
        layer: its strides, padding and dilation count.
        inputs: (batch, *positions, channels).
        shape: of the kernel: (*window, channels, filters).
    """
    starts, lengths, padding = [], [], []
    steps = zip(shape[:-2], layer.strides, layer.dilation_rate, strict=True)
    for axis, (size, stride, dilation) in enumerate(steps, 1):
        reach, available = (size - 1) * dilation + 1, inputs.shape[axis]
        length = -(-available // stride) if layer.padding == "same" else (available - reach) // stride + 1
        missing = max((length - 1) * stride + reach - available, 0)
        padding.append((missing // 2, missing - missing // 2))
        starts.append([k * dilation for k in range(size)])
        lengths.append((length - 1) * stride + 1)
    padded = ops.pad(inputs, [(0, 0), *padding, (0, 0)])
    shifted = [
        padded[:, *(slice(a, a + n, s) for a, n, s in zip(start, lengths, layer.strides, strict=True))]
        for start in itertools.product(*starts)
    ]
    return ops.concatenate(shifted, axis=-1)
