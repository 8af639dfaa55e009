"""Quantized kernels of Keras 3: which entries are 0 as the layer reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ..runtime.distribution import to_numpy

_PACKED = ("int4", "gptq", "awq")
SCALES = ("kernel_scale", "kernel_zero")
"""What a quantized layer holds beside its kernel: no kernels, though of rank 2."""


def kept(layer: Any, v: Any, read: Callable[[Any], np.ndarray] = to_numpy) -> np.ndarray:
    """Which entries of a weight are nonzero after dequantization; bool, in the dequantized shape.

    `read` takes a variable and gives its value, in the model or in a file.

    Two 4-bit integers q are packed into a byte, and a value is (q - z) / scale. Where blocks of inputs have a zero
    point z of their own, an integer 0 is no zero, and a zero no integer 0. GPTQ and AWQ store (out, in).
    """
    value = read(v)
    if not is_packed(layer, v):
        return value != 0
    inputs = int(layer.input_spec.axes[-1])
    transposed = layer.quantization_mode != "int4"
    whole = (layer.units, inputs) if transposed else (inputs, layer.units)
    q = value
    for axis, length in enumerate(whole):  # Keras 3.13 packs int4 along the inputs, 3.15 along the outputs
        if value.shape[axis] < length:
            dtype = "uint8" if transposed else "int8"
            q = to_numpy(keras.quantizers.unpack_int4(value, length, axis=axis, dtype=dtype))
    zero = getattr(layer, "kernel_zero", None)
    if zero is None:
        return q != 0
    groups = read(layer.g_idx).astype(int)
    zeros = read(zero).astype(int)
    return (q != zeros[:, groups]).T if transposed else q != zeros[groups]


def is_packed(layer: Any, v: Any) -> bool:
    """Whether a weight is the packed integer kernel of a Dense layer; the layer itself says so."""
    if type(layer) is not keras.layers.Dense or layer.quantization_mode not in _PACKED:
        return False
    return v.name == "kernel" and holds_integers(v)


def holds_integers(v: Any) -> bool:
    """Whether a weight is quantized to bytes."""
    return keras.backend.standardize_dtype(v.dtype) in ("int8", "uint8")
