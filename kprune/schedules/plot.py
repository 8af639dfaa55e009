"""Plot schedules as they are applied."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..masks.types import unique_paths
from ..util.plotting import new_axes, plain_axes, written
from .base import Schedule
from .tfmot import as_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_schedule(schedules: Any, path: str | os.PathLike[str] | None = None, steps: int | None = None) -> Figure:
    """Draw schedules as they are applied: the sparsity jumps at each update and is constant in between.

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
    >>> figure = kprune.plot_schedule({"ours": kprune.schedules.Linear(0.0, 0.8, 0, 100, frequency=25)})
    >>> figure.axes[0].get_ylabel()
    'sparsity'
    """
    if steps is not None and (not isinstance(steps, numbers.Integral) or isinstance(steps, bool) or steps < 1):
        raise ValueError(f"`steps` must be an integer >= 1 (optimizer steps). Received: steps={steps!r}")
    return written(path, lambda: _draw(schedules, steps))


def _draw(schedules: Any, steps: int | None) -> Figure:
    lines = _lines(schedules)
    if not lines:
        raise ValueError(f"`schedules` must contain at least one schedule. Received: schedules={schedules!r}")
    longest = max(schedule.end_step for schedule in lines.values())
    last = max(math.ceil(1.1 * longest), 1) if steps is None else steps
    figure, axes = new_axes(9, 4.5)
    for label, schedule in lines.items():
        at = list(_updates(schedule, last))
        sparsities = [0.0, *map(schedule, at)]
        # From the last update the line goes on to the edge.
        axes.step([0, *at, last], [*sparsities, sparsities[-1]], where="post", label=label, linewidth=1.6)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("sparsity")
    axes.set_xlim(0, last)
    axes.set_ylim(-0.02, 1.02)
    plain_axes(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def _updates(schedule: Schedule, last: int) -> Iterator[int]:
    """Yield the steps up to `last` at which the masks are updated."""
    step = schedule.next_due(-1)
    while step is not None and step <= last:
        yield step
        step = schedule.next_due(step)


def _lines(schedules: Any) -> dict[str, Schedule]:
    """Map each label to its schedule; a `PerLayer` has one line per expression."""
    if isinstance(schedules, Mapping):
        named = [(str(label), as_schedule(schedule)) for label, schedule in schedules.items()]
    else:
        listed = map(as_schedule, schedules if isinstance(schedules, list | tuple) else [schedules])
        named = [(schedule.label, schedule) for schedule in listed]
    lines = []
    for label, schedule in named:
        start = f"{label}: " if len(named) > 1 else ""
        for expression, member in schedule.members().items():
            lines.append((label if expression is None else f"{start}{expression!r}", member))
    return dict(zip(unique_paths([label for label, _ in lines]), [schedule for _, schedule in lines], strict=True))
