"""Schedules for groups of weights, lookup of schedules by name, and their JSON form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..util.checks import check_expression, check_fields
from .base import SCHEDULES, Schedule
from .tfmot import TfmotSchedule, as_schedule


@dataclass(frozen=True, init=False, repr=False)
class PerLayer(Schedule):
    """A separate schedule for each group of weights, for use with `GradualPruning`.

    s(t) is a dict, expression -> s_expression(t), and so are `applied`, `initial_sparsity` and `final_sparsity`. Each
    member keeps its own steps: a group is pruned further at the updates of its own schedule only, and its sparsity is
    that of the group, shared within it by the callback's scope.

    Args:
        schedules: regular expression -> schedule (one of `kprune.schedules`, or a tfmot `PruningSchedule`). An
            expression is searched in a weight's path, and the first that matches takes the weight; weights that none
            matches are left alone.

    Attributes:
        schedules: expression -> `Schedule`, in the order given.
        begin_step, end_step: the first and the last step at which any member updates.
        frequency: the smallest of the members'.

    Raises:
        ValueError: not a dict, an empty one, a key that is not a regular expression, a value that is no schedule. In
            a fit: an expression that matches no masked weight of the model.

    >>> import kprune
    >>> first, second = kprune.schedules.Linear(0.0, 0.5, 0, 100), kprune.schedules.Linear(0.0, 0.9, 50, 150)
    >>> schedule = PerLayer({"conv": first, "": second})
    >>> schedule(0), schedule(100), schedule.end_step
    ({'conv': 0.0, '': 0.0}, {'conv': 0.5, '': 0.45}, 150)
    """

    schedules: Mapping[str, Any]

    def __init__(self, schedules: Mapping[str, Any]):
        if not isinstance(schedules, Mapping) or not schedules:
            raise ValueError(
                "`schedules` must be a non-empty dict that maps regular expressions to schedules. Received: "
                f"schedules={schedules!r}"
            )
        for expression, schedule in schedules.items():
            check_expression(expression)
            if isinstance(schedule, PerLayer):
                raise ValueError(
                    f"A PerLayer schedule cannot contain another PerLayer. Received: schedule={schedule!r}"
                )
        members = {expression: as_schedule(schedule) for expression, schedule in schedules.items()}
        known = {
            "schedules": members,
            "initial_sparsity": {expression: member.initial_sparsity for expression, member in members.items()},
            "final_sparsity": {expression: member.final_sparsity for expression, member in members.items()},
            "begin_step": min(member.begin_step for member in members.values()),
            "end_step": max(member.end_step for member in members.values()),
            "frequency": min(member.frequency for member in members.values()),
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"PerLayer({self.schedules!r})"

    def __call__(self, step: int) -> dict[str, float]:
        """Map each expression to its sparsity (fraction of zeros) at a step, or to 0 before its schedule begins."""
        return {expression: schedule(step) for expression, schedule in self.schedules.items()}

    def last_due(self, step: int) -> int | None:
        """Return the step of the latest update of any member at or before a step, or None before the first update."""
        updates = [member.last_due(step) for member in self.schedules.values()]
        return max((update for update in updates if update is not None), default=None)

    def next_due(self, step: int) -> int | None:
        """Return the step of the first update of any member after a step, or None if there is none."""
        updates = [member.next_due(step) for member in self.schedules.values()]
        return min((update for update in updates if update is not None), default=None)

    def applied(self, step: int) -> dict[str, float]:
        """Map each expression to the sparsity that the masks of its weights have at a step."""
        return {expression: member.applied(step) for expression, member in self.schedules.items()}

    def members(self) -> dict[Any, Schedule]:
        """Map each expression to its schedule."""
        return dict(self.schedules)

    def check(self, paths: Iterable[str]) -> None:
        """Raise ValueError if an expression matches none of the weights' paths."""
        paths = list(paths)
        for expression in self.schedules:
            if not any(re.search(expression, path) for path in paths):
                raise ValueError(
                    f"The regular expression matches none of these weights: {', '.join(paths)}. Received: "
                    f"expression={expression!r}"
                )

    def get_config(self) -> dict[str, Any]:
        return {"schedules": {expression: serialize(member) for expression, member in self.schedules.items()}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        check_fields("PerLayer", config, ["schedules"], ["schedules"])
        return cls({expression: deserialize(member) for expression, member in config["schedules"].items()})


# Not in the registry: no curve, so nothing that a user would pick by name.
_KINDS: dict[str, type[Schedule]] = {"per_layer": PerLayer, "tfmot": TfmotSchedule}


def get(identifier: Any) -> Any:
    """Return the schedule or the schedule class that an identifier stands for.

    Args:
        identifier: a name of `kprune.schedules.SCHEDULES`, which gives the class, since a schedule has no steps by
            default; what `serialize` returned; or a schedule, of ours or tfmot's.

    Returns:
        The class for a name, else the `Schedule`.

    Raises:
        ValueError: it is none of these.

    >>> import kprune
    >>> kprune.schedules.get("linear")(0.0, 0.8, 0, 100)(50)
    0.4
    """
    if isinstance(identifier, str):
        return SCHEDULES.get(identifier)
    return deserialize(identifier) if isinstance(identifier, dict) else as_schedule(identifier)


def serialize(schedule: Any) -> dict[str, Any]:
    """Return a schedule as JSON: {"class_name": its registered name, "config": the result of `get_config`}.

    Raises:
        ValueError: it is no schedule, its class is not registered by `SCHEDULES.register("a name")`, or it has an
            argument that cannot be kept.

    >>> import kprune
    >>> kprune.schedules.serialize(kprune.schedules.Constant(0.8, begin_step=10))
    {'class_name': 'constant', 'config': {'sparsity': 0.8, 'begin_step': 10}}
    """
    schedule = as_schedule(schedule)
    for name, cls in [*((name, SCHEDULES.get(name)) for name in SCHEDULES), *_KINDS.items()]:
        if type(schedule) is cls:
            return {"class_name": name, "config": schedule.get_config()}
    raise ValueError(
        "A custom schedule can be saved only if it is registered: decorate its class with "
        f"@kprune.schedules.SCHEDULES.register('name'). Received: schedule={schedule!r}"
    )


def deserialize(config: dict[str, Any]) -> Schedule:
    """Rebuild the schedule that `serialize` described; raise ValueError if `config` is not valid.

    >>> import kprune
    >>> kprune.schedules.deserialize({"class_name": "constant", "config": {"sparsity": 0.8}})(0)
    0.8
    """
    known = isinstance(config, dict) and set(config) == {"class_name", "config"}
    if not known or not isinstance(config["config"], dict):
        raise ValueError(
            f"`config` must be a dict with the keys class_name and config. Received: config={config!r:.200}"
        )
    name = config["class_name"]
    cls: Any = _KINDS[name] if isinstance(name, str) and name in _KINDS else SCHEDULES.get(name)
    try:
        return cls.from_config(config["config"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"`config` does not describe a valid {name!r} schedule: {error}. Received: config={config!r:.200}"
        ) from error
