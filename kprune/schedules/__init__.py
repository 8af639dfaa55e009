"""Schedules: the sparsity at each step, and the steps at which masks are updated."""

from .base import SCHEDULES, Schedule, check_sparsity
from .curves import Constant, Cosine, Exponential, Geometric, Linear, OneCycle, PolynomialDecay
from .lookup import PerLayer, deserialize, get, serialize
from .plot import plot_schedule
from .tfmot import TfmotSchedule, as_schedule

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
    "as_schedule",
    "check_sparsity",
    "deserialize",
    "get",
    "plot_schedule",
    "serialize",
]
