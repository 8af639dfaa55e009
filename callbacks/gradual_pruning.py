"""GradualPruning: prune during training, following a schedule."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.masks import masked_weights
from kprune.pruning import Pruner
from kprune.runtime.files import joined, split
from kprune.schedules import Schedule, as_schedule
from kprune.schedules.planned import Planned
from kprune.sparsities import check_one_goal, goal_of
from kprune.util.checks import check_number

from ._updating import UpdatingCallback


class GradualPruning(UpdatingCallback):
    """Raise the sparsity step by step while the model trains (arXiv:1710.01878).

    Masks are updated when `optimizer.iterations` reaches an update step of the schedule, at the first batch end from
    then on (with `steps_per_execution` = n, at most n - 1 steps late). The last update lands exactly on the final
    sparsity. Before training starts the schedule is held against the planned number of steps, and a warning is logged
    if the fit ends before the schedule does; another one at its end if it did so for another reason.

    Where a `train_step` steps optimizers of its own, as a GAN's does, batches are counted as steps, and a warning says
    so; the slots of every optimizer that the model holds are reset where masks change.

    Args:
        schedule: the sparsity to reach, a float in (0, 1), by a `kprune.schedules.PolynomialDecay` from 0 between
            `begin` and `end`; or a dict of regular expression -> sparsity, so that each group of weights has its own.
            Or a schedule from `kprune.schedules`, or a tfmot `PruningSchedule` (on either Keras). With
            `kprune.schedules.PerLayer` each group has a schedule, and the scope shares each group's sparsity within
            it. Beside a budget None: what the model costs falls to it by the same PolynomialDecay.
        criterion: a name or function, as in `kprune.PruningConfig`; or a `PruningConfig`. What goes by how training
            went ("movement", "large_init" ...) is watched from the start of the fit on.
        begin, end: with a sparsity, its first and its last update, counted from where the fit starts: a float in
            [0, 1] is a share of the steps that the fit plans, an int a number of steps.
        frequency: with a sparsity, steps between two updates; by default about a hundredth of those from begin to end.
        margin: lets pruned weights return (dynamic network surgery, arXiv:1608.04493; Keras 3 only). They keep their
            value behind the mask and train on, with the gradient that they would have if they were kept; at an update
            one returns if its score is `margin` times that of a kept one, at least 1, whose place it takes (the paper:
            1.1 / 0.9; with 1 it is straight-through magnitude pruning). An unmasked model is given masks with
            `store="latent"`, one that is masked must have them: see `kprune.mask`.
        optimizer: the one whose steps count, where a `train_step` has its own; the compiled one by default.
        data, batches: as in `kprune.prune`.
        config_fields: scope, pattern, groups, budget, rounds (here 1 by default) and seed, as in
            `kprune.PruningConfig`.

    Attributes:
        schedule: the `kprune.schedules.Schedule`; None, if a sparsity was given, until a fit begins.

    Raises:
        ValueError: an argument is wrong, or `begin`, `end` or `frequency` stands beside a schedule; at the start of
            `fit`: the model has nothing to mask, or its optimizer cannot keep weights at zero (Muon), or an expression
            is found in no masked weight's path, or the budget cannot be kept, or `begin` or `end` is a share of a
            number of steps that is not known;
            at an update: a score is not finite, or weights would be pruned by their "movement" before any has moved.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = kprune.callbacks.GradualPruning(0.75)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity, callback.schedule.begin_step, callback.schedule.end_step
    (0.75, 1, 11)
    """

    def __init__(
        self,
        schedule: float | Mapping[str, float] | Schedule | Any = None,
        criterion: str | Callable[..., Any] | PruningConfig = "magnitude",
        *,
        begin: float | int = 0.1,
        end: float | int = 0.7,
        frequency: int | None = None,
        margin: float | None = None,
        optimizer: Any = None,
        data: Any = None,
        batches: int | None = 1,
        **config_fields: Any,
    ):
        super().__init__(optimizer)
        if not isinstance(criterion, PruningConfig):
            config_fields = {"rounds": 1, **config_fields}
        config = PruningConfig.of(criterion, **config_fields)
        if schedule is None or config.budget is not None:
            check_one_goal(schedule, config.budget)
            schedule = goal_of(None, config.budget)
        self._planned: Planned | None = None
        if isinstance(schedule, Mapping) or (isinstance(schedule, numbers.Real) and not isinstance(schedule, bool)):
            self._planned = Planned(schedule, begin, end, frequency)
        elif (begin, end, frequency) != (0.1, 0.7, None):
            raise ValueError(
                "`begin`, `end` and `frequency` apply only when a sparsity is passed: a schedule already defines "
                f"its steps. Received: schedule={schedule!r:.200}, begin={begin!r}, end={end!r}, "
                f"frequency={frequency!r}"
            )
        self.schedule: Schedule | None = as_schedule(schedule) if self._planned is None else None
        if margin is not None:
            check_number("margin", margin, ">= 1", lambda value: 1 <= value < math.inf)
            self.store = "latent"
        self.pruner = Pruner(config, data, batches, margin)
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._counter.forget()
        self._updated_at: int | None = None
        self._next: int | None = None
        self._taken: int | None = None
        self._warned: bool | None = None  # of a fit that is too short; None before it is looked at
        if self._planned is not None:
            self.schedule = None

    def check_fit(self) -> None:
        schedule = self.schedule if self._planned is None else self._planned.schedule(0, self._counter.planned(0))
        if schedule is not None:
            schedule.check(weight.path for weight in masked_weights(self.model))

    def prunes_after(self, epoch: int) -> bool:
        left = self._counter.planned(epoch + 1)
        return None not in (self._next, self._taken, left) and self._next <= self._taken + left  # type: ignore[operator]

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()
                self.pruner.forget()
                self.pruner.begin(self.model)
            self.update(self._counter.now())

    def get_state(self) -> dict[str, np.ndarray]:
        at = [self.schedule.begin_step, self.schedule.end_step, self.schedule.frequency] if self.schedule else []
        return joined(
            tracker=self.pruner.get_state(),
            counter={"0": np.array(self._counter.get_state(), "float64")},
            steps={"0": np.array(at, "int64")},
            updated={"0": np.array([] if self._updated_at is None else [self._updated_at], "int64")},
        )

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        # Backups of kprune 0.1 name the tracker by its criterion, and hold none of the others.
        held = split(state, "tracker", "initial", "movement", "counter", "steps", "updated")
        counter, steps, updated = held.pop("counter"), held.pop("steps"), held.pop("updated")
        if updated and updated["0"].size:
            self._updated_at = int(updated["0"][0])
        if counter:
            self._counter.set_state(counter["0"].tolist())
        if self._planned is not None and steps and steps["0"].size:
            self.schedule = self._planned.at(*steps["0"].tolist())
        self.pruner.set_state(self.model, next(filter(None, held.values()), {}))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch)
        self.pruner.resume(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        self.pruner.end()
        if self._taken is not None and not self._warned:
            self._warn_of_steps_not_reached(self._taken, f"training ended at step {self._taken}")

    def plan(self, taken: int, epoch: int) -> None:
        if self.schedule is None and self._planned is not None:
            self.schedule = self._planned.schedule(taken, self._counter.planned(epoch))
        if self._warned is None:
            self._warned = self._warn_of_a_short_fit(taken, epoch)

    def next_due(self) -> int | None:
        return self._next

    def update(self, taken: int) -> None:
        if self.schedule is None:
            return
        self._taken, self._next = taken, self.schedule.next_due(taken)
        # Also right after a resumed start: pruning again to a sparsity that the masks have already changes nothing.
        step = self.schedule.last_due(taken)
        if step is not None and step != self._updated_at:
            self.pruner.update(self.model, self.schedule.applied(step), self.optimizer)
            self._updated_at = step

    def _warn_of_a_short_fit(self, taken: int, epoch: int) -> bool:
        """Warn if the fit is known to end before the schedule does."""
        steps = self._counter.planned(epoch)
        if steps is not None:
            epochs = f"({(self.params or {})['steps']} steps x {(self.params or {})['epochs'] - epoch} epochs)"
            return self._warn_of_steps_not_reached(taken + steps, f"training ends at step {taken + steps} {epochs}")
        if self.schedule is not None:
            logging.warning(
                "GradualPruning: the total number of training steps is unknown, so kprune cannot check whether "
                "training reaches step %d, where the schedule ends. Pass steps_per_epoch to fit().",
                self.schedule.end_step,
            )
        return False

    def _warn_of_steps_not_reached(self, end: int, how: str) -> bool:
        """Return whether the schedule continues after the fit's last step, and log a warning if so."""
        advice = f"end_step to at most {end}"
        if self._planned is not None:
            advice = f"end to at most {end - (self._counter.begun or 0)} steps"  # from where the fit starts
        short = {} if self.schedule is None else self.schedule.members()
        short = {expression: schedule for expression, schedule in short.items() if end < schedule.end_step}
        for expression, schedule in short.items():
            logging.warning(
                "GradualPruning%s: %s, before the schedule's end_step=%d, so the final sparsity is %.4g "
                "instead of %.4g. Set %s, or train longer.",
                "" if expression is None else f" for {expression!r}",
                how,
                schedule.end_step,
                schedule.applied(end),
                schedule.final_sparsity,
                advice,
            )
        return bool(short)
