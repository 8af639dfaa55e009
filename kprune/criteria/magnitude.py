"""Magnitude: the size of a weight."""

import numpy as np

from .base import CRITERIA, Context, Scores


@CRITERIA.register("magnitude")
def magnitude(context: Context) -> Scores:
    """The absolute value: score = |w| (arXiv:1506.02626).

    Returns:
        path -> float array of the weight's shape, in the weight's own dtype and units.

    >>> import keras, kprune
    >>> dense = keras.layers.Dense(2, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0, -4.0], [-3.0, 2.0]])])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> dense.kernel.numpy().tolist()
    [[0.0, -4.0], [-3.0, 0.0]]
    """
    return {weight.path: np.abs(weight.value()) for weight in context.weights}
