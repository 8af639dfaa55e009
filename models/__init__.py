"""Reference networks of the pruning papers, for Keras 3 and tf_keras.

Each is a function `(input_shape, classes, width, *, library=None)` that returns a built Functional model.
They return logits, without softmax: train with a loss that has `from_logits=True`. Images are channels last.
"Prunable weights" in the docstrings are the kernels of convolutions and dense layers, without biases and
batch normalization, as the papers count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._build import require
from .conv import conv_2, conv_4, conv_6
from .lenet import lenet_5, lenet_300_100
from .resnet import (
    resnet_18,
    resnet_20,
    resnet_32,
    resnet_34,
    resnet_44,
    resnet_50,
    resnet_56,
    resnet_110,
)
from .vgg import vgg_11, vgg_13, vgg_16, vgg_19
from .wide_resnet import wide_resnet

_NETWORKS: tuple[Callable[..., Any], ...] = (
    lenet_300_100,
    lenet_5,
    conv_2,
    conv_4,
    conv_6,
    vgg_11,
    vgg_13,
    vgg_16,
    vgg_19,
    resnet_18,
    resnet_20,
    resnet_32,
    resnet_34,
    resnet_44,
    resnet_50,
    resnet_56,
    resnet_110,
    wide_resnet,
)

MODELS: dict[str, Callable[..., Any]] = {network.__name__.replace("_", "-"): network for network in _NETWORKS}
"""The networks by the name they have on the command line: "vgg-16" is `vgg_16`."""


def get(name: str) -> Callable[..., Any]:
    """Return the function that builds the reference network with this name.

    Args:
        name: a key of `MODELS`, such as "vgg-16".

    Returns:
        The function that builds it.

    Raises:
        ValueError: there is no such network; the message lists those there are.

    Example:
        >>> from kprune import models
        >>> models.get("lenet-300-100")(classes=3).output_shape
        (None, 3)
    """
    require(
        isinstance(name, str) and name in MODELS,
        f"`name` must be one of {', '.join(MODELS)}.",
        name=name,
    )
    return MODELS[name]


__all__ = ["MODELS", "get", *(network.__name__ for network in _NETWORKS)]
