"""Magnitude: the absolute value of a weight, or its size relative to the other weights of its layer."""

import numpy as np

from ..util.threads import side_by_side
from .base import CRITERIA, Context, Scores
from .engines.lamp_tensors import lamp_tensors


@CRITERIA.register("magnitude", entrywise=np.absolute)
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
    absolute = side_by_side(lambda weight: np.abs(weight.seen()), context.weights, context.size)
    return dict(zip((weight.path for weight in context.weights), absolute, strict=True))


@CRITERIA.register("large_final", entrywise=np.absolute)
def large_final(context: Context) -> Scores:
    """The final magnitude: score = |w|, under the name that arXiv:1905.01067 gives this mask criterion.

    Returns:
        As `magnitude`.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> len(kprune.prune(model, "large_final", sparsity=0.5))
    1
    """
    return magnitude(context)


@CRITERIA.register("lamp", tensors=lamp_tensors)
def lamp(context: Context) -> Scores:
    """Layer-adaptive magnitude: score_u = w_u^2 / sum of w_v^2 over all v in the layer with |w_v| >= |w_u|.

    The order within a layer is that of the magnitude, and its largest weight has the score 1, so that a global scope
    shares the budget among the layers without emptying one (arXiv:2010.07611). Of equal weights the later in C order
    stands higher.

    Returns:
        path -> float64 array of the weight's shape, from 0 to 1; 0 for weights that are pruned already.

    >>> import keras, kprune, numpy as np
    >>> one, two = keras.layers.Dense(2, use_bias=False), keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), one, two])
    >>> one.set_weights([np.array([[9.0, 8.0]])]); two.set_weights([np.array([[0.3], [0.1]])])
    >>> _ = kprune.prune(model, "lamp", sparsity=0.5)  # scores 1, 0.44 and 1, 0.1
    >>> one.kernel.numpy().tolist(), round(float(two.kernel.numpy()[0, 0]), 4)
    ([[9.0, 0.0]], 0.3)
    """
    scores = side_by_side(_lamp, context.kept_values(), context.size)
    return dict(zip((weight.path for weight in context.weights), scores, strict=True))


def _lamp(value: np.ndarray) -> np.ndarray:
    order, magnitudes = _ascending(value.reshape(-1))
    squares = magnitudes.astype(np.float64) ** 2
    above = np.cumsum(squares[::-1])[::-1]
    score = np.empty(squares.size)
    score[order] = np.divide(squares, above, out=np.zeros(squares.size), where=above != 0)
    return score.reshape(value.shape)


def _ascending(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices that sort a vector's magnitudes, equal ones in their order, and the sorted magnitudes."""
    magnitudes = np.abs(values)
    if values.dtype != np.float32 or values.size >= 1 << 32:
        order = np.argsort(magnitudes, kind="stable")
        return order, magnitudes[order]
    # The bits of nonnegative floats are in their order, and sorting integers is several times as fast as argsort.
    keys = magnitudes.view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(values.size, dtype=np.uint64)
    keys.sort()
    return keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
