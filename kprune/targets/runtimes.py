"""The targets zip, shrink, tpu, nvidia-2:4 and litert-cpu, each of which depends on one property of a runtime."""

from __future__ import annotations

import math
from typing import Any

from ..channels import ChannelGroups, Costs, channel_graph
from ..config import PruningConfig
from ..masks import masked
from ..masks.layout import is_a
from .advice import TARGETS, Advice, Kernel, counted

_LANES = 128
_BLOCK_ZEROS = 0.75


@TARGETS.register("zip")
def _zip(model: Any, kernels: list[Kernel], sparsity: float) -> Advice:
    density = 1 - sparsity
    # Where the zeros lie takes the entropy of a bit per entry; what stays is as good as random.
    places = -sum(p * math.log2(p) for p in (sparsity, density) if p) / 32
    return Advice(
        "zip",
        sparsity,
        {"pattern": "unstructured"},
        counted("", 0.0, {}, kernels, lambda k: density + places if k.masked else 1.0).size,
        1.0,
        ("it does not matter where the zeros are; the file on disk and the latency stay the same",),
    )


def _channels(model: Any, kernels: list[Kernel], sparsity: float, target: str, groups: str) -> Advice:
    with masked(model, keep=False):
        try:
            graph, found = channel_graph(model), ChannelGroups(model)
        except ValueError as error:  # no graph, or no group in it
            return Advice(target, sparsity, {}, 1.0, 1.0, (str(error).partition(" Received:")[0],))
        masks = PruningConfig("magnitude", groups=groups).masks(model, sparsity)
        stays = found.pooled(masks, masks)[1] > 0
        units = ("parameters", "flops") if all(kernel.flops is not None for kernel in kernels) else ("parameters",)
        size, *flops = (costs.of(stays) / costs.total for costs in (Costs(model, found, unit) for unit in units))
    return Advice(target, sparsity, {"groups": groups}, size, flops[0] if flops else None, (), dict(graph.barriers))


@TARGETS.register("shrink")
def _shrink(model: Any, kernels: list[Kernel], sparsity: float) -> Advice:
    found = _channels(model, kernels, sparsity, "shrink", "channels")
    why = "kprune.shrink removes dead channels, which leaves a smaller dense network that any runtime runs faster"
    return Advice(**{**vars(found), "reasons": (why, *found.reasons) if found.pays else found.reasons})


@TARGETS.register("tpu")
def _tpu(model: Any, kernels: list[Kernel], sparsity: float) -> Advice:
    why = [
        f"a TPU multiplies whole tiles of {_LANES} channels: zeros inside a tile cost as much as any other value",
        "TPUs do not skip n:m or unstructured zeros",
    ]
    narrow = {k.name: f"its {k.shape[-1]} channels fit in one tile" for k in kernels if k.shape[-1] <= _LANES}
    if len(narrow) == len(kernels):
        return Advice("tpu", sparsity, {}, 1.0, 1.0, tuple(why), narrow)
    found = _channels(model, kernels, sparsity, "tpu", f"channels:{_LANES}")
    return Advice(**{**vars(found), "reasons": (*why, *found.reasons), "obstacles": {**narrow, **found.obstacles}})


@TARGETS.register("nvidia-2:4")
def _nvidia(model: Any, kernels: list[Kernel], sparsity: float) -> Advice:
    obstacles = {}
    for kernel in kernels:
        if not kernel.masked or not is_a(kernel.layer, "Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D"):
            obstacles[kernel.name] = f"TensorRT has no sparse kernels for {type(kernel.layer).__name__} layers"
        elif kernel.shape[-2] % 4:
            obstacles[kernel.name] = f"its number of inputs ({kernel.shape[-2]}) is not a multiple of 4"
    why = (
        "sparse tensor cores (Ampere and later) skip 2 of every 4 inputs, in float16, bfloat16 and int8",
        "pruning more than 2 of every 4 inputs gains nothing: prune to a sparsity of 0.5",
        "export an ONNX file, and run it in TensorRT with sparse weights enabled",
    )
    return counted(
        "nvidia-2:4",
        0.5,
        {"pattern": "2:4"},
        kernels,
        lambda kernel: 1.0 if kernel.name in obstacles else 0.5,
        reasons=why,
        obstacles=obstacles,
    )


@TARGETS.register("litert-cpu")
def _litert(model: Any, kernels: list[Kernel], sparsity: float) -> Advice:
    obstacles = {}
    for kernel in kernels:
        if not is_a(kernel.layer, "Dense"):
            obstacles[kernel.name] = (
                f"LiteRT stores {type(kernel.layer).__name__} layers as sparse but runs them as dense"
            )
        elif kernel.shape[-2] % 4:
            obstacles[kernel.name] = f"its number of inputs ({kernel.shape[-2]}) is not a multiple of 4"
    density = 1 - sparsity
    blocks = counted(
        "litert-cpu",
        sparsity,
        {"pattern": "4x1"},
        kernels,
        lambda kernel: 1.0 if kernel.name in obstacles else density,
        reasons=(
            (
                "in dense layers, LiteRT skips blocks of 4 inputs that are all zero; unstructured zeros pay off "
                "only above a sparsity of 0.97"
            ),
        ),
        obstacles=obstacles,
    )
    channels = _channels(model, kernels, sparsity, "litert-cpu", "channels")
    by_flops = blocks.flops is None or (channels.flops or 1.0) < blocks.flops
    if channels.pays and (by_flops or sparsity < _BLOCK_ZEROS):
        why = (
            "for this model, pruning whole channels leaves fewer multiply-adds than sparse kernels do: shrink the "
            "model, then export it"
        )
        return Advice(**{**vars(channels), "reasons": (why,)})
    if sparsity < _BLOCK_ZEROS:
        why = f"sparse kernels are slower than dense ones below a sparsity of about {_BLOCK_ZEROS}"
        return Advice("litert-cpu", sparsity, {}, 1.0, 1.0, (why,), obstacles)
    return blocks
