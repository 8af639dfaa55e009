"""Schedules that differ in how the sparsity rises from step to step."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field

import numpy as np

from ..util.checks import check_number
from .base import SCHEDULES, Schedule, check_sparsity


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """A schedule with a single update, which sets `sparsity` at `begin_step`.

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

    @property
    def sparsity(self) -> float:
        """The fraction of zeros from `begin_step` onward."""
        return self.final_sparsity

    def at(self, progress: float) -> float:
        return self.final_sparsity


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """A schedule that raises the sparsity by the same amount at each step.

    s(t) = initial + (final - initial) * p, with p = (t - begin) / (end - begin).

    >>> Linear(0.0, 0.8, begin_step=0, end_step=100)(25)
    0.2
    """

    def at(self, progress: float) -> float:
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * progress


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """A schedule along half a period of a cosine: slow at the start and the end, and fast in the middle.

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
    """A schedule that is slow, then fast around p = beta / alpha, then slow: "One-Cycle Pruning" (arXiv:2107.02086).

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
                raise ValueError(f"`{name}` must be a finite number. Received: {name}={value!r}")
        if self.alpha <= 0:
            raise ValueError(
                f"`alpha` must be positive, because otherwise the curve would not rise. Received: alpha={self.alpha!r}"
            )

    def at(self, progress: float) -> float:
        # log(1 + exp(x)) as `logaddexp(0, x)`: a large beta does not overflow.
        share = np.exp(np.logaddexp(0, self.beta - self.alpha) - np.logaddexp(0, self.beta - self.alpha * progress))
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * float(share)


@SCHEDULES.register("geometric")
@dataclass(frozen=True)
class Geometric(Schedule):
    """A schedule whose updates each prune the same fraction of the remaining weights (arXiv:1803.03635).

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
            raise ValueError(
                f"This many updates would prune all weights: lower `rate` or raise `frequency`. Received: {received}"
            )

    def at(self, progress: float) -> float:
        return self._after(1 + round(progress * (self.end_step - self.begin_step)) // self.frequency)

    def _after(self, updates: int) -> float:
        # Rounded, so that 1 - 0.8**3 is 0.488, and not 0.48799999999999993.
        return float(round(1 - (1 - self.rate) ** updates, 12))


@SCHEDULES.register("polynomial")
@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """A schedule that is fast at first and slower toward the end: "To prune, or not to prune" (arXiv:1710.01878).

    s(t) = final + (initial - final) * (1 - p)^power, with p = (t - begin) / (end - begin).

    >>> PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100, power=1)(50)
    0.4
    """

    power: float = field(default=3.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("power", self.power, "above 0", lambda value: value > 0)

    def at(self, progress: float) -> float:
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1 - progress) ** self.power


@SCHEDULES.register("exponential")
@dataclass(frozen=True)
class Exponential(Schedule):
    """A schedule whose density falls by the same factor at each step, as in SynFlow's rounds (arXiv:2006.05467).

    1 - s(t) = (1 - initial) * ((1 - final) / (1 - initial))^p, with p = (t - begin) / (end - begin).

    >>> schedule = Exponential(0.0, 0.99, begin_step=0, end_step=100)
    >>> round(schedule(50), 6)
    0.9
    """

    def at(self, progress: float) -> float:
        start, end = 1 - self.initial_sparsity, 1 - self.final_sparsity
        return 1 - start * (end / start) ** progress
