"""Scopes, which decide from the scores how many entries each weight keeps at a given overall sparsity."""

from .base import SCOPES
from .bounds import kept_out, uniform_plus, with_ceiling, with_floor
from .shares import erk, global_scope, layerwise, per_layer, uniform

__all__ = ["SCOPES", "erk", "global_scope", "layerwise", "uniform", "uniform_plus"]
__all__ += ["kept_out", "per_layer", "with_ceiling", "with_floor"]
