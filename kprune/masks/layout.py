"""Layouts that present any layer's weight as (..., in, out), so that patterns need not know about layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .keras3 import is_depthwise
from .libraries import library_of
from .types import MaskedWeight, is_a

# Their kernels end in (..., out, in).
TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")


@dataclass(frozen=True)
class Layout:
    """The mapping of a weight's axes to (..., in, out): the layer sums over `in`, and `out` indexes its outputs.

    Attributes:
        given: the weight's own shape.
        axes: its axes in the order of the layout.
        shape: the layout's shape, with the same number of entries.

    >>> transposed = Layout((3, 8, 4), axes=(0, 2, 1), shape=(3, 4, 8))  # the kernel of a Conv1DTranspose
    >>> kernel = np.arange(96).reshape(3, 8, 4)
    >>> transposed.canonical(kernel).shape
    (3, 4, 8)
    >>> bool((transposed.original(transposed.canonical(kernel)) == kernel).all())
    True
    """

    given: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """Rearrange an array of the weight's shape as (..., in, out)."""
        return array.transpose(self.axes).reshape(self.shape)

    def original(self, array: np.ndarray) -> np.ndarray:
        """Rearrange an array of shape (..., in, out) to the weight's shape."""
        return array.reshape([self.given[axis] for axis in self.axes]).transpose(np.argsort(self.axes))


def layout_of(weight: MaskedWeight) -> Layout:
    """Return the layout of a masked weight of Keras 3 or tf_keras (see `layout_in`).

    >>> import keras, kprune
    >>> x = keras.Input((5, 16))
    >>> model = keras.Model(x, keras.layers.MultiHeadAttention(num_heads=4, key_dim=3)(x, x))
    >>> _ = kprune.mask(model)
    >>> query, *_, output = kprune.masked_weights(model)
    >>> query.shape, layout_of(query).shape
    ((16, 4, 3), (16, 12))
    >>> output.shape, layout_of(output).shape
    ((4, 3, 16), (12, 16))
    """
    return layout_in(library_of(weight.layer).owner(weight.layer, weight.variable), weight.variable)


def layout_in(layer: Any, variable: Any) -> Layout:
    """Return the layout of a variable in the layer that uses it.

    - dense, recurrent and convolution kernels (h, w, in, out): as they are;
    - transposed convolution (h, w, out, in): (h, w, in, out);
    - depthwise kernel (h, w, c, m), or (h, w, 1, c * m) of a convolution with a group per channel: (h * w, c * m), as
      each of the c * m outputs sees one channel through a window;
    - EinsumDense, and with it MultiHeadAttention and GroupQueryAttention: (the axes that the equation sums over, the
      axes of the output), each of them flattened, in the kernel's order;
    - any other weight, embeddings among them: as it is.
    """
    shape = tuple(int(size) for size in variable.shape)
    axes = range(len(shape))
    if is_a(layer, *TRANSPOSED):
        order = (*axes[:-2], axes[-1], axes[-2])
        return Layout(shape, order, tuple(shape[axis] for axis in order))
    if is_a(layer, "EinsumDense"):
        _, kernel, output = einsum_labels(layer)
        outgoing = [axis for axis in axes if kernel[axis] in output]
    elif is_depthwise(layer, variable) or getattr(layer, "depthwise_kernel", None) is variable:
        outgoing = list(axes[-2:])
    else:
        return Layout(shape, tuple(axes), shape)
    incoming = [axis for axis in axes if axis not in outgoing]
    flat = tuple(math.prod(shape[axis] for axis in part) for part in (incoming, outgoing))
    return Layout(shape, (*incoming, *outgoing), flat)


def einsum_labels(layer: Any) -> tuple[str, str, str]:
    """Split the equation of an EinsumDense layer: "...x,xy->...y" becomes ("...x", "xy", "...y")."""
    left, _, output = layer.equation.replace(" ", "").partition("->")
    given, _, kernel = left.partition(",")
    return given, kernel, output


def label_axis(labels: str, label: str) -> int:
    """Return the tensor axis of an einsum label, counted from the end if the label follows an ellipsis.

    >>> label_axis("ab...", "b"), label_axis("...xy", "y")
    (1, -1)
    """
    before, _, after = labels.partition("...")
    return before.index(label) if label in before else after.index(label) - len(after)
