"""ADMM: prune in rounds of increasing sparsity, each after a penalty has drawn the weights toward a sparse network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.criteria import Context, Scores
from kprune.masks import library_of, masked_weights, set_masks
from kprune.masks.keras3 import package, pull, unpull
from kprune.masks.pulls import pull_of
from kprune.masks.types import MaskedWeight
from kprune.pruning import Pruner
from kprune.runtime.files import joined, split
from kprune.runtime.writing import put
from kprune.schedules.planned import check_share, steps_of
from kprune.sparsities import check_one_goal
from kprune.util.checks import check_integer, check_number

from ._updating import UpdatingCallback


class ADMM(UpdatingCallback):
    """Progressive pruning by the alternating direction method of multipliers (arXiv:1810.07378).

    A round splits each weight W into itself, a sparse copy Z and a dual U. Training minimizes

        loss + rho / 2 * sum of ||W - Z + U||^2

    and `updates` times in a round, evenly spaced,

        Z <- the entries of W + U with the highest magnitudes, 0 elsewhere;  U <- W + U - Z

    so that a weight that the sparsity has no room for is pulled harder the longer it stays away from 0. The last update
    of a round prunes W to where Z is not 0; then the sparse network trains without the penalty, as long as the round
    was. Round r of n prunes to density (1 - sparsity) ** (r / n); what is pruned does not return.

    The penalty is part of the compiled train step, with Z - U and its strength as inputs: nothing is retraced. A step
    of your own that was compiled before the fit began does not have it. An interrupted fit leaves it on the model,
    until the next fit with a kprune callback, or `kprune.strip`, takes it away.

    Args:
        sparsity: fraction of zeros after the last round, in (0, 1), 0.9 by default; or a dict of regular expression ->
            sparsity, as in `kprune.prune`.
        rho: strength of the penalty, above 0.
        rounds: at least 1.
        updates: of Z and U in a round, at least 1.
        begin, end: the start of the first round and the end of the last one, counted from where the fit starts: a float
            in [0, 1] is a share of the steps that the fit plans, an int a number of steps.
        scope, pattern: as in `kprune.PruningConfig`, of Z.
        optimizer: the one whose steps count, where a `train_step` has its own; the compiled one by default.

    Attributes:
        residuals: ||W - Z|| / ||W|| of all weights as each round pruned them: near 0 if the penalty was strong enough.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or the model is one of
            tf_keras, or another callback prunes in the same fit, or there are fewer steps from `begin` to `end` than
            updates.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = kprune.callbacks.ADMM(0.75, rounds=2, updates=4)
    >>> history = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, epochs=6, verbose=0, callbacks=[callback])
    >>> history.history["sparsity"], len(callback.residuals)
    ([0.0, 0.5, 0.5, 0.5, 0.75, 0.75], 2)
    """

    store, alone = "zero", "draws the weights toward its own masks"

    def __init__(
        self,
        sparsity: float | dict[str, float] = 0.9,
        *,
        rho: float = 0.01,
        rounds: int = 3,
        updates: int = 8,
        begin: float | int = 0.1,
        end: float | int = 0.7,
        scope: Any = None,
        pattern: str | Callable[..., Any] = "unstructured",
        optimizer: Any = None,
    ):
        super().__init__(optimizer)
        self.pruner = Pruner(PruningConfig(self._squares, scope=scope, pattern=pattern))
        check_one_goal(sparsity, None)
        check_number("rho", rho, "above 0 and finite", lambda value: 0 < value < math.inf)
        check_integer("rounds", rounds, 1)
        check_integer("updates", updates, 1)
        for name, value in (("begin", begin), ("end", end)):
            check_share(name, value)
        self.sparsity, self.rho, self.rounds, self.updates = sparsity, float(rho), rounds, updates
        self.begin, self.end = begin, end
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._counter.forget()
        self.pruner.forget()
        self.residuals: tuple[float, ...] = ()
        self._steps: tuple[int, ...] = ()  # of all rounds: each has a start and its updates
        self._passed, self._taken = 0, 0
        self._duals: list[np.ndarray] = []  # in the order of the weights; empty outside of a round, as the targets are
        self._targets: list[np.ndarray] = []

    def check_fit(self) -> None:
        if library_of(self.model).package is not package:
            raise ValueError(
                "ADMM supports Keras 3 models only, because tf_keras has no way to remove a term from the loss. "
                f"Received: model={self.model.name!r}, library='tf_keras'"
            )

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()
            pull(self.model)

    def cancel_fit(self) -> None:
        unpull(self.model)

    def plan(self, taken: int, epoch: int) -> None:
        if not self._steps:
            planned, phases = self._counter.planned(epoch), 2 * self.rounds - 1
            first, last = (taken + steps_of(name, getattr(self, name), planned) for name in ("begin", "end"))
            if last - first < phases * self.updates:
                raise ValueError(
                    f"There must be at least {phases * self.updates} steps between `begin` (step {first}) and `end` "
                    f"(step {last}). Received: begin={self.begin!r}, end={self.end!r}, "
                    f"rounds={self.rounds}, updates={self.updates}"
                )
            bounds = [first + (last - first) * i // phases for i in range(phases + 1)]
            rounds = zip(bounds[::2], bounds[1::2], strict=True)
            self._steps = tuple(a + (b - a) * i // self.updates for a, b in rounds for i in range(self.updates + 1))
        self._pull()  # of a backup

    def next_due(self) -> int | None:
        return self._steps[self._passed] if self._passed < len(self._steps) else None

    def prunes_after(self, epoch: int) -> bool:
        left = self._counter.planned(epoch + 1)
        return left is not None and any(step <= self._taken + left for step in self._steps[self._passed :])

    def update(self, taken: int) -> None:
        """Perform all actions that are due, in order: starting rounds, updating Z and U, and pruning."""
        self._taken = taken
        while (due := self.next_due()) is not None and due <= taken:
            number, place = divmod(self._passed, self.updates + 1)
            self._passed += 1
            self._update(number + 1, place)

    def _update(self, number: int, place: int) -> None:
        weights = masked_weights(self.model)
        if place == 0:
            self._duals = [np.zeros_like(weight.value()) for weight in weights]
        masks = self.pruner.masks(self.model, self._sparsity(number))
        if place == self.updates:
            self.residuals = (*self.residuals, _residual(weights, masks))
            self._duals, self._targets = [], []
            set_masks(self.model, masks, self.optimizer)
        else:
            sums = [(masks[weight.path], weight.value() + u) for weight, u in self._with_duals(weights)]
            self._duals = [np.where(mask, 0, total) for mask, total in sums]
            self._targets = [np.where(mask, total, -total) for mask, total in sums]  # Z - U
        self._pull()

    def _pull(self) -> None:
        """Pull the weights toward the targets in the next training steps, or stop pulling if there are no targets."""
        for i, weight in enumerate(masked_weights(self.model)):
            own = pull_of(weight)
            if self._targets:
                put(own.target, self._targets[i])
            put(own.strength, np.asarray(self.rho if self._targets else 0, own.strength.dtype))

    def _sparsity(self, number: int) -> float | dict[str, float]:
        """Return the sparsity of a round; rounds are numbered from 1."""

        def risen(sparsity: float) -> float:
            return sparsity if number == self.rounds else 1 - (1 - sparsity) ** (number / self.rounds)

        if isinstance(self.sparsity, dict):
            return {expression: risen(sparsity) for expression, sparsity in self.sparsity.items()}
        return risen(self.sparsity)

    def _squares(self, context: Context) -> Scores:
        """Return (W + U)^2 as scores: keeping the highest gives the sparse network nearest to W + U."""
        values = {weight.path: value for weight, value in context.values()}
        return {w.path: np.square(values[w.path] + u, dtype=np.float64) for w, u in self._with_duals(context.weights)}

    def _with_duals(self, weights: list[MaskedWeight]) -> Iterator[tuple[MaskedWeight, np.ndarray]]:
        return zip(weights, self._duals, strict=True)

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        unpull(self.model)
        if self._passed < len(self._steps):
            logging.warning(
                "ADMM: training ended at step %d, before the end of the last round at step %d, so only %d of %d rounds "
                "pruned the network. Lower `end`, or train longer.",
                self._taken,
                self._steps[-1],
                len(self.residuals),
                self.rounds,
            )

    def get_state(self) -> dict[str, np.ndarray]:
        return joined(
            duals={str(i): dual for i, dual in enumerate(self._duals)},
            targets={str(i): target for i, target in enumerate(self._targets)},
            counter={"0": np.array(self._counter.get_state(), "float64")},
            residuals={"0": np.array(self.residuals, "float64")},
            steps={"0": np.array([self._passed, *self._steps], "int64")},
        )

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        held = split(state, "duals", "targets", "counter", "residuals", "steps")
        self._duals, self._targets = (
            [held[kind][str(i)] for i in range(len(held[kind]))] for kind in ("duals", "targets")
        )
        self._counter.set_state(held["counter"]["0"].tolist())
        self.residuals = tuple(held["residuals"]["0"].tolist())
        self._passed, *steps = held["steps"]["0"].tolist()
        self._steps = tuple(steps)


def _residual(weights: list[MaskedWeight], masks: dict[str, np.ndarray]) -> float:
    """Return ||W - Z|| / ||W||, where Z is W with the masks applied, or 0 if W is 0."""
    values = [(weight.value().astype(np.float64), masks[weight.path]) for weight in weights]
    lost, whole = sum(np.sum(v[~kept] ** 2) for v, kept in values), sum(np.sum(v**2) for v, _ in values)
    return float(math.sqrt(lost / whole)) if whole else 0.0
