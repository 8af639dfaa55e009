"""Schedules: optimizer step -> sparsity, and at which steps the masks are updated.

The curves themselves are in kprune/curves.py; their names are those of this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..util.checks import check_expression
from .curves import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    Geometric,
    Linear,
    OneCycle,
    PolynomialDecay,
    Schedule,
    check_sparsity,
)


@dataclass(frozen=True)
class TfmotSchedule(Schedule):
    """A `tensorflow_model_optimization` `PruningSchedule` read as ours; what `as_schedule` makes of one."""

    schedule: Any = None

    def at(self, progress: float) -> float:
        import tensorflow as tf

        step = self.begin_step + round(progress * (self.end_step - self.begin_step))
        return min(float(self.schedule(tf.constant(step))[1]), self.final_sparsity)


@dataclass(frozen=True)
class PerLayer:
    """A schedule of its own for each group of weights; for `GradualPruning`.

    s(t) is a dict, expression -> s_expression(t). Each member keeps its own steps: a group is pruned further at the
    updates of its own schedule only, and its sparsity is that of the group, shared within it by the callback's scope.

    Args:
        schedules: regular expression -> schedule (one of `kprune.schedules`, or a tfmot `PruningSchedule`). An
            expression is searched in a weight's path, and the first that matches takes the weight; weights that none
            matches are left alone.

    Attributes:
        schedules: expression -> `Schedule`, in the order given.

    Raises:
        ValueError: not a dict, an empty one, a key that is not a regular expression, a value that is no schedule. In
            a fit: an expression that matches no masked weight of the model.

    >>> schedule = PerLayer({"conv": Linear(0.0, 0.5, 0, 100), "": Linear(0.0, 0.9, 50, 150)})
    >>> schedule(0), schedule(100), schedule.end_step
    ({'conv': 0.0, '': 0.0}, {'conv': 0.5, '': 0.45}, 150)
    """

    schedules: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, Mapping) or not self.schedules:
            raise ValueError(
                "`schedules` must be a non-empty dict of regular expression -> schedule. Received: "
                f"schedules={self.schedules!r}"
            )
        for expression, schedule in self.schedules.items():
            check_expression(expression)
            if isinstance(schedule, PerLayer):
                raise ValueError(f"A member of PerLayer must be a plain schedule. Received: schedule={schedule!r}")
        members = {expression: as_schedule(schedule) for expression, schedule in self.schedules.items()}
        object.__setattr__(self, "schedules", members)

    @property
    def begin_step(self) -> int:
        """The first step at which any member updates."""
        return min(schedule.begin_step for schedule in self.schedules.values())

    @property
    def end_step(self) -> int:
        """The step of the last update of all."""
        return max(schedule.end_step for schedule in self.schedules.values())

    def check(self, paths: Iterable[str]) -> None:
        """Raises ValueError if an expression is found in none of the weights' paths."""
        paths = list(paths)
        for expression in self.schedules:
            if not any(re.search(expression, path) for path in paths):
                raise ValueError(
                    f"The regular expression matches none of these weights: {', '.join(paths)}. Received: "
                    f"expression={expression!r}"
                )

    def __call__(self, step: int) -> dict[str, float]:
        """Expression -> sparsity (fraction of zeros) at an optimizer step; 0 before a member's own begin."""
        return {expression: schedule(step) for expression, schedule in self.schedules.items()}


def as_schedule(schedule: Any) -> Schedule | PerLayer:
    """A schedule of ours, or a `PerLayer`, as it is; a tfmot `PruningSchedule` converted.

    tfmot's begin_step, end_step and frequency are kept, but the last update always happens at `end_step` and lands on
    the final sparsity, which tfmot itself only does when (end - begin) is a multiple of the frequency. tfmot's
    ConstantSparsity prunes once, at its begin_step.

    Raises ValueError for anything else.
    """
    if isinstance(schedule, Schedule | PerLayer):
        return schedule
    if any(cls.__module__.startswith("tensorflow_model_optimization.") for cls in type(schedule).__mro__):
        import tensorflow as tf

        begin, end = int(schedule.begin_step), int(schedule.end_step)
        end = begin if type(schedule).__name__ == "ConstantSparsity" or end < 0 else end
        first, last = (float(str(schedule(tf.constant(step))[1].numpy())) for step in (begin, end))
        return TfmotSchedule(first, last, begin, end, schedule, frequency=int(schedule.frequency))
    raise ValueError(
        f"Expected a schedule from kprune.schedules ({', '.join(SCHEDULES)}) or a tfmot PruningSchedule. "
        f"Received: schedule={schedule!r}"
    )


def last_update(schedule: Schedule | PerLayer, step: int) -> int | None:
    """The latest step at or before `step` at which the schedule updates the masks; None before its first.

    A `PerLayer` updates whenever one of its members does.

    >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=10, end_step=45, frequency=10)
    >>> [last_update(schedule, step) for step in (9, 10, 29, 44, 45, 99)]
    [None, 10, 20, 40, 45, 45]
    """
    if isinstance(schedule, PerLayer):
        updates = [last_update(member, step) for member in schedule.schedules.values()]
        return max((update for update in updates if update is not None), default=None)
    if step < schedule.begin_step:
        return None
    if step >= schedule.end_step:
        return schedule.end_step
    return step - (step - schedule.begin_step) % schedule.frequency


def applied(schedule: Schedule | PerLayer, step: int) -> Any:
    """The sparsity that the masks have at a step: the schedule's value at its last update; 0 before the first.

    Of a `PerLayer`: expression -> that of the member.

    >>> schedule = Linear(0.0, 0.8, begin_step=10, end_step=50, frequency=20)
    >>> [applied(schedule, step) for step in (29, 30, 49, 50)], schedule(49)
    ([0.0, 0.4, 0.4, 0.8], 0.78)
    """
    if isinstance(schedule, PerLayer):
        return {expression: applied(member, step) for expression, member in schedule.schedules.items()}
    update = last_update(schedule, step)
    return 0.0 if update is None else schedule(update)


__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "Exponential",
    "Geometric",
    "Linear",
    "OneCycle",
    "PerLayer",
    "PolynomialDecay",
    "Schedule",
    "TfmotSchedule",
    "applied",
    "as_schedule",
    "check_sparsity",
    "last_update",
]
