"""The base class of schedules, which map optimizer steps to sparsities and define when masks are updated."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from ..util.checks import check_fields
from ..util.registry import Registry

SCHEDULES = Registry("schedule")


@dataclass(frozen=True)
class Schedule:
    """Base class of schedules; subclasses define `at(progress)`.

    Masks are updated at `begin_step`, every `frequency` steps after it, and always at `end_step`, where the sparsity
    is exactly `final_sparsity`. Steps are optimizer steps (`optimizer.iterations`), not batches. A schedule with
    updates of another kind defines `last_due` and `next_due`.

    Attributes:
        initial_sparsity: fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: fraction of zeros from `end_step` on, in [initial_sparsity, 1).
        begin_step: the first update; 0 is before the first training step.
        end_step: the last update, >= begin_step.
        frequency: steps between two updates, >= 1.

    >>> import kprune
    >>> schedule = kprune.schedules.Linear(0.0, 0.8, begin_step=10, end_step=50, frequency=20)
    >>> schedule(49), schedule.applied(49), schedule.due(49), schedule.next_due(49)
    (0.78, 0.4, False, 50)
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
                raise ValueError(f"`{name}` must be an integer (optimizer steps). Received: {name}={step!r}")
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "The sparsity of a schedule must not decrease, because pruned weights stay pruned. Received: "
                f"initial_sparsity={self.initial_sparsity}, final_sparsity={self.final_sparsity}"
            )
        if self.begin_step < 0 or self.end_step < self.begin_step:
            raise ValueError(
                f"The steps must satisfy 0 <= `begin_step` <= `end_step`. Received: begin_step={self.begin_step}, "
                f"end_step={self.end_step}"
            )
        if self.frequency < 1:
            raise ValueError(
                f"`frequency` must be an integer >= 1 (optimizer steps). Received: frequency={self.frequency}"
            )

    def at(self, progress: float) -> float:
        """Return the sparsity at `progress`, which runs from 0 at `begin_step` to 1 at `end_step`."""
        raise NotImplementedError

    def __call__(self, step: int) -> Any:
        """Return the sparsity (fraction of zeros) at an optimizer step, or 0 before `begin_step`."""
        check_step(step)
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        return self.at((step - self.begin_step) / (self.end_step - self.begin_step))

    def last_due(self, step: int) -> int | None:
        """Return the step of the latest update at or before a step, or None before the first update.

        >>> import kprune
        >>> schedule = kprune.schedules.Linear(0.0, 0.8, begin_step=10, end_step=45, frequency=10)
        >>> [schedule.last_due(step) for step in (9, 10, 29, 44, 45, 99)]
        [None, 10, 20, 40, 45, 45]
        """
        check_step(step)
        if step < self.begin_step:
            return None
        if step >= self.end_step:
            return self.end_step
        return step - (step - self.begin_step) % self.frequency

    def next_due(self, step: int) -> int | None:
        """Return the step of the first update after a step, or None if there is none.

        >>> import kprune
        >>> schedule = kprune.schedules.Linear(0.0, 0.8, begin_step=10, end_step=45, frequency=10)
        >>> [schedule.next_due(step) for step in (9, 10, 29, 44, 45, 99)]
        [10, 20, 30, 45, None, None]
        """
        check_step(step)
        if step < self.begin_step:
            return self.begin_step
        if step >= self.end_step:
            return None
        return min(step + self.frequency - (step - self.begin_step) % self.frequency, self.end_step)

    def due(self, step: int) -> bool:
        """Return whether the masks are updated at exactly this step."""
        return self.last_due(step) == step

    def applied(self, step: int) -> Any:
        """Return the sparsity of the masks at a step: the value at the latest update, or 0 before the first update."""
        update = self.last_due(step)
        return 0.0 if update is None else self(update)

    @property
    def label(self) -> str:
        """The label of the schedule in a figure."""
        return type(self).__name__

    def members(self) -> dict[Any, Schedule]:
        """Map regular expressions for weights to their schedules; the key None stands for all weights."""
        return {None: self}

    def check(self, paths: Iterable[str]) -> None:
        """Raise ValueError if the schedule does not fit the masked weights with these paths."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of this schedule as JSON-serializable values.

        Raises ValueError if an argument is not kept as an attribute of its own name.

        >>> import kprune
        >>> kprune.schedules.Constant(0.8, begin_step=10).get_config()
        {'sparsity': 0.8, 'begin_step': 10}
        """
        names = inspect.signature(type(self)).parameters
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise ValueError(
                f"{type(self).__name__} must store each constructor argument in an attribute of the same name, or "
                f"override `get_config`. Received: argument={missing[0]!r}"
            )
        values = {name: getattr(self, name) for name in names}
        return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild a schedule from its config; raise ValueError if a field is unknown or missing."""
        parameters = inspect.signature(cls).parameters
        needed = [name for name, one in parameters.items() if one.default is one.empty]
        check_fields(cls.__name__, config, parameters, needed)
        return cls(**config)


def check_step(step: Any) -> None:
    """Raise ValueError unless `step` is a valid number of optimizer steps.

    >>> check_step(100)
    """
    if not isinstance(step, numbers.Real) or isinstance(step, bool) or step != step:
        raise ValueError(f"`step` must be a number of optimizer steps, not NaN. Received: step={step!r:.200}")


def check_sparsity(name: str, sparsity: float) -> None:
    """Raise ValueError unless 0 <= sparsity < 1."""
    if not isinstance(sparsity, numbers.Real) or isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(
            f"`{name}` must be a number in [0, 1), the fraction of weights that are zero. Received: {name}={sparsity!r}"
        )
