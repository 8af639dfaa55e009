"""The two LeNets of the pruning papers."""

from __future__ import annotations

from typing import Any

from ._build import Network, Shape


def lenet_300_100(
    input_shape: Shape | tuple[int] = (28, 28, 1), classes: int = 10, width: float = 1.0, *, library: Any = None
) -> Any:
    """LeNet-300-100 for MNIST, as pruned by Han et al. (arXiv:1506.02626): two hidden dense layers.

    266,200 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image; or (features,), for data of another kind.
        classes: number of logits.
        width: multiplies the hidden units (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.lenet_300_100().count_params()
        266610
    """
    net = Network("lenet_300_100", input_shape, classes, width, library, flat=True)
    x = net.flatten(net.input)
    x = net.dense(x, 300, name="dense1")
    x = net.dense(x, 100, name="dense2")
    return net.logits(x)


def lenet_5(input_shape: Shape = (28, 28, 1), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """LeNet-5 for MNIST in Caffe's form, as pruned by Han et al. (arXiv:1506.02626).

    Two 5x5 convolutions of 20 and 50 channels without padding, each with ReLU and 2x2 max pooling, and
    500 dense units: 430,500 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image, at least 16x16 pixels.
        classes: number of logits.
        width: multiplies the hidden channels and units (rounded, at least 1).
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.lenet_5(width=0.1).output_shape
        (None, 10)
    """
    net = Network("lenet_5", input_shape, classes, width, library, smallest=16)
    x = net.conv(net.input, 20, 5, name="conv1", padding="valid", activation="relu")
    x = net.max_pool(x, name="pool1")
    x = net.conv(x, 50, 5, name="conv2", padding="valid", activation="relu")
    x = net.max_pool(x, name="pool2")
    x = net.dense(net.flatten(x), 500, name="dense1")
    return net.logits(x)
