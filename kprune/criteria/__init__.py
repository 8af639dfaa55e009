"""Criteria: functions that score the masked weights of a model; higher = keep.

A new criterion is one function of a `Context`, registered under a name, plus one row in tests/test_contract.py.

>>> import keras, kprune, numpy as np
>>> @kprune.criteria.CRITERIA.register("smallest")
... def smallest(context):
...     return {weight.path: -np.abs(weight.value()) for weight in context.weights}
"""

from .base import CRITERIA, Context, Scores
from .linearize import assume_homogeneous
from .magnitude import magnitude
from .random import random
from .synflow import synflow

__all__ = ["CRITERIA", "Context", "Scores", "assume_homogeneous", "magnitude", "random", "synflow"]
