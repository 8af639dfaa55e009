"""Activations that act on each entry separately, and therefore on each channel separately."""

from __future__ import annotations

from typing import Any

# Activations that work on each entry alone, by the names that both Kerases share.
ELEMENTWISE = frozenset(
    """
    linear relu relu6 leaky_relu elu selu celu gelu silu swish sigmoid hard_sigmoid log_sigmoid sparse_sigmoid tanh
    hard_tanh tanh_shrink sparse_plus softplus softsign soft_shrink hard_shrink exponential mish hard_silu hard_swish
    squareplus threshold
    """.split()  # noqa: SIM905
)


def is_elementwise(activation: Any) -> bool:
    """Return whether a Keras activation acts on each entry separately."""
    home = str(getattr(activation, "__module__", "")).split(".")[0]
    return activation is None or (home in ("keras", "tf_keras") and _name(activation) in ELEMENTWISE)


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", type(activation).__name__))


__all__ = ["ELEMENTWISE", "is_elementwise"]
