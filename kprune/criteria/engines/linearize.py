"""The layers that SynFlow supports, and replacements for those that it cannot use as they are.

SynFlow needs a network whose output is positively homogeneous in each layer's weights. Layers are looked up by the
names of their classes, which Keras 3 and tf_keras share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from ...masks.below import all_layers, sublayers
from .convolutions import convolutions_as_products
from .precision import computing_in, first

# Taken as they are: f(c * x) = c * f(x) for c > 0 once biases and statistics count as inputs, in inference mode.
HOMOGENEOUS = {
    *("Dense", "EinsumDense", "InputLayer", "Flatten", "Reshape", "Permute", "RepeatVector", "Identity", "Masking"),
    "Activation",
    *("BatchNormalization", "PReLU", "LeakyReLU", "Add", "Average", "Concatenate", "Maximum", "Minimum"),
    "CustomScaleLayer",  # of keras.applications' InceptionResNetV2: a sum whose second part is scaled
    *("Dropout", "GaussianDropout", "AlphaDropout", "GaussianNoise", "SpatialDropout1D", "SpatialDropout2D"),
    *("SpatialDropout3D", "TimeDistributed", "ActivityRegularization", "SyncBatchNormalization"),
    *(f"{name}{n}D" for n in (1, 2, 3) for name in ("Conv", "SeparableConv", "DepthwiseConv", "ZeroPadding")),
    *(f"Conv{n}DTranspose" for n in (1, 2, 3)),
    *(f"{name}{n}D" for n in (1, 2, 3) for name in ("Cropping", "UpSampling", "MaxPooling", "AveragePooling")),
    *(f"Global{name}Pooling{n}D" for n in (1, 2, 3) for name in ("Max", "Average")),
}
# Replaced by the identity: activations without a homogeneous form, and the fixed preprocessing of the input.
IDENTITY = {"Softmax", "ELU", "Rescaling", "Normalization", "Resizing", "CenterCrop"}
# Loses its cap and its threshold; what stays is the homogeneous max(x, 0) with its negative slope.
RELU = "ReLU"
# Replaced by the geometric mean of its inputs, as for the gates of squeeze-and-excitation: like a product it is zero
# where either factor is, unlike a product it is homogeneous of degree one (EfficientNetB0's products leave float64).
MULTIPLY = "Multiply"
# Made of layers that could be seen through, but not used in a way that can.
REFUSED = {"RNN", "MultiHeadAttention", "GroupedQueryAttention", "GroupQueryAttention", "Bidirectional", "Attention"}
# Functions used as operations of a functional graph.
OPERATIONS = {
    *("Add", "Concatenate", "Reshape", "Transpose", "Squeeze", "ExpandDims", "Pad", "Mean", "Sum", "Relu", "LeakyRelu"),
    *("GetItem", "Stack", "MaxPool", "AveragePool", "Maximum", "Max", "Average", "Flip", "Moveaxis", "Flatten"),
}
# Those that scale what flows, where all but one of their factors are positive constants.
SCALINGS = {"Multiply", "Divide", "TrueDivide"}
_ACTIVATIONS = {"linear": "linear", "relu": "relu", "leaky_relu": "leaky_relu", "relu6": "relu"}


def assume_homogeneous(cls: type) -> type:
    """Declare a custom layer class positively homogeneous for SynFlow; usable as a decorator.

    True of a layer whose output doubles when its input and its biases double, in inference mode.

    >>> import keras, kprune
    >>> @kprune.criteria.assume_homogeneous
    ... class Scale(keras.layers.Layer):
    ...     def call(self, x): return 2 * x
    """
    HOMOGENEOUS.add(cls.__name__)
    return cls


def kind(layer: Any) -> str:
    """Return how SynFlow treats a layer ("as is", "identity", "relu", "multiply"); raise ValueError if unsupported."""
    names = [cls.__name__ for cls in type(layer).__mro__]
    for name in names:
        if name in REFUSED:
            break
        if name in HOMOGENEOUS:
            return "as is"
        if name in IDENTITY or (name.startswith("Random") and "preprocessing" in type(layer).__module__):
            return "identity"
        if name in (RELU, MULTIPLY):
            return name.lower()
    else:
        if "Model" in names or sublayers(layer):
            return "as is"  # a model, or a layer made of layers that are looked at one by one
    raise ValueError(
        "SynFlow requires positively homogeneous layers, and this layer is not known to be homogeneous. Use "
        "another criterion, or remove the layer. If the layer's output doubles when its input and its biases double, "
        "declare the layer with kprune.criteria.assume_homogeneous"
        f"({type(layer).__name__}). Received: layer={layer.name!r}, "
        f"class={_plain_name(layer)}"
    )


def activation_for(name: str) -> str:
    """Return the replacement for a named activation: itself if homogeneous, "relu" for "relu6", else "linear"."""
    return _ACTIVATIONS.get(name, "linear")


def homogeneous(
    layers: list[Any], activations: Callable[[str], Any], where: Callable[..., Any]
) -> list[tuple[Any, str, Any]]:
    """Return patches (layer, attribute name, value) that give the layers their homogeneous form.

    Args:
        layers: of either Keras.
        activations: takes a name, returns the function.
        where: of the backend.

    Raises ValueError if a layer cannot be linearized.
    """
    patches: list[tuple[Any, str, Any]] = []
    for layer in layers:
        what, activation = kind(layer), vars(layer).get("activation")
        if what == "identity":
            patches.append((layer, "call", first))
        elif what == "multiply":
            patches.append((layer, "call", functools.partial(geometric_mean, where=where)))
        elif what == "relu":
            patches += [(layer, "max_value", None), (layer, "threshold", 0)]
        elif callable(activation):
            name = activation_for(getattr(activation, "__name__", ""))
            patches.append((layer, "activation", activations(name)))
    return patches


@contextmanager
def linearized(model: Any, products: bool = False) -> Iterator[None]:
    """Make a Keras 3 model compute its homogeneous form in float64 within the context, and restore it afterwards.

    With `products`, convolutions are matrix products: see `kprune.criteria.engines.convolutions`.

    Raises ValueError, before anything is touched, if a layer cannot be linearized.
    """
    layers = all_layers(model)
    patches = homogeneous(layers, keras.activations.get, ops.where)
    if products:
        patches += convolutions_as_products(layers)
    for layer in layers:
        for operation in getattr(layer, "operations", []):
            if not isinstance(operation, keras.layers.Layer) and not _sees_through(operation):
                raise ValueError(
                    "SynFlow does not support this operation: replace it with a supported layer. Received: "
                    f"operation={type(operation).__name__}, name={operation.name!r}, layer={layer.name!r}"
                )
    with computing_in(model, "float64") as patch:
        for change in patches:
            patch(*change)
        yield


def _sees_through(operation: Any) -> bool:
    if type(operation).__name__ in OPERATIONS:
        return True
    if type(operation).__name__ not in SCALINGS:
        return False
    # The arguments of a graph's operations have no public name (checked with Keras 3.13.2 and 3.15.1; MobileNetV3's
    # hard-swish in tests/test_synflow.py).
    for node in operation._inbound_nodes:
        factors = list(node.arguments.args) + list(node.arguments.kwargs.values())
        constants = [factor for factor in factors if not isinstance(factor, keras.KerasTensor)]
        first_is_tensor = isinstance(factors[0], keras.KerasTensor)
        positive = all(np.all(ops.convert_to_numpy(factor) > 0) for factor in constants)
        if len(constants) != 1 or not positive or not (first_is_tensor or type(operation).__name__ == "Multiply"):
            return False
    return True


def geometric_mean(factors: list[Any], where: Callable[..., Any]) -> Any:
    """Return (x1 * ... * xn)^(1/n) of non-negative factors, or 0 with gradient 0 where a factor is not positive."""
    product: Any = None
    for x in factors:
        positive = x > 0
        root = where(positive, where(positive, x, 1.0) ** (1.0 / len(factors)), 0.0)
        product = root if product is None else product * root
    return product


def _plain_name(layer: Any) -> str:
    return type(layer).__name__.removeprefix("Masked")
