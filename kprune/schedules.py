"""Schedules: optimizer step -> sparsity, and at which steps the masks are updated."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from typing import Any

from .registry import Registry

SCHEDULES = Registry("schedule")


@dataclass(frozen=True)
class Schedule:
    """A schedule of sparsities; subclasses define `at(progress)`.

    Masks are updated at `begin_step`, every `frequency` steps after it, and always at `end_step`, where the sparsity
    is exactly `final_sparsity`. Steps are optimizer steps (`optimizer.iterations`), not batches.

    Attributes:
        initial_sparsity: fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: fraction of zeros from `end_step` on, in [initial_sparsity, 1).
        begin_step: the first update; 0 is before the first training step.
        end_step: the last update, >= begin_step.
        frequency: steps between two updates, >= 1.
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    frequency: int = field(default=100, kw_only=True)  # by name only: tfmot has `power` in its place

    def __post_init__(self) -> None:
        check_sparsity("initial_sparsity", self.initial_sparsity)
        check_sparsity("final_sparsity", self.final_sparsity)
        for name in ("begin_step", "end_step", "frequency"):
            step = getattr(self, name)
            if not isinstance(step, numbers.Integral) or isinstance(step, bool):
                raise ValueError(f"`{name}` is a whole number of steps. Received: {name}={step!r}")
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "A pruned weight does not return, so a schedule cannot fall. Received: "
                f"initial_sparsity={self.initial_sparsity}, final_sparsity={self.final_sparsity}"
            )
        if self.begin_step < 0 or self.end_step < self.begin_step:
            raise ValueError(
                f"Steps must satisfy 0 <= begin_step <= end_step. Received: begin_step={self.begin_step}, "
                f"end_step={self.end_step}"
            )
        if self.frequency < 1:
            raise ValueError(f"`frequency` is a number of steps, at least 1. Received: frequency={self.frequency}")

    def at(self, progress: float) -> float:
        """Sparsity at `progress`, which runs from 0 at `begin_step` to 1 at `end_step`."""
        raise NotImplementedError

    def __call__(self, step: int) -> float:
        """Sparsity (fraction of zeros) at an optimizer step; 0 before `begin_step`."""
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        return self.at((step - self.begin_step) / (self.end_step - self.begin_step))


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """One update: `sparsity` from `begin_step` on.

    s(t) = sparsity for t >= begin_step, else 0.

    >>> schedule = Constant(0.8, begin_step=10)
    >>> schedule(9), schedule(10)
    (0.0, 0.8)
    """

    def __init__(self, sparsity: float, begin_step: int = 0):
        for name, value in dict(
            initial_sparsity=sparsity, final_sparsity=sparsity, begin_step=begin_step, end_step=begin_step, frequency=1
        ).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def at(self, progress: float) -> float:
        return self.final_sparsity


@SCHEDULES.register("polynomial")
@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """Fast at first, slower towards the end: "To prune, or not to prune" (arXiv:1710.01878).

    s(t) = final + (initial - final) * (1 - p)^power, with p = (t - begin) / (end - begin).

    >>> PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100, power=1)(50)
    0.4
    """

    power: float = field(default=3.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.power, int | float) or not self.power > 0:
            raise ValueError(f"`power` must be positive. Received: power={self.power!r}")

    def at(self, progress: float) -> float:
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1 - progress) ** self.power


@SCHEDULES.register("exponential")
@dataclass(frozen=True)
class Exponential(Schedule):
    """The density falls by the same factor at each step, as in SynFlow's rounds (arXiv:2006.05467).

    1 - s(t) = (1 - initial) * ((1 - final) / (1 - initial))^p, with p = (t - begin) / (end - begin).

    >>> schedule = Exponential(0.0, 0.99, begin_step=0, end_step=100)
    >>> round(schedule(50), 6)
    0.9
    """

    def at(self, progress: float) -> float:
        start, end = 1 - self.initial_sparsity, 1 - self.final_sparsity
        return 1 - start * (end / start) ** progress


@dataclass(frozen=True)
class TfmotSchedule(Schedule):
    """A `tensorflow_model_optimization` `PruningSchedule` read as ours; what `as_schedule` makes of one."""

    schedule: Any = None

    def at(self, progress: float) -> float:
        import tensorflow as tf

        step = self.begin_step + round(progress * (self.end_step - self.begin_step))
        return min(float(self.schedule(tf.constant(step))[1]), self.final_sparsity)


def as_schedule(schedule: Any) -> Schedule:
    """A schedule of ours as it is; a tfmot `PruningSchedule` converted.

    tfmot's begin_step, end_step and frequency are kept, but the last update always happens at `end_step` and lands on
    the final sparsity, which tfmot itself only does when (end - begin) is a multiple of the frequency. tfmot's
    ConstantSparsity prunes once, at its begin_step.

    Raises ValueError for anything else.
    """
    if isinstance(schedule, Schedule):
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


def last_update(schedule: Schedule, step: int) -> int | None:
    """The latest step at or before `step` at which the schedule updates the masks; None before its first.

    >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=10, end_step=45, frequency=10)
    >>> [last_update(schedule, step) for step in (9, 10, 29, 44, 45, 99)]
    [None, 10, 20, 40, 45, 45]
    """
    if step < schedule.begin_step:
        return None
    if step >= schedule.end_step:
        return schedule.end_step
    return step - (step - schedule.begin_step) % schedule.frequency


def check_sparsity(name: str, sparsity: float) -> None:
    """Raises ValueError unless 0 <= sparsity < 1."""
    if not isinstance(sparsity, numbers.Real) or isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(
            f"`{name}` is the fraction of zeros, at least 0 and below 1 (0.9 keeps a tenth). "
            f"Received: {name}={sparsity!r}"
        )
