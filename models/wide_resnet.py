"""Wide ResNet: fewer layers than a ResNet, with more channels in each."""

from __future__ import annotations

from typing import Any

from ._build import Network, Shape, require


def _block(net: Network, x: Any, filters: int, strides: int, name: str) -> Any:
    y = net.relu(net.norm(x, name=f"{name}_bn1"), name=f"{name}_relu1")
    if strides > 1 or x.shape[-1] != net.units(filters):
        # As in the authors' code: this shortcut starts behind the activation and has no normalization.
        x = net.conv(y, filters, 1, name=f"{name}_shortcut", strides=strides, use_bias=False)
    y = net.conv_bn(y, filters, name=f"{name}_conv1", strides=strides)
    y = net.conv(y, filters, name=f"{name}_conv2", use_bias=False)
    return net.add(x, y, name=f"{name}_add")


def wide_resnet(
    input_shape: Shape = (32, 32, 3),
    classes: int = 10,
    width: float = 10.0,
    *,
    depth: int = 28,
    library: Any = None,
) -> Any:
    """Wide ResNet for CIFAR (arXiv:1605.07146), WRN-28-10 by default, without dropout.

    Basic blocks with the normalization and ReLU before each convolution, in three stages of 16, 32 and 64
    channels times the widening factor. With its three 1x1 shortcut convolutions it has 36,461,232 prunable
    weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: the widening factor k of the stages' channels (rounded, at least 1); the stem keeps its 16.
        depth: layers, at least 10, and 4 more than a multiple of 6.
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.wide_resnet(width=1, depth=10).output_shape
        (None, 10)
    """
    require(
        isinstance(depth, int) and depth >= 10 and depth % 6 == 4,
        "`depth` must be at least 10, and 4 more than a multiple of 6, such as 10, 16, 22 or 28.",
        depth=depth,
    )
    net = Network("wide_resnet", input_shape, classes, width, library)
    x = net.conv(net.input, 16, name="conv1", scale=False, use_bias=False)
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, (depth - 4) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(net, x, filters, strides, f"stage{stage}_block{block}")
    x = net.relu(net.norm(x, name="bn"), name="relu")
    return net.logits(net.global_pool(x))
