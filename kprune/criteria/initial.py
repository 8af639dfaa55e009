"""Criteria that compare a weight with its value before training (arXiv:1905.01067)."""

import numpy as np

from .base import CRITERIA, Context, Scores
from .trackers import InitialWeights


@CRITERIA.register("large_init", tracker=InitialWeights)
def large_init(context: Context) -> Scores:
    """The initial magnitude: score = |w_initial| (arXiv:1905.01067).

    Returns:
        path -> float array of the weight's shape, in the weight's units.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> _, initial = kprune.mask(model), kprune.criteria.InitialWeights()
    >>> _ = dense.kernel.assign([[1.0], [2.0]]); initial.begin(model)
    >>> _ = dense.kernel.assign([[5.0], [3.0]])  # training
    >>> _ = kprune.prune(model, "large_init", 0.5, trackers=initial)
    >>> dense.kernel.numpy().tolist()
    [[0.0], [3.0]]
    """
    return {path: np.abs(first) for path, first, _ in _pairs(context)}


@CRITERIA.register("magnitude_increase", tracker=InitialWeights)
def magnitude_increase(context: Context) -> Scores:
    """The growth of the magnitude during training: score = |w| - |w_initial| (arXiv:1905.01067).

    Returns:
        path -> float array of the weight's shape, any sign, in the weight's units.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> _, initial = kprune.mask(model), kprune.criteria.InitialWeights()
    >>> _ = dense.kernel.assign([[4.5], [-1.0]]); initial.begin(model)
    >>> _ = dense.kernel.assign([[5.0], [3.0]])  # training
    >>> _ = kprune.prune(model, "magnitude_increase", 0.5, trackers=initial)
    >>> dense.kernel.numpy().tolist()
    [[0.0], [3.0]]
    """
    return {path: np.abs(last) - np.abs(first) for path, first, last in _pairs(context)}


@CRITERIA.register("init_final_sign", tracker=InitialWeights)
def init_final_sign(context: Context) -> Scores:
    """The final magnitude where the sign is still the initial one: score = max(0, w * sign(w_initial)).

    The criterion of the supermasks of arXiv:1905.01067.

    Returns:
        path -> float array of the weight's shape, >= 0, in the weight's units.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> _, initial = kprune.mask(model), kprune.criteria.InitialWeights()
    >>> _ = dense.kernel.assign([[-0.1], [0.2]]); initial.begin(model)
    >>> _ = dense.kernel.assign([[5.0], [3.0]])  # training
    >>> _ = kprune.prune(model, "init_final_sign", 0.5, trackers=initial)
    >>> dense.kernel.numpy().tolist()
    [[0.0], [3.0]]
    """
    return {path: np.maximum(last * np.sign(first), 0) for path, first, last in _pairs(context)}


def _pairs(context: Context) -> list[tuple[str, np.ndarray, np.ndarray]]:
    first = context.tracker.of(context.weights)
    return [(w.path, first[w.path], value) for w, value in context.values()]
