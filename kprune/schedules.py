"""Schedules: optimizer step -> sparsity, and at which steps the masks are updated."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """The same amount at each step.

    s(t) = initial + (final - initial) * p, with p = (t - begin) / (end - begin).

    >>> Linear(0.0, 0.8, begin_step=0, end_step=100)(25)
    0.2
    """

    def at(self, progress: float) -> float:
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * progress


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Slow at first and at the end, fast in the middle: half a period of a cosine.

    s(t) = final + (initial - final) * (1 + cos(pi p)) / 2, with p = (t - begin) / (end - begin).

    >>> schedule = Cosine(0.0, 0.8, begin_step=0, end_step=100)
    >>> round(schedule(10), 3), round(schedule(50), 3)
    (0.02, 0.4)
    """

    def at(self, progress: float) -> float:
        remaining = (1 + math.cos(math.pi * progress)) / 2
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * remaining


@SCHEDULES.register("one_cycle")
@dataclass(frozen=True)
class OneCycle(Schedule):
    """Slow, then fast around p = beta / alpha, then slow: "One-Cycle Pruning" (arXiv:2107.02086).

    s(t) = initial + (final - initial) * (1 + exp(beta - alpha)) / (1 + exp(beta - alpha p)),
    with p = (t - begin) / (end - begin).

    As in the paper, the curve does not begin at the initial sparsity itself: at `begin_step` it is above it by a share
    of (final - initial) that is 0.7 % with the default alpha and beta.

    Attributes:
        alpha: how steep the curve is, above 0.
        beta: how late it rises; the steepest point is at p = beta / alpha.

    >>> schedule = OneCycle(0.0, 0.9, begin_step=0, end_step=100)
    >>> [round(schedule(step), 3) for step in (0, 20, 36, 50, 100)]
    [0.006, 0.09, 0.459, 0.793, 0.9]
    """

    alpha: float = field(default=14.0, kw_only=True)
    beta: float = field(default=5.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"`{name}` is a finite number. Received: {name}={value!r}")
        if self.alpha <= 0:
            raise ValueError(f"`alpha` must be positive, or the curve would not rise. Received: alpha={self.alpha!r}")

    def at(self, progress: float) -> float:
        # log(1 + exp(x)) as `logaddexp(0, x)`: a large beta does not overflow.
        share = np.exp(np.logaddexp(0, self.beta - self.alpha) - np.logaddexp(0, self.beta - self.alpha * progress))
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * float(share)


@SCHEDULES.register("geometric")
@dataclass(frozen=True)
class Geometric(Schedule):
    """Each update prunes the same share of what is left, as a lottery ticket's rounds do (arXiv:1803.03635).

    1 - s = (1 - rate)^k after the k-th update. The update at `begin_step` is the first one, k = 1; the one at
    `end_step` is the last, k = n = 1 + ceil((end - begin) / frequency), and prunes the full share also where it comes
    less than `frequency` steps after the one before. So `initial_sparsity` is `rate` and `final_sparsity` is
    1 - (1 - rate)^n. All are rounded to 12 decimals.

    Attributes:
        rate: the share of the remaining weights that an update prunes, in [0, 1).

    Raises:
        ValueError: as for every schedule, or the updates leave less than 1e-12 of the weights.

    >>> schedule = Geometric(0.2, begin_step=100, end_step=400, frequency=100)
    >>> [schedule(step) for step in (99, 100, 199, 200, 300, 400)]
    [0.0, 0.2, 0.2, 0.36, 0.488, 0.5904]
    """

    rate: float = 0.0

    def __init__(self, rate: float, begin_step: int, end_step: int, *, frequency: int = 100):
        check_sparsity("rate", rate)
        steps = {"begin_step": begin_step, "end_step": end_step, "frequency": frequency}
        # The sparsities follow from the steps, which have to be checked first.
        for name, value in {"rate": rate, "initial_sparsity": 0.0, "final_sparsity": 0.0, **steps}.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        object.__setattr__(self, "initial_sparsity", self._after(1))
        object.__setattr__(self, "final_sparsity", self._after(1 - (begin_step - end_step) // frequency))
        if self.final_sparsity == 1:
            received = ", ".join(f"{name}={value!r}" for name, value in {"rate": rate, **steps}.items())
            raise ValueError(f"So many updates at this rate leave nothing. Received: {received}")

    def at(self, progress: float) -> float:
        return self._after(1 + round(progress * (self.end_step - self.begin_step)) // self.frequency)

    def _after(self, updates: int) -> float:
        # Rounded, so that 1 - 0.8**3 is 0.488, and not 0.48799999999999993.
        return float(round(1 - (1 - self.rate) ** updates, 12))


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
                f"Expected a dict, regular expression -> schedule, not empty. Received: schedules={self.schedules!r}"
            )
        for expression, schedule in self.schedules.items():
            _check_expression(expression)
            if isinstance(schedule, PerLayer):
                raise ValueError(f"A member of a PerLayer is a plain schedule. Received: schedule={schedule!r}")
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
                    f"The expression is found in none of {', '.join(paths)}. Received: expression={expression!r}"
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


def plot_schedule(schedules: Any, path: str | os.PathLike[str] | None = None, steps: int | None = None) -> Figure:
    """Draw schedules as they are applied: the sparsity jumps at each update and stays until the next.

    Args:
        schedules: a schedule (of `kprune.schedules`, `PerLayer` included, or tfmot's), several in a list, or a dict
            label -> schedule.
        path: where to write the figure, if anywhere: .png, .svg or .pdf.
        steps: optimizer steps to draw, from 0 on, at least 1; by default a tenth more than the longest schedule has.

    Returns:
        The `matplotlib.figure.Figure`. No display is needed and no state of pyplot is touched.

    Raises:
        ValueError: the path ends in something else, or what is given is no schedule or number of steps.

    >>> import kprune
    >>> figure = kprune.plot_schedule({"ours": Linear(0.0, 0.8, 0, 100, frequency=25)})
    >>> figure.axes[0].get_ylabel()
    'sparsity'
    """
    if steps is not None and (not isinstance(steps, numbers.Integral) or isinstance(steps, bool) or steps < 1):
        raise ValueError(f"`steps` is a whole number of steps, at least 1. Received: steps={steps!r}")
    from .plots import draw_schedules, written

    return written(path, lambda: draw_schedules(schedules, steps))


def _check_expression(expression: Any) -> None:
    """Raises ValueError unless it is a regular expression, as text."""
    try:
        if not isinstance(expression, str):
            raise TypeError
        re.compile(expression)
    except (re.error, TypeError):
        raise ValueError(
            f"Expected a regular expression, to be searched in paths of weights. Received: expression={expression!r}"
        ) from None


def check_sparsity(name: str, sparsity: float) -> None:
    """Raises ValueError unless 0 <= sparsity < 1."""
    if not isinstance(sparsity, numbers.Real) or isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(
            f"`{name}` is the fraction of zeros, at least 0 and below 1 (0.9 keeps a tenth). "
            f"Received: {name}={sparsity!r}"
        )
