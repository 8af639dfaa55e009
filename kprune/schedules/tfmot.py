"""Schedules of `tensorflow_model_optimization` as kprune schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from .base import SCHEDULES, Schedule

PACKAGE = "tensorflow_model_optimization"


@dataclass(frozen=True)
class TfmotSchedule(Schedule):
    """A `tensorflow_model_optimization` `PruningSchedule` as a kprune schedule, as returned by `as_schedule`.

    tfmot's begin_step, end_step and frequency are kept, but the last update always happens at `end_step` and lands on
    the final sparsity, which tfmot itself only does when (end - begin) is a multiple of the frequency. tfmot's
    ConstantSparsity prunes once, at its begin_step.
    """

    schedule: Any = None

    @classmethod
    def of(cls, schedule: Any) -> Self:
        """Return the kprune schedule for a tfmot schedule; raise ValueError for anything else."""
        if not all(hasattr(schedule, name) for name in ("begin_step", "end_step", "frequency")):
            raise ValueError(f"Expected a tfmot PruningSchedule. Received: schedule={schedule!r:.200}")
        import tensorflow as tf

        begin, end = int(schedule.begin_step), int(schedule.end_step)
        end = begin if type(schedule).__name__ == "ConstantSparsity" or end < 0 else end
        first, last = (float(str(schedule(tf.constant(step))[1].numpy())) for step in (begin, end))
        return cls(first, last, begin, end, schedule, frequency=int(schedule.frequency))

    def at(self, progress: float) -> float:
        import tensorflow as tf

        step = self.begin_step + round(progress * (self.end_step - self.begin_step))
        return min(float(self.schedule(tf.constant(step))[1]), self.final_sparsity)

    @property
    def label(self) -> str:
        return f"tfmot's {type(self.schedule).__name__}"

    def get_config(self) -> dict[str, Any]:
        """Return tfmot's own config; raise ValueError for a custom class, which tfmot could not find by name."""
        if not type(self.schedule).__module__.startswith(f"{PACKAGE}."):
            raise ValueError(
                "A custom tfmot schedule cannot be saved: rewrite it as a kprune.schedules.Schedule and register it. "
                f"Received: schedule={type(self.schedule).__name__}"
            )
        return {"schedule": self.schedule.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        import tensorflow_model_optimization as tfmot

        name, config = config["schedule"]["class_name"], config["schedule"]["config"]
        if name not in ("PolynomialDecay", "ConstantSparsity"):  # all that tfmot has; no other name may be looked up
            raise ValueError(f"tfmot has no schedule class with this name. Received: class_name={name!r:.200}")
        return cls.of(getattr(tfmot.sparsity.keras, name).from_config(config))


def as_schedule(schedule: Any) -> Schedule:
    """Return a kprune schedule unchanged, or a tfmot `PruningSchedule` as a `TfmotSchedule`.

    Raises ValueError for anything else.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if any(cls.__module__.startswith(f"{PACKAGE}.") for cls in type(schedule).__mro__):
        return TfmotSchedule.of(schedule)
    raise ValueError(
        f"Expected a schedule from kprune.schedules ({', '.join(SCHEDULES)}) or a tfmot PruningSchedule. "
        f"Received: schedule={schedule!r}"
    )
