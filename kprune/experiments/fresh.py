"""Draw a fresh value for a weight from its layer's own initializer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..masks import library_of


def _attributes(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield (layer, attribute name without leading underscores, value) for each attribute of each layer."""
    for layer in library_of(model).all_layers(model):
        for name, value in vars(layer).items():
            yield layer, name.lstrip("_"), value


def owners(model: Any) -> dict[int, tuple[Any, str]]:
    """Map the id of each weight to its layer and to the name of the layer's attribute that holds the weight."""
    return {id(value): (layer, name) for layer, name, value in _attributes(model) if hasattr(value, "assign")}


def statistics(model: Any) -> list[Any]:
    """Return the moving means and variances of trainable normalization layers."""
    found = {id(v): v for layer, name, v in _attributes(model) if name.startswith("moving_") and layer.trainable}
    return [v for v in found.values() if hasattr(v, "assign")]


def draw(path: str, variable: Any, owner: tuple[Any, str] | None, seed: list[int]) -> np.ndarray:
    """Draw a fresh value for a weight from a reseeded copy of its layer's initializer."""
    layer, name = owner or (None, "")
    # A separable layer's "pointwise_kernel" is drawn by its `pointwise_initializer`, a depthwise layer's "kernel" by
    # its `depthwise_initializer`.
    names = [f"{name}_initializer", f"{name.removesuffix('_kernel')}_initializer"]
    names += ["depthwise_initializer"] if name == "kernel" else []
    initializer: Any = next((getattr(layer, n) for n in names if getattr(layer, n, None) is not None), None)
    if not hasattr(initializer, "get_config") or not hasattr(initializer, "from_config"):
        raise ValueError(
            f"Cannot reinitialize {path}: its layer must have an initializer for this weight that can be rebuilt "
            "with another seed, so the initializer must define `get_config` and `from_config`. Received: "
            f"layer={getattr(layer, 'name', None)!r}, initializer={initializer!r}"
        )
    config = initializer.get_config()
    if "seed" in config:
        config["seed"] = int(np.random.default_rng(seed).integers(2**31 - 1))
    drawn = type(initializer).from_config(config)(tuple(variable.shape), dtype=variable.dtype)
    value = np.array(drawn)
    if name == "bias" and getattr(layer, "unit_forget_bias", False):  # an LSTM opens its forget gates itself
        value[value.size // 4 : value.size // 2] = 1
    return value
