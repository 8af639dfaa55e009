"""Argument checks and named layers shared by the reference networks, for Keras 3 and tf_keras."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

Shape = tuple[int, int, int]


def require(condition: bool, expected: str, **received: object) -> None:
    """Raise a ValueError that says what was expected and ends in "Received: name=value".

    Args:
        condition: whether the argument is right.
        expected: a sentence that says what a right one looks like.
        **received: the argument, by its name.

    Raises:
        ValueError: `condition` is false.

    Example:
        >>> from kprune.models._build import require
        >>> require(False, "classes must be at least 1.", classes=0)
        Traceback (most recent call last):
        ...
        ValueError: classes must be at least 1. Received: classes=0
    """
    if not condition:
        values = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise ValueError(f"{expected} Received: {values}")


class Network:
    """A network under construction: each method adds named layers to a tensor and returns the new tensor.

    All kernels start from He's normal distribution, as in the code of the pruning papers.

    Args:
        name: the model's name.
        input_shape: (height, width, channels) of one image.
        classes: number of logits.
        width: multiplies the units and channels asked for.
        library: a Keras module, or None for Keras 3.
        smallest: the fewest pixels, in height and in width, that the network can take.
        flat: whether it takes vectors, too, of shape (features,).

    Raises:
        ValueError: an argument is out of range; nothing has been built.

    Example:
        >>> from kprune.models._build import Network
        >>> net = Network("tiny", (8, 8, 1), classes=10, width=0.5, library=None)
        >>> net.logits(net.flatten(net.conv_bn(net.input, 6, name="conv1"))).get_layer("conv1").filters
        3
    """

    def __init__(
        self,
        name: str,
        input_shape: Shape | tuple[int],
        classes: int,
        width: float,
        library: Any,
        smallest: int = 1,
        flat: bool = False,
    ) -> None:
        require(
            isinstance(input_shape, (tuple, list))
            and len(input_shape) in ((1, 3) if flat else (3,))
            and all(isinstance(size, Integral) and size >= 1 for size in input_shape),
            f"`input_shape` must be (height, width, channels){' or (features,)' if flat else ''}, with integers >= 1.",
            input_shape=input_shape,
        )
        require(
            len(input_shape) == 1 or min(input_shape[:2]) >= smallest,
            f"Images for {name} must be at least {smallest}x{smallest} pixels.",
            input_shape=input_shape,
        )
        require(
            isinstance(classes, Integral) and classes >= 1,
            "`classes` must be an integer >= 1.",
            classes=classes,
        )
        require(
            isinstance(width, Real) and math.isfinite(width) and width > 0,
            "`width` must be a finite number above 0.",
            width=width,
        )
        if library is None:
            # Here and not at the top: a program that uses tf_keras alone need not have Keras 3.
            import keras

            library = keras
        require(
            hasattr(library, "layers") and hasattr(library, "Model"),
            "`library` must be a Keras module (keras or tf_keras) or None.",
            library=library,
        )
        self._name = name
        self._library = library
        self._classes = int(classes)
        self._width = float(width)
        # The networks are written for channels last, whatever the user's keras.json says.
        self._format = {"data_format": "channels_last"}
        self.input = library.Input(shape=tuple(int(size) for size in input_shape), name="input")

    def units(self, count: int) -> int:
        """Return `count` times the width, rounded to an integer and at least 1."""
        return max(1, round(count * self._width))

    def conv(
        self,
        x: Any,
        filters: int,
        kernel: int = 3,
        *,
        name: str,
        strides: int = 1,
        padding: str = "same",
        scale: bool = True,
        **options: Any,
    ) -> Any:
        """Add a convolution with a square kernel and `filters` channels (times the width if `scale` is true)."""
        if strides > 1 and kernel > 1:
            # "same" would pad such a convolution on the right and at the bottom only, and the network
            # would not be the paper's.
            x = self.pad(x, kernel // 2, name=f"{name}_pad")
            padding = "valid"
        return self._library.layers.Conv2D(
            self.units(filters) if scale else filters,
            kernel,
            strides=strides,
            padding=padding,
            kernel_initializer="he_normal",
            name=name,
            **self._format,
            **options,
        )(x)

    def conv_bn(self, x: Any, filters: int, kernel: int = 3, *, name: str, strides: int = 1, relu: bool = True) -> Any:
        """Add a convolution without bias, its batch normalization and, if `relu`, a ReLU."""
        x = self.conv(x, filters, kernel, name=name, strides=strides, use_bias=False)
        x = self.norm(x, name=f"{name}_bn")
        return self.relu(x, name=f"{name}_relu") if relu else x

    def norm(self, x: Any, *, name: str) -> Any:
        """Add batch normalization with the constants of the PyTorch code that the papers used."""
        # Keras's momentum is 1 - PyTorch's.
        return self._library.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)

    def relu(self, x: Any, *, name: str) -> Any:
        """Add a ReLU."""
        return self._library.layers.ReLU(name=name)(x)

    def add(self, x: Any, y: Any, *, name: str) -> Any:
        """Add a layer that sums two tensors."""
        return self._library.layers.Add(name=name)([x, y])

    def pad(self, x: Any, pixels: int, *, name: str) -> Any:
        """Add a border of zeros on all four sides."""
        return self._library.layers.ZeroPadding2D(pixels, name=name, **self._format)(x)

    def max_pool(self, x: Any, size: int = 2, *, name: str) -> Any:
        """Add max pooling with stride 2."""
        return self._library.layers.MaxPooling2D(size, strides=2, name=name, **self._format)(x)

    def global_pool(self, x: Any) -> Any:
        """Add average pooling over all pixels, for feature maps of any size."""
        return self._library.layers.GlobalAveragePooling2D(name="pool", **self._format)(x)

    def flatten(self, x: Any) -> Any:
        """Add a layer that flattens a feature map into a vector."""
        return self._library.layers.Flatten(name="flatten", **self._format)(x)

    def dense(self, x: Any, units: int, *, name: str) -> Any:
        """Add a dense ReLU layer with `units` units, times the width."""
        layer = self._library.layers.Dense(
            self.units(units), activation="relu", kernel_initializer="he_normal", name=name
        )
        return layer(x)

    def logits(self, x: Any) -> Any:
        """Add the dense classifier and return the finished model."""
        layer = self._library.layers.Dense(self._classes, kernel_initializer="he_normal", name="classifier")
        return self._library.Model(self.input, layer(x), name=self._name)
