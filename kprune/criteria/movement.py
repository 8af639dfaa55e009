"""Movement: how far training has moved a weight away from zero or toward it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..masks import library_of, masked_weights
from ..runtime.distribution import as_tensor, on_host, to_numpy
from .base import CRITERIA, Context, Scores
from .engines.precision import compiled_with_float64
from .trackers import ArrayTracker


class Movement(ArrayTracker):
    """A running sum of how training moves the weights, for the criterion "movement": S += w_t * (w_{t+1} - w_t).

    The callbacks of `kprune.callbacks` have their own; this one is for a training loop of yours. S is added up in
    float64 where the weights lie, beside a copy of the last step's weights: 12 bytes for each float32 weight.

    Attributes:
        arrays: S so far, float64 arrays of the weights' shapes, in model order, copied from where they lie. A pruned
            weight keeps the S it had.

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

    @property
    def arrays(self) -> list[np.ndarray]:  # type: ignore[override]
        return [total if isinstance(total, np.ndarray) else to_numpy(total) for total in self._totals]

    @arrays.setter
    def arrays(self, arrays: list[np.ndarray]) -> None:
        self._totals: list[Any] = list(arrays)

    def begin(self, model: Any) -> None:
        values, _, (start, _) = _now(model)
        zeros, self._last = start(values)
        self._totals = self._totals or zeros

    def after_step(self, model: Any) -> None:
        values, masks, (_, add) = _now(model)
        self._totals, self._last = add(self._totals, self._last, values, masks)

    def end(self) -> None:
        self.arrays, self._last = self.arrays, []

    def ready(self) -> bool:
        return any(score.any() for score in self.arrays)


def _now(model: Any) -> tuple[list[Any], list[Any], Any]:
    """Return the tensors of the masked weights and of their masks, and the programs for them."""
    weights = masked_weights(model)
    fused = on_host(weight.variable for weight in weights)
    programs = _programs(library_of(model).backend(), fused)
    return [as_tensor(weight.variable) for weight in weights], [as_tensor(weight.mask) for weight in weights], programs


@functools.cache
def _programs(backend: str, fused: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return two programs: values -> (zeros, copies), and (S, last values, values, masks) -> (S, copies of values)."""
    if backend == "jax":
        from jax.numpy import astype as cast
        from jax.numpy import copy, where, zeros_like
    else:
        from tensorflow import cast, where, zeros_like
        from tensorflow import identity as copy

    def start(values: list[Any]) -> tuple[list[Any], list[Any]]:
        return [zeros_like(value, "float64") for value in values], list(map(copy, values))

    def add(totals: list[Any], lasts: list[Any], values: list[Any], masks: list[Any]) -> tuple[list[Any], list[Any]]:
        sums = []
        for total, last, value, mask in zip(totals, lasts, values, masks, strict=True):
            before, now = cast(last, "float64"), cast(value, "float64")
            sums.append(where(cast(mask, "bool"), total + before * (now - before), total))
        # Copies, since the next training step may give the memory of the values themselves away.
        return sums, list(map(copy, values))

    return compiled_with_float64(start, backend, fused), compiled_with_float64(add, backend, fused, (0, 1))


@CRITERIA.register("movement", tracker=Movement)
def movement(context: Context) -> Scores:
    """Movement in training: score = sum over the steps t of w_t * (w_{t+1} - w_t), which is signed (arXiv:2005.07683).

    Under SGD that is the paper's -sum of lr * w * dL/dw: high for weights that move away from zero, low for those that
    shrink, whatever their size. The difference is what the optimizer made of the gradient, so Adam's scaling and
    weight decay count, too.

    Callbacks add it up batch by batch, from zero at the start of each fit, and go on with the sum that a backup
    holds; with `steps_per_execution` = n, t counts n steps at once. Before anything has moved, pruning by it is
    refused.

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
