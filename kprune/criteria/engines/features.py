"""The inputs that a weight multiplies, as a matrix; each output of the layer is a weighted sum of these inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...masks import MaskedWeight, library_of
from ...masks.layout import TRANSPOSED, einsum_labels, label_axis, layout_of
from ...masks.types import is_a
from ...runtime.distribution import as_numpy
from .calls import Call, is_concrete

ENTRIES = 1 << 24  # of a matrix that is made at once


def features(calls: list[Call], weight: MaskedWeight) -> Iterator[np.ndarray]:
    """Yield the inputs of a weight in all calls of its layer, as matrices X (examples and positions, inputs).

    The layer computes X W (and its bias and activation), W the weight's layout with all but its last axis made one:
    inputs in the order of the kernel, of a convolution those at each position of its window.

    Raises:
        ValueError: the layer is no dense layer, EinsumDense or convolution of one group; or it was not called, or
            inside of a loop.

    >>> import keras, kprune
    >>> from kprune.criteria.base import Context
    >>> from kprune.criteria.engines.calls import calls_of
    >>> model = keras.Sequential([keras.Input((3, 1)), keras.layers.Conv1D(1, 2)])
    >>> _ = kprune.mask(model)
    >>> [weight] = kprune.masked_weights(model)
    >>> context = Context(model, [weight], {weight.path: weight.kept()})
    >>> [x.tolist() for x in features(calls_of(context, {"": np.array([[[1.0], [2.0], [3.0]]])}), weight)]
    [[[1.0, 2.0], [2.0, 3.0]]]
    """
    layer = library_of(weight.layer).owner(weight.layer, weight.variable)
    given = [call.given[0] for call in calls if call.layer is layer]
    if not (_is_supported(layer, weight) and given and all(is_concrete(tensor) for tensor in given)):
        raise ValueError(
            f"Cannot record the inputs of {weight.path}: only Dense, EinsumDense and ungrouped convolution layers "
            "are supported, and the layer must be called at least once, outside of any loop. Exclude the layer with "
            f"the `filters` argument of kprune.mask. Received: layer={layer.name!r}, "
            f"class={type(layer).__name__.removeprefix('Masked')}"
        )
    inputs = math.prod(layout_of(weight).shape[:-1])
    for tensor in given:
        value = as_numpy(tensor)
        if is_a(layer, "EinsumDense"):
            yield _summed_axes(layer, value).reshape(-1, inputs)
        elif is_a(layer, "Dense"):
            yield value.reshape(-1, inputs)
        else:
            yield from (windows.reshape(-1, inputs) for windows in _windows(layer, weight.shape, value))


def _is_supported(layer: Any, weight: MaskedWeight) -> bool:
    if is_a(layer, "EinsumDense"):
        given, kernel, output = einsum_labels(layer)
        # A label of kernel, input and output gives each of its outputs inputs of their own.
        return len(given) > 0 and all((label in given) != (label in output) for label in kernel)
    other = is_a(layer, *TRANSPOSED, *(f"{kind}Conv{n}D" for kind in ("Depthwise", "Separable") for n in (1, 2)))
    conv = is_a(layer, "Conv1D", "Conv2D", "Conv3D") and not other and layer.groups == 1
    return getattr(layer, "kernel", None) is weight.variable and (is_a(layer, "Dense") or conv)


def _summed_axes(layer: Any, value: np.ndarray) -> np.ndarray:
    """Move the axes that an EinsumDense sums over to the end, in the kernel's order."""
    given, kernel, _ = einsum_labels(layer)
    axes = [label_axis(given, label) % value.ndim for label in kernel if label in given]
    return value.transpose(*(axis for axis in range(value.ndim) if axis not in axes), *axes)


def _windows(layer: Any, kernel: tuple[int, ...], value: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the windows of a convolution as arrays (examples, positions ..., window ..., channels)."""
    if layer.data_format == "channels_first":
        value = np.moveaxis(value, 1, -1)
    sizes, rank = kernel[:-2], len(kernel) - 2
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, layer.dilation_rate, strict=True)]
    pads = [_padding(layer.padding, n, r, s) for n, r, s in zip(value.shape[1:-1], reach, layer.strides, strict=True)]
    value = np.pad(value, [(0, 0), *pads, (0, 0)])
    axes = tuple(range(1, rank + 1))
    seen = np.lib.stride_tricks.sliding_window_view(value, reach, axis=axes)  # (n, positions, channels, window)
    places = tuple(slice(None, None, stride) for stride in layer.strides)
    inside = tuple(slice(None, None, dilation) for dilation in layer.dilation_rate)
    seen = np.moveaxis(seen[(slice(None), *places, slice(None), *inside)], rank + 1, -1)
    step = max(1, ENTRIES // math.prod(seen.shape[1:]))
    for start in range(0, len(seen), step):
        yield seen[start : start + step]


def _padding(padding: str, size: int, reach: int, stride: int) -> tuple[int, int]:
    """Return how many zeros are added at the start and at the end of an axis."""
    if padding == "causal":
        return reach - 1, 0
    total = max((-(-size // stride) - 1) * stride + reach - size, 0) if padding == "same" else 0
    return total // 2, total - total // 2
