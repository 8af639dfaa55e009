"""ResNets (arXiv:1512.03385): narrow networks for CIFAR, and ImageNet networks with a stem for either data set.

Every shortcut that changes the map or the channels is a 1x1 convolution with batch normalization. It is
prunable, and counted in the numbers below. (The paper's own CIFAR networks have no weights there; those of
the SynFlow paper's code, whose counts these are, do.)
"""

from __future__ import annotations

from typing import Any

from ._build import Network, Shape, require

_EXPANSION = 4


def _basic(net: Network, x: Any, filters: int, strides: int, name: str) -> Any:
    x = net.conv_bn(x, filters, name=f"{name}_conv1", strides=strides)
    return net.conv_bn(x, filters, name=f"{name}_conv2", relu=False)


def _bottleneck(net: Network, x: Any, filters: int, strides: int, name: str) -> Any:
    x = net.conv_bn(x, filters, 1, name=f"{name}_conv1")
    # The paper strides the 1x1 convolution; torchvision, and so most pruning code, strides this one.
    x = net.conv_bn(x, filters, name=f"{name}_conv2", strides=strides)
    return net.conv_bn(x, filters * _EXPANSION, 1, name=f"{name}_conv3", relu=False)


_IMAGENET = {
    18: ((2, 2, 2, 2), _basic),
    34: ((3, 4, 6, 3), _basic),
    50: ((3, 4, 6, 3), _bottleneck),
}


def _stages(net: Network, x: Any, blocks: tuple[int, ...], filters: int, residual: Any) -> Any:
    for stage, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            name = f"stage{stage}_block{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            shortcut = x
            x = residual(net, x, filters, strides, name)
            if strides > 1 or shortcut.shape[-1] != x.shape[-1]:
                outputs = filters * (_EXPANSION if residual is _bottleneck else 1)
                shortcut = net.conv_bn(shortcut, outputs, 1, name=f"{name}_shortcut", strides=strides, relu=False)
            x = net.relu(net.add(x, shortcut, name=f"{name}_add"), name=f"{name}_relu")
        filters *= 2
    return net.logits(net.global_pool(x))


def _for_cifar(depth: int, input_shape: Shape, classes: int, width: float, library: Any) -> Any:
    net = Network(f"resnet_{depth}", input_shape, classes, width, library)
    return _stages(net, net.conv_bn(net.input, 16, name="conv1"), ((depth - 2) // 6,) * 3, 16, _basic)


def _for_imagenet(depth: int, stem: str, input_shape: Shape, classes: int, width: float, library: Any) -> Any:
    require(stem in ("cifar", "imagenet"), "`stem` must be 'cifar' or 'imagenet'.", stem=stem)
    net = Network(f"resnet_{depth}", input_shape, classes, width, library)
    if stem == "cifar":
        x = net.conv_bn(net.input, 64, name="conv1")
    else:
        x = net.conv_bn(net.input, 64, 7, name="conv1", strides=2)
        # Zeros are as good as minus infinity here: the ReLU before left nothing below them.
        x = net.max_pool(net.pad(x, 1, name="pool1_pad"), 3, name="pool1")
    blocks, residual = _IMAGENET[depth]
    return _stages(net, x, blocks, 64, residual)


def resnet_20(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """ResNet-20 for CIFAR (arXiv:1512.03385): three stages of 3 basic blocks with 16, 32 and 64 channels.

    With its two 1x1 shortcut convolutions it has 270,896 prunable weights by default.

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
        >>> models.resnet_20(width=0.1).output_shape
        (None, 10)
    """
    return _for_cifar(20, input_shape, classes, width, library)


def resnet_32(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """ResNet-32 for CIFAR (arXiv:1512.03385): three stages of 5 basic blocks with 16, 32 and 64 channels.

    With its two 1x1 shortcut convolutions it has 464,432 prunable weights by default.

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
        >>> models.resnet_32(width=0.1).output_shape
        (None, 10)
    """
    return _for_cifar(32, input_shape, classes, width, library)


def resnet_44(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """ResNet-44 for CIFAR (arXiv:1512.03385): three stages of 7 basic blocks with 16, 32 and 64 channels.

    With its two 1x1 shortcut convolutions it has 657,968 prunable weights by default.

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
        >>> models.resnet_44(width=0.1).output_shape
        (None, 10)
    """
    return _for_cifar(44, input_shape, classes, width, library)


def resnet_56(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """ResNet-56 for CIFAR (arXiv:1512.03385): three stages of 9 basic blocks with 16, 32 and 64 channels.

    With its two 1x1 shortcut convolutions it has 851,504 prunable weights by default.

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
        >>> models.resnet_56(width=0.1).output_shape
        (None, 10)
    """
    return _for_cifar(56, input_shape, classes, width, library)


def resnet_110(input_shape: Shape = (32, 32, 3), classes: int = 10, width: float = 1.0, *, library: Any = None) -> Any:
    """ResNet-110 for CIFAR (arXiv:1512.03385): three stages of 18 basic blocks with 16, 32 and 64 channels.

    With its two 1x1 shortcut convolutions it has 1,722,416 prunable weights by default.

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
        >>> models.resnet_110(width=0.1).output_shape
        (None, 10)
    """
    return _for_cifar(110, input_shape, classes, width, library)


def resnet_18(
    input_shape: Shape = (32, 32, 3),
    classes: int = 10,
    width: float = 1.0,
    *,
    stem: str = "cifar",
    library: Any = None,
) -> Any:
    """ResNet-18 (arXiv:1512.03385): stages of 2, 2, 2 and 2 basic blocks with 64 to 512 channels.

    With its three 1x1 shortcut convolutions it has 11,164,352 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the channels of every layer (rounded, at least 1).
        stem: "cifar" for a 3x3 convolution, "imagenet" for a 7x7 one of stride 2 and a 3x3 max pooling.
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.resnet_18(width=0.1).output_shape
        (None, 10)
    """
    return _for_imagenet(18, stem, input_shape, classes, width, library)


def resnet_34(
    input_shape: Shape = (32, 32, 3),
    classes: int = 10,
    width: float = 1.0,
    *,
    stem: str = "cifar",
    library: Any = None,
) -> Any:
    """ResNet-34 (arXiv:1512.03385): stages of 3, 4, 6 and 3 basic blocks with 64 to 512 channels.

    With its three 1x1 shortcut convolutions it has 21,265,088 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the channels of every layer (rounded, at least 1).
        stem: "cifar" for a 3x3 convolution, "imagenet" for a 7x7 one of stride 2 and a 3x3 max pooling.
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.resnet_34(width=0.1).output_shape
        (None, 10)
    """
    return _for_imagenet(34, stem, input_shape, classes, width, library)


def resnet_50(
    input_shape: Shape = (224, 224, 3),
    classes: int = 10,
    width: float = 1.0,
    *,
    stem: str = "imagenet",
    library: Any = None,
) -> Any:
    """ResNet-50 (arXiv:1512.03385): stages of 3, 4, 6 and 3 bottleneck blocks with 64 to 512 channels.

    With its four 1x1 shortcut convolutions it has 23,475,392 prunable weights by default.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the channels of every layer (rounded, at least 1).
        stem: "cifar" for a 3x3 convolution, "imagenet" for a 7x7 one of stride 2 and a 3x3 max pooling.
        library: the Keras to build with: None for Keras 3, or the module `tf_keras`.

    Returns:
        A built Functional model: images (batch, *input_shape) to logits (batch, classes), no softmax.

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune import models
        >>> models.resnet_50((32, 32, 3), width=0.1).output_shape
        (None, 10)
    """
    return _for_imagenet(50, stem, input_shape, classes, width, library)
