"""A target sparsity that becomes a schedule when training begins and the number of steps is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..util.checks import check_expression, check_integer, check_number
from .base import Schedule
from .curves import PolynomialDecay
from .lookup import PerLayer

_UPDATES = 100


@dataclass(frozen=True)
class Planned:
    """The schedule in `GradualPruning(0.8, begin=0.1, end=0.7)`: a `PolynomialDecay` from 0, set up when a fit begins.

    Attributes:
        sparsity: fraction of zeros in (0, 1); or regular expression -> fraction, as in `PerLayer`.
        begin, end: the first and the last update, counted from where the fit starts: a float in [0, 1] is a share of
            the steps that the fit plans, an int a number of steps.
        frequency: steps between two updates; by default about a hundredth of the steps from begin to end.

    Raises:
        ValueError: one of them is none of these, or `end` lies before `begin`.

    >>> Planned(0.8).schedule(start=50, steps=1000)
    PolynomialDecay(initial_sparsity=0.0, final_sparsity=0.8, begin_step=150, end_step=750, frequency=6, power=3.0)
    """

    sparsity: Any
    begin: float | int = 0.1
    end: float | int = 0.7
    frequency: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, Mapping):
            if not self.sparsity:
                raise ValueError("A dict of sparsities must contain at least one entry. Received: schedule={}")
            for expression, sparsity in self.sparsity.items():
                check_expression(expression)
                _check_goal(f"schedule[{expression!r}]", sparsity)
        else:
            _check_goal("schedule", self.sparsity)
        for name in ("begin", "end"):
            check_share(name, getattr(self, name))
        if type(self.begin) is type(self.end) and self.end < self.begin:
            raise ValueError(f"`end` must not come before `begin`. Received: begin={self.begin!r}, end={self.end!r}")
        if self.frequency is not None:
            check_integer("frequency", self.frequency, 1)

    def schedule(self, start: int, steps: int | None) -> Schedule:
        """Return the schedule for a fit that begins at step `start` and takes `steps` steps (None if unknown)."""
        first, last = (start + steps_of(name, getattr(self, name), steps) for name in ("begin", "end"))
        if last < first:
            raise ValueError(
                f"`end` must not come before `begin`: if training ends at step {steps}, `begin` is step "
                f"{first - start} and `end` is step {last - start}. Received: begin={self.begin!r}, end={self.end!r}"
            )
        return self.at(first, last, self.frequency or max(1, math.ceil((last - first) / _UPDATES)))

    def at(self, first: int, last: int, frequency: int) -> Schedule:
        """Return the schedule with the given first step, last step and frequency."""

        def decay(sparsity: float) -> PolynomialDecay:
            return PolynomialDecay(0.0, sparsity, first, last, frequency=frequency)

        if isinstance(self.sparsity, Mapping):
            return PerLayer({expression: decay(sparsity) for expression, sparsity in self.sparsity.items()})
        return decay(self.sparsity)


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless the value is an integer >= 0 or a float in [0, 1] (a fraction of a fit's steps)."""
    if isinstance(value, float):
        check_number(
            name,
            value,
            "in [0, 1] (a fraction of the training steps) or an integer (a number of steps)",
            lambda v: 0 <= v <= 1,
        )
    else:
        check_integer(name, value, 0)


def steps_of(name: str, value: float | int, steps: int | None) -> int:
    """Convert a value to a number of steps; raise ValueError if it is a fraction but the total is unknown."""
    if not isinstance(value, float):
        return int(value)
    if steps is None:
        raise ValueError(
            f"`{name}` is a fraction of the total training steps, but that total is unknown: pass steps_per_epoch to "
            f"fit(), or pass `{name}` as an integer number of steps. Received: {name}={value!r}"
        )
    return math.floor(round(value * steps, 6))


def _check_goal(name: str, value: Any) -> None:
    check_number(name, value, "above 0 and below 1 (the target fraction of zeros)", lambda v: 0 < v < 1)
