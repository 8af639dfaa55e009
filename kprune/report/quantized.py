"""Find which entries of Keras 3's quantized kernels are 0 after dequantization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ..masks.layout import einsum_labels
from ..runtime.distribution import to_numpy

_PACKED = {keras.layers.Dense: ("int4", "gptq", "awq"), keras.layers.EinsumDense: ("int4",)}
SCALES = ("kernel_scale", "kernel_zero")
"""What a quantized layer holds beside its kernel: no kernels, though of rank 2."""


def kept(layer: Any, v: Any, read: Callable[[Any], np.ndarray] = to_numpy) -> np.ndarray:
    """Return which entries of a weight are nonzero after dequantization, as a bool array of the dequantized shape.

    `read` takes a variable and gives its value, in the model or in a file.

    Two 4-bit integers q are packed into a byte, and a value is (q - z) / scale. Where blocks of inputs have a zero
    point z of their own, an integer 0 is no zero, and a zero no integer 0. GPTQ and AWQ store (out, in).
    """
    value = read(v)
    if not is_packed(layer, v):
        return value != 0
    if isinstance(layer, keras.layers.EinsumDense):
        return _kept_of_einsum(layer, value, read)
    inputs = int(layer.input_spec.axes[-1])
    transposed = layer.quantization_mode != "int4"
    whole = (layer.units, inputs) if transposed else (inputs, layer.units)
    q = _unpacked(value, whole, "uint8" if transposed else "int8")
    zero = getattr(layer, "kernel_zero", None)
    if zero is None:
        return q != 0
    groups = read(layer.g_idx).astype(int)
    zeros = read(zero).astype(int)
    return (q != zeros[:, groups]).T if transposed else q != zeros[groups]


def is_packed(layer: Any, v: Any) -> bool:
    """Return whether a weight is the integer kernel of a layer that packs its kernel."""
    modes = _PACKED.get(type(layer), ())
    return bool(modes) and v.name == "kernel" and layer.quantization_mode in modes and holds_integers(v)


def _kept_of_einsum(layer: Any, value: np.ndarray, read: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Apply `kept` to EinsumDense, whose kernel Keras 3.13 packs as is and Keras 3.15 packs as a matrix."""
    shape = tuple(int(d) for d in layer.kernel.shape)  # Keras unpacks it
    _, labels, output = einsum_labels(layer)
    inputs = math.prod(n for label, n in zip(labels, shape, strict=True) if label not in output)
    matrix = (inputs, math.prod(shape) // inputs)
    as_matrix = value.shape == (matrix[0], (matrix[1] + 1) // 2)
    q = _unpacked(value, matrix if as_matrix else shape, "int8")
    zero = getattr(layer, "kernel_zero", None)
    kept = q != 0 if zero is None else q != read(zero).astype(int)[read(layer.g_idx).astype(int)]
    return kept.reshape(shape)


def _unpacked(value: np.ndarray, whole: tuple[int, ...], dtype: str) -> np.ndarray:
    """Unpack the 4-bit integers of a kernel of shape `whole`; Keras 3.13 packs along inputs, 3.15 along outputs."""
    shorter = [axis for axis, length in enumerate(whole) if value.shape[axis] < length]
    axis = shorter[0] if shorter else whole.index(1)  # one integer is packed into one byte
    return to_numpy(keras.quantizers.unpack_int4(value, whole[axis], axis=axis, dtype=dtype))


def holds_integers(v: Any) -> bool:
    """Return whether a weight is quantized and stored as bytes."""
    return keras.backend.standardize_dtype(v.dtype) in ("int8", "uint8")
