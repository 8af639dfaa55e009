"""VGG with batch normalization in the CIFAR form of the SynFlow paper's code (arXiv:2006.05467).

Five blocks of 3x3 convolutions, each with batch normalization and ReLU; 2x2 max pooling after the first four
blocks, the average over all pixels after the last, and one dense classifier. A max pooling is left out where
the map is already one pixel high or wide, so that small images work. The authors' convolutions have biases
too; the batch normalization behind each cancels them, so ours have none.
"""

from __future__ import annotations

from typing import Any

from ._build import Network, Shape

_CONVS_PER_BLOCK = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_FILTERS = (64, 128, 256, 512, 512)


def _vgg(depth: int, input_shape: Shape, classes: int, width: float, library: Any) -> Any:
    net = Network(f"vgg_{depth}", input_shape, classes, width, library)
    x = net.input
    for block, (convs, filters) in enumerate(zip(_CONVS_PER_BLOCK[depth], _FILTERS, strict=True), start=1):
        if block > 1 and min(x.shape[1:3]) > 1:
            x = net.max_pool(x, name=f"block{block - 1}_pool")
        for conv in range(1, convs + 1):
            x = net.conv_bn(x, filters, name=f"block{block}_conv{conv}")
    return net.logits(net.global_pool(x))


def vgg_11(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """VGG-11 with batch normalization (arXiv:1409.1556), in the CIFAR form of the SynFlow paper's code.

    8 convolutions without biases and one dense layer: 9,222,848 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the channels of every layer (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.vgg_11(width=0.1).output_shape
        (None, 10)
    """
    return _vgg(11, input_shape, classes, width, library)


def vgg_13(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """VGG-13 with batch normalization (arXiv:1409.1556), in the CIFAR form of the SynFlow paper's code.

    10 convolutions without biases and one dense layer: 9,407,168 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the channels of every layer (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.vgg_13(width=0.1).output_shape
        (None, 10)
    """
    return _vgg(13, input_shape, classes, width, library)


def vgg_16(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """VGG-16 with batch normalization (arXiv:1409.1556), in the CIFAR form of the SynFlow paper's code.

    13 convolutions without biases and one dense layer: 14,715,584 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the channels of every layer (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.vgg_16(width=0.1).output_shape
        (None, 10)
    """
    return _vgg(16, input_shape, classes, width, library)


def vgg_19(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """VGG-19 with batch normalization (arXiv:1409.1556), in the CIFAR form of the SynFlow paper's code.

    16 convolutions without biases and one dense layer: 20,024,000 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the channels of every layer (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.vgg_19(width=0.1).output_shape
        (None, 10)
    """
    return _vgg(19, input_shape, classes, width, library)
