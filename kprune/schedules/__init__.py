"""Schedules: the sparsity at each step."""

from .base import (
    PerLayer,
    TfmotSchedule,
    applied,
    as_schedule,
    last_update,
)
from .curves import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    Geometric,
    Linear,
    OneCycle,
    PolynomialDecay,
    Schedule,
    check_sparsity,
)
from .plot import plot_schedule

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "Exponential",
    "Geometric",
    "Linear",
    "OneCycle",
    "PerLayer",
    "PolynomialDecay",
    "Schedule",
    "TfmotSchedule",
    "applied",
    "as_schedule",
    "check_sparsity",
    "last_update",
    "plot_schedule",
]
