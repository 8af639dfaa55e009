"""Types shared by the masks of Keras 3 and tf_keras: masked weights, reports, filters and paths."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from absl import logging

from ..runtime.distribution import as_numpy, on_host, to_numpy
from ..runtime.writing import keep_where, put
from ..util.tables import Printed
from .variables import forget_given

Masks = dict[str, np.ndarray]
Filters = str | Sequence[str] | Callable[[Any], bool] | None

DEFAULT_WEIGHTS = ("kernel", "recurrent_kernel", "pointwise_kernel")
FROZEN = "it is frozen (not trainable)"
FOLLOWS = "_kprune_follows"  # the attribute of a weight that is masked as a follower: see following.py
WAITS = "_kprune_waits"  # the attribute of a weight that is not masked for no other reason
KNOWN_WEIGHTS = (*DEFAULT_WEIGHTS, "depthwise_kernel", "embeddings")


@dataclass(frozen=True, eq=False)
class MaskedWeight:
    """One masked weight of a model, as listed by `kprune.masked_weights(model)`.

    Attributes:
        path: its unique name in the model, e.g. "conv1/kernel".
        layer: the layer (Keras 3) or the tfmot wrapper (tf_keras) that owns it.
        variable: the weight itself, float, of any shape (Keras's: kernels HWIO, dense in x out).
        mask: the mask variable of the same shape; True (or 1.0 in a tfmot wrapper) = kept.
        store: "zero": pruned entries of the variable are 0; "latent": they keep values behind the mask.
    """

    path: str
    layer: Any = field(repr=False)
    variable: Any = field(repr=False)
    mask: Any = field(repr=False)
    store: str = "zero"

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.variable.shape)

    @property
    def size(self) -> int:
        """The number of entries, kept and pruned."""
        return int(np.prod(self.shape))

    @property
    def trainable(self) -> bool:
        """Whether the weight is being trained; a frozen weight keeps its mask."""
        # tf_keras freezes layers, not variables; in Keras 3 a layer that is frozen lists no trainable weights either.
        return any(w is self.variable for w in self.layer.trainable_weights)

    def value(self) -> np.ndarray:
        """Return the weight's stored value, an array of the weight's dtype."""
        return to_numpy(self.variable)

    def read(self) -> np.ndarray:
        """Return the value that the layer computes with: where(kept, value, 0)."""
        value = self.value()
        return np.where(self.kept(), value, np.zeros((), value.dtype))

    def moved(self) -> np.ndarray:
        """Return the pruned entries that should be 0 but are not; there are none where values stay behind the mask."""
        pruned = self.value()[~self.kept()]
        return pruned[pruned != 0] if self.store == "zero" else pruned[:0]

    def kept(self) -> np.ndarray:
        """Return the mask as a bool array (True = kept)."""
        return to_numpy(self.mask).astype(bool)

    def seen(self) -> np.ndarray:
        """Return the result of `value` without a copy if possible; read it immediately, and do not modify it."""
        return as_numpy(self.variable)

    def seen_mask(self) -> np.ndarray:
        """Return the result of `kept` without a copy if possible; read it immediately, and do not modify it."""
        return as_numpy(self.mask).astype(bool, copy=False)

    def kept_along(self, axis: int) -> np.ndarray:
        """Return, for each index of an axis, whether any entry is kept; only this result is copied from a device."""
        others = tuple(other for other in range(len(self.shape)) if other != axis % len(self.shape))
        if isinstance(self.mask, keras.Variable) and not on_host([self.mask]):
            return to_numpy(keras.ops.any(keras.ops.convert_to_tensor(self.mask), axis=others))
        return np.asarray(self.seen_mask().any(axis=others))

    def write(self, kept: np.ndarray, slots: list[tuple[Any, float]] | None = None, donate: bool = False) -> None:
        """Set the weight's mask (bool, True = kept), zero the pruned entries, and reset their optimizer slots.

        Where values stay behind the mask, weight and slots stay as they are.

        Args:
            kept: the mask.
            slots: (slot, initial value) of optimizers; those not given are not told.
            donate: as of `keep_where`.
        """
        put(self.mask, kept.astype(keras.backend.standardize_dtype(self.mask.dtype), copy=False))
        if self.store == "zero":
            keep_where(kept, [(self.variable, 0.0), *(slots or ())], donate)
            forget_given(self.variable)


@dataclass(frozen=True)
class MaskReport(Printed):
    """The result of `kprune.mask`.

    Attributes:
        model: the masked model: the same object for Keras 3, a clone under tfmot's wrappers for tf_keras.
        masked: paths of the masked weights, in model order.
        skipped: path of each weight that is not masked -> the reason.
    """

    model: Any = field(repr=False)
    masked: tuple[str, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.masked)} weights masked, {len(self.skipped)} skipped"]
        lines += [f"  masked   {path}" for path in self.masked]
        lines += [f"  skipped  {path}: {reason}" for path, reason in self.skipped.items()]
        return "\n".join(lines)


def is_tf_keras(model: Any) -> bool:
    """Whether the model or layer belongs to tf_keras (Keras 2), which this function never imports."""
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(model, tf_keras.layers.Layer)


def is_a(layer: Any, *names: str) -> bool:
    """Whether a layer's class or base class has one of these names, which Keras 3 and tf_keras share."""
    return any(cls.__name__ in names for cls in type(layer).__mro__)


def unique_paths(paths: Iterable[str]) -> list[str]:
    """Return the paths with "_2", "_3" ... appended to repeated ones (layers of the same name in nested models)."""
    seen: Counter[str] = Counter()
    unique = []
    for path in paths:
        seen[path] += 1
        unique.append(path if seen[path] == 1 else f"{path}_{seen[path]}")
    return unique


def matches(filters: Filters, layer: Any, path: str) -> bool:
    """Whether the filters select a weight with this path in this layer."""
    if callable(filters):
        return bool(filters(layer))
    patterns = [filters] if isinstance(filters, str) else filters
    return patterns is None or any(re.search(pattern, path) for pattern in patterns)


def skip_reason(
    name: str, weight: Any, path: str, layer: Any, filters: Filters, weights: Sequence[str], unfit: str = ""
) -> str:
    """Return the reason not to mask a weight, or "" if there is none; `unfit` is a reason that the caller found."""
    if name not in weights:
        return f"{name!r} is not among weights={tuple(weights)}"
    if not matches(filters, layer, path):
        return (
            "the filter function returned False"
            if callable(filters)
            else f"its path does not match filters={filters!r}"
        )
    if unfit:
        return unfit
    return "" if weight.trainable else FROZEN


def finish_report(model: Any, masked: list[str], skipped: dict[str, str]) -> MaskReport:
    """Return the report, and log a warning if nothing could be masked."""
    if not masked:
        logging.warning("kprune.mask: no weight of %r can be masked; see the report for the reasons.", model.name)
    return MaskReport(model, tuple(masked), skipped)
