"""The sublayers of a Keras 3 layer, and the states that they carry from call to call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras


def sublayers(layer: Any) -> list[Any]:
    """Return the direct sublayers of a Keras 3 layer or model, in order."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def all_layers(layer: Any) -> list[Any]:
    """Return the layer and all layers below it, each once and with parents first."""
    found: dict[int, Any] = {}

    def visit(current: Any) -> None:
        if id(current) not in found:
            found[id(current)] = current
            for sub in sublayers(current):
                visit(sub)

    visit(layer)
    return list(found.values())


def states(layer: Any) -> Iterator[Any]:
    """Yield the batch-to-batch states of stateful RNN layers, which Keras does not list among their variables."""
    for one in all_layers(layer):
        yield from (v for v in keras.tree.flatten(getattr(one, "states", None)) if isinstance(v, keras.Variable))
