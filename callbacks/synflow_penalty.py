"""SynFlow penalty: a term of the training loss that reduces the network's synaptic flow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kprune.criteria import Context
from kprune.criteria.synflow import log_flow
from kprune.masks import current_masks, library_of, masked_weights
from kprune.masks.keras3 import package, pull, unpull
from kprune.masks.pulls import Slope, pull_of
from kprune.runtime.distribution import outside_strategies
from kprune.runtime.files import joined, split
from kprune.runtime.writing import put
from kprune.util.checks import check_integer, check_number

from ._updating import UpdatingCallback
from .admm import ADMM


class SynFlowPenalty(UpdatingCallback):
    """Add strength * log R to the training loss, where R is the synaptic flow of an all-ones input (arXiv:2006.05467).

    R, the sum of the outputs of the network of absolute weights, is the sum over all paths of the product of their
    weights, so the penalty shrinks each weight by its share of the flow: of a weight w

        strength * d(log R)/dw = strength * sign(w) * (dR/d|w|) / R

    and of each layer of a chain, without biases, the sum of w times this is `strength`, whatever the layer's scale. It
    needs no data. Unlike weight decay it does not fade as a weight comes near to 0, so with a callback that prunes by
    magnitude or SynFlow in the same fit, what carries little is small when it is pruned. It prunes nothing itself.

    The gradient is computed in float64 on the host's CPU, as the criterion "synflow" is, and stays as it is for
    `frequency` steps; in the compiled step it is a linear term of the loss, with the gradient as an input.

    Args:
        strength: factor of log R, above 0. Losses are of the order of 1, and log R of that of the number of layers.
        frequency: steps between two gradients, at least 1.
        optimizer: the one whose steps count, where a `train_step` has its own; the compiled one by default.

    Attributes:
        log_flow: log R when the gradient was last computed; None before.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or the model is one of
            tf_keras, ADMM or another SynFlowPenalty is in the same fit, or R is 0 or beyond float64.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> callbacks = [kprune.callbacks.SynFlowPenalty(0.01, frequency=2), kprune.callbacks.GradualPruning(0.5)]
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), epochs=8, verbose=0, callbacks=callbacks)
    >>> kprune.summary(model).sparsity, callbacks[0].log_flow > 0
    (0.5, True)
    """

    store, prunes = "zero", ""

    def __init__(self, strength: float = 0.001, *, frequency: int = 100, optimizer: Any = None):
        super().__init__(optimizer)
        check_number("strength", strength, "above 0 and finite", lambda value: 0 < value < math.inf)
        check_integer("frequency", frequency, 1)
        self.strength, self.frequency = float(strength), frequency
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._counter.forget()
        self.log_flow: float | None = None
        self._at: int | None = None  # the step of the last gradient
        self._slopes: list[np.ndarray] = []

    def check_fit(self) -> None:
        if library_of(self.model).package is not package:
            raise ValueError(
                "SynFlowPenalty supports Keras 3 models only, because tf_keras has no way to remove a term from the "
                f"loss. Received: model={self.model.name!r}, library='tf_keras'"
            )
        for other in self._carrier.callbacks:
            if other is not self and isinstance(other, ADMM | SynFlowPenalty):
                raise ValueError(
                    "SynFlowPenalty cannot be used together with a callback that adds another term to the loss. "
                    "Received: "
                    f"other={type(other).__name__}"
                )

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()
            pull(self.model, Slope)

    def cancel_fit(self) -> None:
        unpull(self.model)

    def plan(self, taken: int, epoch: int) -> None:
        """Use the gradient from a backup, if any; the steps at which a new one is due depend only on `frequency`."""
        self._put()  # of a backup

    def next_due(self) -> int:
        return (self._counter.begun or 0) if self._at is None else self._at + self.frequency

    def update(self, taken: int) -> None:
        """Compute the gradient if an update is due; if several updates are overdue, compute it only once."""
        if taken >= self.next_due():
            begun = self._counter.begun or 0
            self._at = begun + (taken - begun) // self.frequency * self.frequency
            weights = masked_weights(self.model)
            context = Context(self.model, weights, current_masks(self.model))
            self.log_flow, slopes = outside_strategies(lambda: log_flow(context))
            self._slopes = [slopes[weight.path].astype(weight.value().dtype) for weight in weights]
            self._put()

    def _put(self) -> None:
        for weight, slope in zip(masked_weights(self.model), self._slopes, strict=False):
            own = pull_of(weight)
            put(own.target, slope)
            put(own.strength, np.asarray(self.strength, own.strength.dtype))

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        unpull(self.model)

    def get_state(self) -> dict[str, np.ndarray]:
        numbers = [math.nan if value is None else value for value in (self._at, self.log_flow)]
        return joined(
            slopes={str(i): slope for i, slope in enumerate(self._slopes)},
            counter={"0": np.array(self._counter.get_state(), "float64")},
            numbers={"0": np.array(numbers, "float64")},
        )

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        held = split(state, "slopes", "counter", "numbers")
        self._slopes = [held["slopes"][str(i)] for i in range(len(held["slopes"]))]
        self._counter.set_state(held["counter"]["0"].tolist())
        at, flow = held["numbers"]["0"].tolist()
        self._at, self.log_flow = (None if math.isnan(at) else int(at)), (None if math.isnan(flow) else flow)
