"""Channels that are constant for every input, and their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ..masks import is_tf_keras
from ..runtime.distribution import to_numpy
from .elementwise import is_elementwise
from .graph import Call, ChannelGraph, Mixer, Tensor


@dataclass(frozen=True)
class Constant:
    """The constant channels of one tensor.

    Attributes:
        value: float64 array, one per channel; NaN where the channel varies.
        border: whether zeros have been put around it, so that a constant that is not 0 holds inside them only.
    """

    value: np.ndarray
    border: bool = False

    def everywhere(self) -> np.ndarray:
        """Return the values, with NaN for values that are not valid at the border."""
        return np.where((self.value == 0) | (not self.border), self.value, np.nan)


def constants(graph: ChannelGraph, read: Callable[[Any], np.ndarray]) -> dict[int, Constant]:
    """Return the `Constant` of each tensor with known channels, by the id of the tensor.

    A channel is constant if all that leads to it is zero, or constant itself: it is then its bias, with what follows.

    Args:
        graph: the channels of a model.
        read: the values of its weights: see `kprune.channels.graph.reader`.
    """
    known: dict[int, Constant] = {}

    for entry in graph.order:
        if entry.made.atoms is None:
            continue
        if isinstance(entry, Mixer):
            given = None if entry.given is None else _of(entry.given, len(entry.incoming), known)
            known[id(entry.made)] = _mixed(entry, given, read)
        else:
            given_all = [_of(tensor, channels_read(entry, tensor), known) for tensor in entry.given]
            known[id(entry.made)] = _RULES[entry.kind](entry, given_all, read)
    return known


def _of(tensor: Tensor, size: int, known: dict[int, Constant]) -> Constant:
    return known.get(id(tensor), Constant(np.full(size, np.nan)))


def channels_read(call: Call, given: Tensor) -> int:
    """Return the number of channels that the call reads from this tensor."""
    if given.atoms is not None:
        return len(given.atoms)
    if given.shape is not None:
        return int(given.shape[call.made.axis] or 0)
    return len(call.made.atoms) // getattr(call.layer, "depth_multiplier", 1)  # type: ignore[arg-type]


def _mixed(mixer: Mixer, given: Constant | None, read: Callable[[Any], np.ndarray]) -> Constant:
    n = len(mixer.made.atoms)  # type: ignore[arg-type]
    if given is None or not mixer.constant or not is_elementwise(getattr(mixer.layer, "activation", None)):
        return Constant(np.full(n, np.nan))
    used, sums = mixer.weights(read)
    value = np.where((given.value == 0) | (not (mixer.border or given.border)), given.value, np.nan)
    varies = used[np.isnan(value)].any(axis=0)
    bias = read(mixer.bias) if mixer.bias is not None else np.zeros(n)
    made = bias + np.where(np.isnan(value), 0.0, value) @ sums
    return Constant(_activated(mixer.layer, np.where(varies, np.nan, made)))


def _depthwise(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    layer = call.layer
    if not is_elementwise(layer.activation):
        return _varying(call, given, read)
    kernel = getattr(layer, "depthwise_kernel", None)
    windows = read(layer.kernel if kernel is None else kernel)
    flat = tuple(range(windows.ndim - 2))
    used, sums = (windows != 0).any(axis=flat).reshape(-1), windows.sum(axis=flat).reshape(-1)
    border = windows[..., 0, 0].size > 1 and layer.padding != "valid"
    value = np.repeat(given[0].everywhere(), windows.shape[-1])
    value = np.where(used & (value != 0) & border, np.nan, value)
    made = np.where(used, value * sums, 0.0) + (read(layer.bias) if layer.use_bias else 0.0)
    return Constant(_activated(layer, made))


def _normalization(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    layer = call.layer
    scale = 1.0 / np.sqrt(read(layer.moving_variance) + layer.epsilon)
    if layer.gamma is not None:
        scale = scale * read(layer.gamma)
    made = (given[0].everywhere() - read(layer.moving_mean)) * scale
    # Where gamma is 0, beta is all there is, whatever comes in.
    made = np.where(scale == 0, 0.0, made)
    return Constant(made + read(layer.beta) if layer.beta is not None else made)


def _embedding(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    table = read(call.layer.embeddings)
    return Constant(np.where((table == table[:1]).all(axis=0), table[0], np.nan))


def _elementwise(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    return Constant(_computed(call.layer.call, call.layer, given[0].everywhere()))


def _prelu(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    value = given[0].everywhere()
    return Constant(np.where(value >= 0, value, np.nan))


def _merge(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    values = [one.everywhere() for one in given]
    made = _computed(lambda *tensors: _call_merge(call.layer, tensors), call.layer, *values)
    if type(call.layer).__name__ == "Multiply":
        made = np.where(np.any([value == 0 for value in values], axis=0), 0.0, made)
    return Constant(made)


def _call_merge(layer: Any, tensors: Any) -> Any:
    return layer.call(list(tensors)) if hasattr(layer, "weights") else layer.call(*tensors)


def _concatenate(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    return Constant(np.concatenate([one.everywhere() for one in given]))


def _tile(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    value = given[0].everywhere()
    return Constant(np.tile(value, len(call.made.atoms) // len(value)))  # type: ignore[arg-type]


def _varying(call: Call, given: list[Constant], read: Callable[[Any], np.ndarray]) -> Constant:
    return Constant(np.full(len(call.made.atoms), np.nan))  # type: ignore[arg-type]


_RULES: dict[str, Callable[[Call, list[Constant], Callable[[Any], np.ndarray]], Constant]] = {
    "depthwise": _depthwise,
    "normalization": _normalization,
    "embedding": _embedding,
    "elementwise": _elementwise,
    "prelu": _prelu,
    "merge": _merge,
    "concatenate": _concatenate,
    "tile": _tile,
    "varying": _varying,
    "identity": lambda call, given, read: given[0],
    "constant": lambda call, given, read: Constant(given[0].everywhere()),
    "padding": lambda call, given, read: Constant(given[0].value, border=True),
}


def _activated(layer: Any, value: np.ndarray) -> np.ndarray:
    activation = getattr(layer, "activation", None)
    return value if activation is None else _computed(activation, layer, value)


def _computed(function: Callable[..., Any], layer: Any, *values: np.ndarray) -> np.ndarray:
    """Apply a function of the layer's library to the known values, in the layer's own precision."""
    known = ~np.any(np.isnan(values), axis=0)
    made = np.full(known.shape, np.nan)
    if known.any():
        dtype = getattr(layer, "compute_dtype", None) or keras.config.floatx()
        given = [value[known][None].astype(np.float64) for value in values]
        if is_tf_keras(layer):
            import tensorflow as tf

            made[known] = np.asarray(function(*(tf.constant(value, dtype) for value in given)), np.float64)[0]
        else:
            tensors = [keras.ops.convert_to_tensor(value, dtype) for value in given]
            made[known] = to_numpy(function(*tensors)).astype(np.float64)[0]
    return made


__all__ = ["Constant", "channels_read", "constants"]
