"""Random: the baseline every criterion must beat."""

import numpy as np

from .base import CRITERIA, Context, Scores


@CRITERIA.register("random")
def random(context: Context) -> Scores:
    """Independent uniform scores in [0, 1), drawn from the seed and the weight's position in the model.

    The same seed gives the same scores in every round, run, process and replica.

    Returns:
        path -> float64 array of the weight's shape.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    >>> masks = kprune.prune(model, "random", sparsity=0.75, seed=1)
    >>> [int(mask.sum()) for mask in masks.values()]
    [5]
    """
    return {
        weight.path: np.random.default_rng([context.seed, position]).random(weight.shape)
        for position, weight in enumerate(context.weights)
    }
