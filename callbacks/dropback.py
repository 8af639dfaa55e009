"""DropBack: train only the weights that move most, and keep all others at their initial values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.criteria import Context, InitialWeights, Scores
from kprune.masks import masked_weights, set_masks
from kprune.masks.optimizers import fits, trainers
from kprune.pruning import Pruner
from kprune.runtime.files import joined, split
from kprune.runtime.optimizers import slots
from kprune.runtime.writing import keep_where, put
from kprune.sparsities import check_one_goal
from kprune.util.checks import check_number

from ._updating import UpdatingCallback

RESOLUTION = 2.0**-24
"""Half of float32's spacing at 1: what is left of an initial value by this factor is lost beside that value."""


class DropBack(UpdatingCallback):
    """Reset all weights to their initial values after each step, except those that have moved most (arXiv:1806.06949).

    After step t, counted from where the fit starts:

        w <- w if |w - w_0 * decay^s| is among the k highest, else w_0 * decay^t

    where s is the step of the update before and k = size - floor(sparsity * size). So an untracked weight becomes
    tracked when a single step moves it further than some tracked one has come. The optimizer's slots of untracked
    weights are reset, so that this step has no momentum.

    With the paper's decay = 1 the network stays dense: its k tracked weights and the seed of the others describe it,
    and `sparsity` in Keras's logs is 0. With decay < 1 the initial values fade, and at the first step at which
    decay^t <= 2^-24, or at the planned end of the fit if that comes first, the untracked weights become exactly 0: they
    are masked, and only the tracked weights train on.

    The paper draws the initial values anew from the seed at each step. Here one copy of them is in the host's memory,
    and in backups: a network may have started from loaded weights. To rank them, weights are copied to the host at
    each batch end; with `steps_per_execution` = n, every n steps.

    Args:
        sparsity: fraction of weights that are untracked, in [0, 1), 0.9 by default; or a dict of regular expression ->
            fraction, as in `kprune.prune`.
        decay: factor per step of the initial values, above 0 and at most 1.
        scope, pattern: as in `kprune.PruningConfig`, of the tracked weights.
        optimizer: the one whose steps count, where a `train_step` has its own; the compiled one by default.

    Attributes:
        initial: the `kprune.criteria.InitialWeights` of the fit; its `arrays` are in the order of
            `kprune.masked_weights`.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or another one prunes in
            the same fit.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = kprune.callbacks.DropBack(0.75)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[callback])
    >>> pairs = zip(kprune.masked_weights(model), callback.initial.arrays)
    >>> sum(int((weight.value() != first).sum()) for weight, first in pairs)  # of 8 * 16 + 16
    36
    >>> callback = kprune.callbacks.DropBack(0.75, decay=0.01)  # 0.01^4 < 2^-24
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity, callback.closes
    (0.75, 12)
    """

    store, alone = "zero", "resets weights to their initial values"

    def __init__(
        self,
        sparsity: float | dict[str, float] = 0.9,
        *,
        decay: float = 1.0,
        scope: Any = None,
        pattern: str | Callable[..., Any] = "unstructured",
        optimizer: Any = None,
    ):
        super().__init__(optimizer)
        self.pruner = Pruner(PruningConfig(self._moved, scope=scope, pattern=pattern))
        check_one_goal(sparsity, None)
        check_number("decay", decay, "above 0 and at most 1", lambda value: 0 < value <= 1)
        self.sparsity, self.decay = sparsity, decay
        if decay == 1:
            self.prunes = ""
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._counter.forget()
        self.pruner.forget()
        self.initial = InitialWeights()
        self.closes: int | None = None
        self._at: int | None = None  # the step of the last update

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()
                self.initial.begin(self.model)

    def plan(self, taken: int, epoch: int) -> None:
        if self._at is not None:
            return
        self._at = taken
        if self.decay < 1:
            fades, planned = math.ceil(math.log(RESOLUTION) / math.log(self.decay)), self._counter.planned(epoch)
            self.closes = taken + (fades if planned is None else min(fades, planned))
            if planned is not None and planned < fades:
                logging.warning(
                    "DropBack: training ends at step %d, when the initial values are still multiplied by %.2g, so they "
                    "will drop to 0 abruptly. Lower `decay` to at most %.6g, or train longer.",
                    self.closes,
                    self.decay**planned,
                    math.floor(1e6 * RESOLUTION ** (1 / planned)) / 1e6,
                )

    def next_due(self) -> int | None:
        return None if self._at is None or self._closed() else self._at + 1

    def prunes_after(self, epoch: int) -> bool:
        return self.closes is not None and not self._closed()

    def update(self, taken: int) -> None:
        """After a step, reset the weights that have moved least, or mask them once the initial values have faded."""
        if self._at is None or taken == self._at or self._closed():
            return
        masks = self.pruner.masks(self.model, self.sparsity)
        self._at = taken
        if self._closed():
            set_masks(self.model, masks, self.optimizer)
            return
        weights = masked_weights(self.model)
        optimizers = trainers(self.model, [weight.variable for weight in weights], self.optimizer)
        for weight, reset in self._resets(weights):
            put(weight.variable, np.where(masks[weight.path], weight.seen(), reset))
            held = [pair for trainer in optimizers for pair in slots(trainer, weight.variable)]
            keep_where(masks[weight.path], held, donate=fits(self.model))

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        if self.closes is not None and not self._closed():
            logging.warning(
                "DropBack: training ended at step %d, but the initial values fade out only at step %d, so the network "
                "is still dense. Lower `decay`, or train longer.",
                self._at,
                self.closes,
            )

    def get_state(self) -> dict[str, np.ndarray]:
        steps = [-1 if step is None else step for step in (self._at, self.closes)]
        counter = np.array(self._counter.get_state(), "float64")
        return joined(initial=self.initial.get_state(), counter={"0": counter}, steps={"0": np.array(steps, "int64")})

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        held = split(state, "initial", "counter", "steps")
        self.initial.set_state(held["initial"])
        self._counter.set_state(held["counter"]["0"].tolist())
        self._at, self.closes = (None if step < 0 else step for step in held["steps"]["0"].tolist())

    def _closed(self) -> bool:
        return self.closes is not None and self._at is not None and self._at >= self.closes

    def _resets(self, weights: list[Any]) -> list[tuple[Any, np.ndarray]]:
        """Return each weight with the values that its untracked entries have after the last update."""
        left = self.decay ** ((self._at or 0) - (self._counter.begun or 0))
        first = self.initial.of(weights)
        return [(weight, first[weight.path] * np.asarray(left, first[weight.path].dtype)) for weight in weights]

    def _moved(self, context: Context) -> Scores:
        """Return how far training has moved each entry from the value that it would be reset to."""
        values = {weight.path: value for weight, value in context.values()}
        return {weight.path: np.abs(values[weight.path] - reset) for weight, reset in self._resets(context.weights)}
