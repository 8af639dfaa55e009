"""Criteria: functions that score the masked weights of a model; higher = keep.

A new criterion is one function of a `Context`, registered under a name, plus one row in tests/contract_rows.py.

>>> import keras, kprune, numpy as np
>>> @kprune.criteria.CRITERIA.register("smallest")
... def smallest(context):
...     return {weight.path: -np.abs(weight.value()) for weight in context.weights}
"""

from .activations import wanda
from .base import CRITERIA, Compiled, Context, Scores
from .engines.linearize import assume_homogeneous
from .initial import init_final_sign, large_init, magnitude_increase
from .lookup import deserialize, get, serialize
from .loss import fisher, force, gradient, grasp, iterative_snip, snip, taylor
from .magnitude import lamp, large_final, magnitude
from .movement import Movement, movement
from .neurons import apoz, network_slimming, taylor_gates
from .random import random
from .synflow import synflow, synflow_l2
from .trackers import InitialWeights, Tracker

__all__ = [
    "CRITERIA",
    "Compiled",
    "Context",
    "InitialWeights",
    "Movement",
    "Scores",
    "Tracker",
    "apoz",
    "assume_homogeneous",
    "deserialize",
    "fisher",
    "force",
    "get",
    "gradient",
    "grasp",
    "init_final_sign",
    "iterative_snip",
    "lamp",
    "large_final",
    "large_init",
    "magnitude",
    "magnitude_increase",
    "movement",
    "network_slimming",
    "random",
    "serialize",
    "snip",
    "synflow",
    "synflow_l2",
    "taylor",
    "taylor_gates",
    "wanda",
]
