"""Movement: how far training has moved a weight away from zero or toward it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..masks import masked_weights
from .base import CRITERIA, Context, Scores
from .trackers import ArrayTracker


class Movement(ArrayTracker):
    """A running sum of how training moves the weights, for the criterion "movement": S += w_t * (w_{t+1} - w_t).

    The callbacks of `kprune.callbacks` have their own; this one is for a training loop of yours.

    Attributes:
        arrays: S so far, float64 arrays of the weights' shapes, in model order. A pruned weight keeps the S it had.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[5.0], [1.0]])]); _ = kprune.mask(model)
    >>> moved = kprune.criteria.Movement()
    >>> moved.begin(model)
    >>> _ = dense.kernel.assign([[4.0], [2.0]])  # a training step
    >>> moved.after_step(model)
    >>> _ = kprune.prune(model, "movement", 0.5, trackers=moved)  # -5 and 1
    >>> dense.kernel.numpy().tolist()
    [[0.0], [2.0]]
    """

    def begin(self, model: Any) -> None:
        self._last = [weight.value() for weight in masked_weights(model)]
        self.arrays = self.arrays or [np.zeros(last.shape) for last in self._last]

    def after_step(self, model: Any) -> None:
        for i, weight in enumerate(masked_weights(model)):
            last, value = self._last[i].astype(np.float64), weight.value()
            self.arrays[i] += np.where(weight.kept(), last * (value - last), 0.0)
            self._last[i] = value

    def ready(self) -> bool:
        return any(score.any() for score in self.arrays)


@CRITERIA.register("movement", tracker=Movement)
def movement(context: Context) -> Scores:
    """Movement in training: score = sum over the steps t of w_t * (w_{t+1} - w_t), which is signed (arXiv:2005.07683).

    Under SGD that is the paper's -sum of lr * w * dL/dw: high for weights that move away from zero, low for those that
    shrink, whatever their size. The difference is what the optimizer made of the gradient, so Adam's scaling and
    weight decay count, too.

    Callbacks add it up batch by batch, from zero at the start of each fit, and go on with the sum that a backup
    holds; with `steps_per_execution` = n, t counts n steps at once. That copies the weights to the host at each batch
    end. Before anything has moved, pruning by it is refused.

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
    return context.tracker.of(context.weights)
