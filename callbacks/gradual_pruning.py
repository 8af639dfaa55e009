"""GradualPruning: prune during training, as a schedule says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from kprune.criteria import Movement
from kprune.masks import Masks, masked_weights, set_masks
from kprune.pruning import Plan
from kprune.runtime.files import split
from kprune.runtime.optimizers import batches_per_step, iterations
from kprune.schedules import PerLayer, Schedule, applied, as_schedule, last_update

from .base import MaskingCallback


class GradualPruning(MaskingCallback):
    """Raise the sparsity step by step while the model trains (arXiv:1710.01878).

    Masks are updated when `optimizer.iterations` reaches an update step of the schedule, at the first batch end from
    then on (with `steps_per_execution` = n, at most n - 1 steps late). The last update lands exactly on the final
    sparsity. Before training starts the schedule is held against the planned number of steps, and a warning is logged
    if the fit ends before the schedule does.

    Args:
        schedule: from `kprune.schedules`, or a tfmot `PruningSchedule` (on either Keras). With
            `kprune.schedules.PerLayer` each group of weights has a schedule, and the scope shares each group's
            sparsity within it.
        criterion, scope, pattern, rounds, seed, data, batches: as in `kprune.prune`.
        initial: as in `kprune.prune`; by default the weights at the start of the fit.

    The scores of criterion "movement" are collected by the callback itself, from the start of the fit on.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: the model has nothing to mask, or its optimizer cannot
            keep weights at zero (Muon), or an expression of a `PerLayer` is found in no masked weight's path; at an
            update: a score is not finite, or weights would be pruned by their "movement" before any has moved.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> schedule = kprune.schedules.PolynomialDecay(0.0, 0.75, begin_step=2, end_step=8, frequency=2)
    >>> callback = kprune.callbacks.GradualPruning(schedule)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity
    0.75
    """

    prunes_in_training = True

    def __init__(
        self,
        schedule: Schedule | PerLayer | Any,
        criterion: str | Callable[..., Any] = "magnitude",
        scope: str | Callable[..., Any] | None = None,
        pattern: str | Callable[..., Any] = "unstructured",
        rounds: int = 1,
        seed: int = 0,
        data: Any = None,
        batches: int | None = 1,
        initial: dict[str, np.ndarray] | None = None,
    ):
        super().__init__()
        self.schedule = as_schedule(schedule)
        self.plan = Plan(criterion, scope, pattern, rounds, seed, data, batches, initial)
        self.initial = initial
        self._updated_at: int | None = None
        self._movement: Movement | None = None

    def check_fit(self) -> None:
        self.plan.warned = False
        if isinstance(self.schedule, PerLayer):
            self.schedule.check(weight.path for weight in masked_weights(self.model))

    def on_train_begin(self, logs: Any = None) -> None:
        self._updated_at = None
        with self.undone():
            self._warn_of_a_short_fit()
            if "initial" in self.plan.needs and self.initial is None and not self._restored:
                self.plan.initial = {weight.path: weight.value() for weight in masked_weights(self.model)}
            if "movement" in self.plan.needs and not self._restored:
                self._collect(Movement(self.model))
            self._update(iterations(self.model))

    def get_state(self) -> dict[str, np.ndarray]:
        kept = {"initial": (self.initial is None and self.plan.initial) or {}, "movement": self.plan.movement or {}}
        return {f"{name}/{i}": a for name, arrays in kept.items() for i, a in enumerate(arrays.values())}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        # By order: Keras may have given the layers other names since.
        paths = [weight.path for weight in masked_weights(self.model)]
        held = split(state, "initial", "movement")
        if held["initial"]:
            self.plan.initial = dict(zip(paths, held["initial"].values(), strict=True))
        if held["movement"]:
            self._collect(Movement(self.model, dict(zip(paths, held["movement"].values(), strict=True))))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch)
        if self._movement is not None:  # what a backup or a rewind has moved is no training
            self._movement.begin()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        taken = iterations(self.model)
        if self._movement is not None:  # on JAX, `self.model` has just brought the variables up to date
            self._movement.add()
        self._update(taken)

    def _collect(self, movement: Movement) -> None:
        self._movement, self.plan.movement = movement, movement.scores

    def _update(self, taken: int) -> None:
        # Also right after a resumed start: pruning again to a sparsity that the masks have already changes nothing.
        step = last_update(self.schedule, taken)
        if step is not None and step != self._updated_at:
            masks = self.plan.masks(self.model, applied(self.schedule, step))
            self._check_movement(masks, step)
            set_masks(self.model, masks)
            self._updated_at = step

    def _check_movement(self, masks: Masks, step: int) -> None:
        """Raises ValueError if weights are to be pruned by their movement before any has moved."""
        if self._movement is None or any(score.any() for score in self._movement.scores.values()):
            return
        if any(np.any(weight.kept() & ~masks[weight.path]) for weight in masked_weights(self.model)):
            raise ValueError(
                f"The criterion {self.plan.name!r} goes by how weights moved since the fit began, and none has: let "
                "the schedule prune nothing before some hundred steps are taken. "
                f"Received: schedule={self.schedule!r}, which prunes at step {step}"
            )

    def _warn_of_a_short_fit(self) -> None:
        params = self.params or {}
        if not params.get("steps") or not params.get("epochs"):
            logging.warning(
                "GradualPruning: the number of steps of this fit is not known, so it cannot be checked that it reaches "
                "step %d, where the schedule ends; pass steps_per_epoch.",
                self.schedule.end_step,
            )
            return
        planned = params["steps"] * params["epochs"] // batches_per_step(self.model)
        # Of a PerLayer each member answers for itself.
        members = self.schedule.schedules if isinstance(self.schedule, PerLayer) else {None: self.schedule}
        for expression, schedule in members.items():
            if planned < schedule.end_step:
                logging.warning(
                    "GradualPruning%s: this fit ends at step %d (%d steps x %d epochs), before the schedule's "
                    "end_step=%d: it reaches sparsity %.4g, not the final %.4g. Set end_step to at most %d, or train "
                    "longer.",
                    "" if expression is None else f" of {expression!r}",
                    planned,
                    params["steps"],
                    params["epochs"],
                    schedule.end_step,
                    applied(schedule, planned),
                    schedule.final_sparsity,
                    planned,
                )
