"""Conv-2, Conv-4 and Conv-6: the small VGG-like networks of the lottery ticket paper."""

from __future__ import annotations

from typing import Any

from ._build import Network, Shape


def _conv(name: str, blocks: int, input_shape: Shape, classes: int, width: float, library: Any) -> Any:
    net = Network(name, input_shape, classes, width, library, smallest=2**blocks)
    x = net.input
    for block, filters in enumerate((64, 128, 256)[:blocks], start=1):
        x = net.conv(x, filters, name=f"block{block}_conv1", activation="relu")
        x = net.conv(x, filters, name=f"block{block}_conv2", activation="relu")
        x = net.max_pool(x, name=f"block{block}_pool")
    x = net.dense(net.flatten(x), 256, name="dense1")
    x = net.dense(x, 256, name="dense2")
    return net.logits(x)


def conv_2(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """Conv-2 of the lottery ticket paper (arXiv:1803.03635), for CIFAR-10.

    Two 3x3 convolutions with biases and no normalization, in pairs of 64 channels, 2x2 max
    pooling after each pair, and two dense layers of 256 units: 4,300,992 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image, at least 2x2 pixels.
        classes: number of logits.
        width: multiplies the hidden channels and units (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.conv_2(width=0.1).output_shape
        (None, 10)
    """
    return _conv("conv_2", 1, input_shape, classes, width, library)


def conv_4(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """Conv-4 of the lottery ticket paper (arXiv:1803.03635), for CIFAR-10.

    Four 3x3 convolutions with biases and no normalization, in pairs of 64 and 128 channels, 2x2 max
    pooling after each pair, and two dense layers of 256 units: 2,425,024 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image, at least 4x4 pixels.
        classes: number of logits.
        width: multiplies the hidden channels and units (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.conv_4(width=0.1).output_shape
        (None, 10)
    """
    return _conv("conv_4", 2, input_shape, classes, width, library)


def conv_6(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """Conv-6 of the lottery ticket paper (arXiv:1803.03635), for CIFAR-10.

    Six 3x3 convolutions with biases and no normalization, in pairs of 64, 128 and 256 channels, 2x2 max
    pooling after each pair, and two dense layers of 256 units: 2,261,184 prunable weights by default.
    (The paper's table says 1.7 million; the layers it lists give this number.)

    Args:
        input_shape: (height, width, channels) of one image, at least 8x8 pixels.
        classes: number of logits.
        width: multiplies the hidden channels and units (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.conv_6(width=0.1).output_shape
        (None, 10)
    """
    return _conv("conv_6", 3, input_shape, classes, width, library)
