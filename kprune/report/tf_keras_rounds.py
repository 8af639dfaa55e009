"""Reject a tf_keras model whose nodes wait for each other, because loading it would never end."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Rounds(list[Any]):
    """A list of a network's layers that raises ValueError if tf_keras iterates over it too often."""

    left = 0

    def __iter__(self) -> Iterator[Any]:
        if not self.left:
            raise ValueError("its layers form a cycle: they wait for each other's outputs")
        self.left -= 1
        return super().__iter__()


@contextmanager
def rounds_that_end() -> Iterator[None]:
    """Make tf_keras raise ValueError in this context instead of looping over a network's layers forever.

    Each round calls one more layer of a network that can be put together, so there are no more rounds than nodes.
    tf_keras has no public place that sees a round: what is replaced here, and nowhere else, is
    `tf_keras.src.engine.functional.reconstruct_from_config` (tf_keras 2.20 and 2.21;
    tests/tf_keras/test_trusted_tf_keras.py).
    """
    from tf_keras.src.engine import functional

    plain = functional.reconstruct_from_config

    @functools.wraps(plain)
    def within(config: Any, *rest: Any, **more: Any) -> Any:
        layers = _Rounds(config["layers"])
        layers.left = 2 + sum(1 + len(layer["inbound_nodes"]) for layer in config["layers"])
        return plain({**config, "layers": layers}, *rest, **more)

    functional.reconstruct_from_config = within
    try:
        yield
    finally:
        functional.reconstruct_from_config = plain
