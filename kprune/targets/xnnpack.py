"""XNNPACK's sparse 1x1 convolutions, and what a network needs in order to use them."""

from __future__ import annotations

from typing import Any

from ..masks.layout import is_a
from .advice import TARGETS, Advice, Kernel, counted

_XNNPACK_ZEROS = 2 / 3


@TARGETS.register("xnnpack-1x1")
def _xnnpack(model: Any, kernels: list[Kernel], sparsity: float) -> Advice:
    pointwise = {k.name for k in kernels if is_a(k.layer, "Conv2D") and k.shape[:-2] == (1, 1) and k.masked}
    obstacles = _xnnpack_obstacles(model)
    why = [
        "XNNPACK runs 1x1 convolutions with sparse kernels if everything from an initial 3x3 convolution with stride 2 "
        "to the global pooling can use a channels-first layout",
        "XNNPACK uses sparse kernels on ARM, but not on x86 with AVX",
    ]
    if not pointwise:
        why.append("the network has no 1x1 convolutions")
    if sparsity < _XNNPACK_ZEROS:
        why.append("at least 2/3 of the weights of the 1x1 convolutions must be zero")
    pays = pointwise and not obstacles and sparsity >= _XNNPACK_ZEROS
    return counted(
        "xnnpack-1x1",
        sparsity,
        {"pattern": "unstructured"} if pays else {},
        kernels,
        lambda kernel: 1 - sparsity if kernel.name in pointwise else 1.0,
        reasons=tuple(why),
        obstacles=obstacles,
    )


# By the names that both Kerases share; what comes behind the global pooling may be anything.
_BY_CHANNEL = frozenset(
    """
    InputLayer Rescaling Normalization BatchNormalization Dropout Activation ReLU LeakyReLU ELU Add Multiply
    ZeroPadding2D Conv2D DepthwiseConv2D GlobalAveragePooling2D Identity Relu Relu6 HardSilu Sigmoid Silu
    """.split()  # noqa: SIM905
)
_ACTIVATIONS = frozenset("linear relu relu6 elu leaky_relu hard_silu hard_swish sigmoid".split())  # noqa: SIM905


def _xnnpack_obstacles(model: Any) -> dict[str, str]:
    """Map layer names to the reasons why XNNPACK keeps the network dense."""
    if not hasattr(model, "inputs") or not getattr(model, "inputs", None):
        return {model.name: "it is a subclassed model, whose graph is unknown"}
    found: dict[str, str] = {}
    zeros: dict[int, Any] = {}  # id of the output of a ZeroPadding2D layer -> its zeros, ((top, bottom), (left, right))
    entry = True
    for layer in getattr(model, "operations", model.layers):
        kind = type(layer).__name__
        if kind == "GlobalAveragePooling2D":
            return found
        if kind == "ZeroPadding2D":
            zeros[id(layer.output)] = tuple(map(tuple, layer.padding))
        reason = "" if kind in _BY_CHANNEL else f"{kind} is not supported before the global pooling"
        if hasattr(layer, "activation") and getattr(layer.activation, "__name__", "") not in _ACTIVATIONS:
            reason = f"the activation {getattr(layer.activation, '__name__', layer.activation)!r} is not supported"
        if kind in ("Conv2D", "DepthwiseConv2D") and not reason:
            reason = _entry(layer, zeros) if entry else _spatial(layer, kind, zeros)
            entry = False
        if reason:
            found[layer.name] = reason
    return {**found, model.name: "it does not contain a GlobalAveragePooling2D layer"}


def _entry(layer: Any, zeros: dict[int, Any]) -> str:
    sizes = tuple(layer.kernel_size), tuple(layer.strides), int(layer.kernel.shape[-2])
    if sizes != ((3, 3), (2, 2), 3) or type(layer).__name__ != "Conv2D":
        return "the first convolution must be 3x3 with stride 2 and 3 input channels"
    return _padded(layer, zeros)


def _spatial(layer: Any, kind: str, zeros: dict[int, Any]) -> str:
    size = tuple(layer.kernel_size)
    if kind == "Conv2D":
        plain = size == (1, 1) and tuple(layer.strides) == (1, 1) and layer.groups == 1
        if plain:
            return ""
        return f"a {size[0]}x{size[1]} convolution with stride {layer.strides[0]} is computed with dense kernels"
    if size not in ((3, 3), (5, 5)):
        return f"{size[0]}x{size[1]} depthwise convolutions are not supported"
    if layer.depth_multiplier != 1:
        return f"its depth_multiplier is {layer.depth_multiplier}, but must be 1"
    if tuple(layer.strides) not in ((1, 1), (2, 2)) or tuple(layer.dilation_rate) != (1, 1):
        return "a depthwise convolution must have stride 1 or 2, and no dilation"
    return _padded(layer, zeros)


def _padded(layer: Any, zeros: dict[int, Any]) -> str:
    """Describe padding other than zeros of half the window on each side, or return "".

    With stride 2, XNNPACK decides only at run time where the zeros of padding="same" go, so they must be a layer.
    """
    half = layer.kernel_size[0] // 2
    if layer.padding == "same" and tuple(layer.strides) == (1, 1):
        return ""
    if layer.padding == "valid" and zeros.get(id(layer.input)) == ((half, half), (half, half)):
        return ""
    return f"it must be padded by {half} on each side: put ZeroPadding2D({half}) before it, with padding='valid'"
