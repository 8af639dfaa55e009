"""Movement: how far training has moved a weight away from zero, or towards it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..masks import masked_weights
from .base import CRITERIA, Context, Scores


class Movement:
    """Adds up how training moves the weights, for the criterion "movement": S += w_t * (w_{t+1} - w_t).

    `kprune.callbacks.GradualPruning` has its own; this one is for a training loop of yours.

    Args:
        model: a masked model, of either Keras.
        scores: S to begin with; zeros by default.

    Attributes:
        scores: path -> float64 array of the weight's shape, S so far. A pruned weight keeps the S it had.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[5.0], [1.0]])]); _ = kprune.mask(model)
    >>> moved = kprune.criteria.Movement(model)
    >>> _ = dense.kernel.assign([[4.0], [2.0]])  # a training step
    >>> moved.add()
    >>> _ = kprune.prune(model, "movement", 0.5, movement=moved.scores)  # -5 and 1
    >>> dense.kernel.numpy().tolist()
    [[0.0], [2.0]]
    """

    def __init__(self, model: Any, scores: Scores | None = None):
        self._weights = masked_weights(model)
        self.scores: Scores = scores or {weight.path: np.zeros(weight.shape) for weight in self._weights}
        self.begin()

    def begin(self) -> None:
        """Take the weights as they are now for those before the next step."""
        self._last = [weight.value() for weight in self._weights]

    def add(self) -> None:
        """Add what happened since the last call: to be called after each step of the optimizer."""
        for i, weight in enumerate(self._weights):
            last, value = self._last[i].astype(np.float64), weight.value()
            self.scores[weight.path] += np.where(weight.kept(), last * (value - last), 0.0)
            self._last[i] = value


@CRITERIA.register("movement", needs=("movement",))
def movement(context: Context) -> Scores:
    """Movement in training: score = sum over the steps t of w_t * (w_{t+1} - w_t) (arXiv:2005.07683); signed.

    Under SGD that is the paper's -sum of lr * w * dL/dw: high for weights that move away from zero, low for those that
    shrink, whatever their size. The difference is what the optimizer made of the gradient, so Adam's scaling and
    weight decay count, too.

    `GradualPruning` adds it up batch by batch, from zero at the start of each fit, and goes on with the sum that a
    backup holds; with `steps_per_execution` = n, t counts n steps at once. It copies the weights to the host at each
    batch end.

    Returns:
        path -> float64 array of the weight's shape, any sign, in squared units of the weight.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> schedule = kprune.schedules.PolynomialDecay(0.0, 0.75, begin_step=2, end_step=8, frequency=2)
    >>> callback = kprune.callbacks.GradualPruning(schedule, "movement")
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity
    0.75
    """
    return {weight.path: np.asarray(context.movement[weight.path]) for weight in context.weights}
