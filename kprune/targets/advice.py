"""Advice on how much pruning would save on a target runtime, and the kernels that the advice is based on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..flops import kernel_uses
from ..masks import DEFAULT_WEIGHTS, library_of
from ..masks.layout import layout_in
from ..schedules import check_sparsity
from ..util.registry import Registry
from ..util.tables import Printed, printable

TARGETS = Registry("target")
_GAIN = 0.95  # above this fraction of dense nothing is gained


@dataclass(frozen=True)
class Kernel:
    """A kernel of a model, with the properties that matter to a target.

    Attributes:
        layer: the layer that uses it.
        name: the layer's name.
        size: the number of its entries.
        flops: multiply-adds for one example; None if not known.
        shape: its shape as (..., in, out).
        masked: whether pruning takes it by default: depthwise kernels, for example, it does not.
    """

    layer: Any = field(repr=False)
    name: str
    size: int
    flops: int | None
    shape: tuple[int, ...]
    masked: bool


@dataclass(frozen=True)
class Advice(Printed):
    """An estimate of how much pruning saves on a target runtime; `print(advice)` shows it as text.

    Attributes:
        target: its name.
        sparsity: the fraction of zeros that it is for.
        config: fields of `kprune.PruningConfig` with which it pays, such as {"pattern": "2:4"}; empty if nothing pays.
        size: bytes of the weights that are left, as a fraction of the dense network's.
        flops: multiply-adds for one example that the target would still make, likewise; None where not known.
        reasons: why, in sentences.
        obstacles: name of a layer -> what in it stands in the way.
    """

    target: str
    sparsity: float
    config: dict[str, Any]
    size: float
    flops: float | None
    reasons: tuple[str, ...] = ()
    obstacles: dict[str, str] = field(default_factory=dict)

    @property
    def pays(self) -> bool:
        """Whether pruning saves at least 5 % of the bytes or of the multiply-adds."""
        return bool(self.config) and min(self.size, 1.0 if self.flops is None else self.flops) <= _GAIN

    @property
    def pattern(self) -> str:
        """The recommended config, written as arguments of a call, or "nothing" if pruning does not pay."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items()) if self.pays else "nothing"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values."""
        return {
            "target": self.target,
            "sparsity": self.sparsity,
            "pays": self.pays,
            "pattern": self.pattern,
            "config": dict(self.config) if self.pays else {},
            "size": self.size if self.pays else 1.0,
            "flops": self.flops if self.pays else 1.0,
            "reasons": list(self.reasons),
            "obstacles": dict(self.obstacles),
        }

    def __str__(self) -> str:
        lines = [f"{self.target} at sparsity {self.sparsity:g}: {self.pattern}"]
        if self.pays:
            flops = "unknown" if self.flops is None else f"{self.flops:.2f}"
            lines.append(f"remaining fraction of the dense network: bytes {self.size:.2f}, multiply-adds {flops}")
        lines += [f"- {reason}" for reason in self.reasons]
        lines += [f"- obstacle: {name}: {reason}" for name, reason in self.obstacles.items()]
        return printable("\n".join(line.replace("\n", "\\n") for line in lines))


def advise(model: Any, target: str, *, sparsity: float = 0.9) -> Advice:
    """Estimate before training how much pruning would save on a target runtime, and which pattern pays off there.

    The model is neither trained, timed nor changed. Sizes are counted from its kernels, and the channels to remove are
    chosen by magnitude, as `kprune.prune` would choose them now. The answer may be "nothing".

    Args:
        model: a built model of either Keras; of tf_keras, one that `kprune.mask` returned.
        target: a name from `kprune.targets.TARGETS`:
            "shrink", any runtime, after `kprune.shrink` has taken dead channels out;
            "zip", a download or archive of any of the files;
            "litert-cpu", LiteRT with sparse kernels of dense layers;
            "xnnpack-1x1", LiteRT with XNNPACK's sparse 1x1 convolutions, on ARM;
            "nvidia-2:4", sparse tensor cores, through ONNX and TensorRT;
            "tpu", whose tiles hold 128 channels.
        sparsity: fraction of zeros over all kernels, in [0, 1).

    Returns:
        `Advice`: the pattern, what would be left, why, and what stands in the way.

    Raises:
        ValueError: the target is not known, the sparsity is none, or the model is not built.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64), keras.layers.Dense(10, name="out")])
    >>> advice = kprune.advise(model, "nvidia-2:4")
    >>> advice.pattern, round(advice.flops, 2), advice.obstacles
    ("pattern='2:4'", 0.5, {})
    >>> kprune.advise(model, "tpu").pattern
    'nothing'
    """
    check_sparsity("sparsity", sparsity)
    found: Advice = TARGETS.get(target)(model, kernels_of(model), float(sparsity))
    return found


def get(name: str) -> Callable[..., Advice]:
    """Return the target with this name, a function that maps a model, its kernels and a sparsity to `Advice`."""
    return TARGETS.get(name)


def kernels_of(model: Any) -> list[Kernel]:
    """Return the kernels of a model, in model order."""
    uses, _ = kernel_uses(model)
    library = library_of(model)
    kernels: dict[int, Kernel] = {}
    for layer, v in library.owned_weights(model):
        if len(v.shape) < 2 or id(v) not in uses:
            continue
        size = math.prod(int(n) for n in v.shape)
        times = uses[id(v)]
        plain = library.weight_name(layer, v) in DEFAULT_WEIGHTS
        flops = None if times is None else times * size
        kernels.setdefault(id(v), Kernel(layer, layer.name, size, flops, layout_in(layer, v).shape, plain))
    return list(kernels.values())


def counted(
    target: str,
    sparsity: float,
    config: dict[str, Any],
    kernels: list[Kernel],
    left: Callable[[Kernel], float],
    **rest: Any,
) -> Advice:
    """Return the advice that applies when `left(kernel)` is the fraction of each kernel that remains."""
    size = sum(kernel.size * left(kernel) for kernel in kernels) / max(1, sum(kernel.size for kernel in kernels))
    return Advice(target, sparsity, config, size, flops_left(kernels, left), **rest)


def flops_left(kernels: list[Kernel], left: Callable[[Kernel], float]) -> float | None:
    if any(kernel.flops is None for kernel in kernels):
        return None
    total = sum(kernel.flops or 0 for kernel in kernels)
    return sum((kernel.flops or 0) * left(kernel) for kernel in kernels) / total if total else 1.0


__all__ = ["TARGETS", "Advice", "Kernel", "advise", "counted", "flops_left", "get", "kernels_of"]
