"""Figures, drawn on objects of matplotlib's own: no pyplot, so no display, no global state, nothing to close."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..masks import unique_paths
from ..report.summary import Row, Summary, percentage
from ..runtime.files import check_path
from ..schedules import PerLayer, Schedule, TfmotSchedule, as_schedule

if TYPE_CHECKING:
    from ..analysis import LinearPath
    from ..experiments.lottery_runs import LotteryRuns
    from ..experiments.sensitivity import Sensitivity
    from ..experiments.sweep import Sweep

_TOTAL, _KEPT, _GONE, _TEXT = "#d5dbe3", "#2f6db5", "#c62828", "#333333"
_LINES = ("#8a94a3", "#d9730d", "#2a9d8f", "#8e5bb5", "#2f6db5", "#c62828", "#b8860b", "#333333")
_LABEL_WIDTH = 42
FILE_TYPES = (".png", ".svg", ".pdf")


def written(path: str | os.PathLike[str] | None, make: Callable[[], Figure]) -> Figure:
    """The figure that `make` draws, written to `path` if there is one; ValueError first if it is of another kind."""
    if path is not None:
        check_path("path", path)
        if os.path.splitext(path)[1].lower() not in FILE_TYPES:
            raise ValueError(f"A figure is written as .png, .svg or .pdf. Received: path={os.fspath(path)!r}")
    figure = make()
    if path is not None:
        figure.savefig(path)
    return figure


def draw(summary: Summary) -> Figure:
    """The bars of `kprune.plot_sparsity`."""
    rows = summary.rows
    figure = Figure(figsize=(9, 1.3 + 0.27 * max(len(rows), 2)), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    at = range(len(rows))
    # On a logarithmic axis a bar has to begin somewhere: below one parameter, so that a single one still shows.
    start = 0.6
    bar: dict[str, Any] = {"left": start, "height": 0.72}
    largest = max((row.size for row in rows), default=1)
    axes.barh(at, [row.size - start for row in rows], **bar, color=_TOTAL, label="total")
    kept = [max(row.size - row.zeros - start, 0) for row in rows]
    axes.barh(at, kept, **bar, color=_KEPT, label="kept")
    for y, row in enumerate(rows):
        if row.collapsed:
            axes.barh(y, row.size - start, **bar, facecolor="none", edgecolor=_GONE, hatch="////", linewidth=1)
        axes.annotate(
            "collapsed" if row.collapsed else _per_cent(row),
            (max(row.size, 1), y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=_GONE if row.collapsed else _TEXT,
            fontweight="bold" if row.collapsed else "normal",
        )
    axes.set_xscale("log")
    axes.set_xlim(start, largest * (largest / start) ** 0.16)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.set_yticks(at, short_paths([row.path for row in rows]), fontsize=8.5)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(_GONE if row.collapsed else _TEXT)
    axes.set_xlabel("parameters (labels: density)")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.suptitle(
        f"sparsity {percentage(summary.zeros, summary.size)}, compression {summary.compression:.4g}x: "
        f"{summary.size - summary.zeros:,} of {summary.size:,} kept",
        fontsize=11,
    )
    if rows:
        figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=8.5)
    return figure


def draw_schedules(schedules: Any, steps: int | None) -> Figure:
    """The lines of `kprune.plot_schedule`."""
    lines = _lines(schedules)
    if not lines:
        raise ValueError(f"There is no schedule to draw. Received: schedules={schedules!r}")
    longest = max(schedule.end_step for schedule in lines.values())
    last = max(math.ceil(1.1 * longest), 1) if steps is None else steps
    figure = Figure(figsize=(9, 4.5), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    for label, schedule in lines.items():
        updates = [*range(schedule.begin_step, schedule.end_step, schedule.frequency), schedule.end_step]
        at = [step for step in updates if step <= last]
        sparsities = [0.0, *map(schedule, at)]
        # From the last update the line goes on to the edge.
        axes.step([0, *at, last], [*sparsities, sparsities[-1]], where="post", label=label, linewidth=1.6)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("sparsity")
    axes.set_xlim(0, last)
    axes.set_ylim(-0.02, 1.02)
    _plain_axes(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def draw_sensitivity(report: Sensitivity) -> Figure:
    """The heat map of `kprune.Sensitivity.plot`."""
    rows, sparsities = report.rows, report.sparsities
    values = np.array([list(row.values.values()) for row in rows])
    size = (3.6 + 0.75 * len(sparsities), 1.5 + 0.27 * max(len(rows), 3))
    figure = Figure(figsize=size, dpi=144, layout="constrained")
    axes = figure.add_subplot()
    finite = [value for value in (*values.flat, report.dense) if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    image = axes.imshow(values, cmap="Blues_r", vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    axes.set_facecolor(_TOTAL)  # of cells that are NaN
    middle = (low + high) / 2
    for (y, x), value in np.ndenumerate(values):
        color = "white" if value < middle else _TEXT
        axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(sparsities)), [f"{sparsity:.6g}" for sparsity in sparsities])
    axes.set_yticks(range(len(rows)), short_paths([row.path for row in rows]), fontsize=8.5)
    axes.set_xlabel("sparsity of this weight alone")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).outline.set_visible(False)
    figure.suptitle(f"{report.metric}; {report.dense:.4g} as it is", fontsize=11)
    return figure


def draw_linear_path(path: LinearPath) -> Figure:
    """The line of `kprune.analysis.LinearPath.plot`."""
    figure = Figure(figsize=(7, 4), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(path.places, path.values, color=_KEPT, marker="o", linewidth=1.8, label=path.metric)
    ends = [path.values[0], path.values[-1]]
    axes.plot([0, 1], ends, color=_LINES[0], linestyle="--", linewidth=1, label="the line between the ends")
    axes.set_xlabel("place on the line from the one network (0) to the other (1)")
    axes.set_ylabel(path.metric)
    _plain_axes(axes)
    figure.suptitle(f"at most {path.rise:.4g} above, {path.fall:.4g} below the line between the ends", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def draw_sweep(report: Sweep) -> Figure:
    """The lines of `kprune.sweep.Sweep.plot`."""
    figure = Figure(figsize=(9, 5), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    at = report.compressions
    for method, color in zip(report.methods, itertools.cycle(_LINES), strict=False):
        columns = [report.of(method, compression) for compression in at]
        means = _band(axes, at, columns, color=color, label=method)
        for gone, marker in ((False, "o"), (True, "x")):
            some = [i for i, column in enumerate(columns) if any(cell.collapsed for cell in column) == gone]
            axes.scatter([at[i] for i in some], [means[i] for i in some], color=color, marker=marker)
    axes.axhline(report.chance, color=_TEXT, linewidth=1, linestyle=":", label="chance")
    axes.plot([], [], color=_TEXT, linestyle="", marker="x", label="a layer with nothing left")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("compression: weights / weights left")
    axes.set_ylabel("test accuracy after the last epoch")
    _plain_axes(axes)
    figure.suptitle(f"pruned before training: {_runs(report)}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def draw_lotteries(report: LotteryRuns) -> Figure:
    """The lines of `kprune.lottery_runs.LotteryRuns.plot`."""
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for mode, color in zip(report.modes, itertools.cycle(_LINES[::-1]), strict=False):
        columns = [report.of(mode, level) for level in report.levels]
        _band(axes, report.densities, columns, color=color, label=mode, marker="o", markersize=4)
    dense = float(np.mean([cell.accuracy for cell in report.of("dense", 0)]))
    axes.axhline(dense, color=_TEXT, linewidth=1, linestyle=":", label="dense")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("density: weights left / weights")
    axes.set_ylabel("test accuracy after the last epoch")
    _plain_axes(axes)
    figure.suptitle(f"lottery tickets: {_runs(report)}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _band(axes: Any, at: Sequence[float], columns: Sequence[Sequence[Any]], **line: Any) -> list[float]:
    """A line through the mean accuracies of columns of runs, in a band from least to most; the means."""
    accuracies = [[run.accuracy for run in column] for column in columns]
    means = [float(np.mean(column)) for column in accuracies]
    axes.fill_between(at, list(map(min, accuracies)), list(map(max, accuracies)), color=line["color"], alpha=0.15, lw=0)
    axes.plot(at, means, linewidth=1.8, **line)
    return means


def _runs(report: Sweep | LotteryRuns) -> str:
    """What was trained how long and how often."""
    seeds = len(report.seeds)
    drawn = "1 seed" if seeds == 1 else f"mean and range of {seeds} seeds"
    trained = " on ".join(str(report.settings[name]) for name in ("model", "dataset") if name in report.settings)
    return f"{trained}, {report.settings['epochs']} epochs, {drawn}"


def _lines(schedules: Any) -> dict[str, Schedule]:
    """Label -> schedule; a `PerLayer` gives a line for each of its expressions."""
    if isinstance(schedules, Mapping):
        named = [(str(label), as_schedule(schedule)) for label, schedule in schedules.items()]
    else:
        listed = map(as_schedule, schedules if isinstance(schedules, list | tuple) else [schedules])
        named = [(_label(schedule), schedule) for schedule in listed]
    lines = []
    for label, schedule in named:
        if isinstance(schedule, PerLayer):
            start = f"{label}: " if len(named) > 1 else ""
            lines += [(f"{start}{expression!r}", member) for expression, member in schedule.schedules.items()]
        else:
            lines.append((label, schedule))
    return dict(zip(unique_paths([label for label, _ in lines]), [schedule for _, schedule in lines], strict=True))


def _label(schedule: Schedule | PerLayer) -> str:
    if isinstance(schedule, PerLayer):
        return "PerLayer"
    if isinstance(schedule, TfmotSchedule):
        return f"tfmot's {type(schedule.schedule).__name__}"
    return type(schedule).__name__


def _plain_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def short_paths(paths: list[str]) -> list[str]:
    """The paths without the folders that all share, the middle of long ones cut out.

    >>> short_paths(["net/conv1/kernel", "net/conv2/kernel"])
    ['conv1/kernel', 'conv2/kernel']
    """
    parts = [path.split("/") for path in paths]
    folders = zip(*(part[:-2] for part in parts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, folders))
    short = ["/".join(part[shared:]) for part in parts]
    half = (_LABEL_WIDTH - 3) // 2
    return [path if len(path) <= _LABEL_WIDTH else f"{path[:half]}...{path[-half:]}" for path in short]


def _per_cent(row: Row) -> str:
    """Never "0 %" where something is left, never "100 %" where something is gone."""
    digits = next((d for d in range(1, 6) if 0 < round(100 * row.density, d) < 100), 1)
    return "100 %" if not row.zeros else f"{100 * row.density:.{digits}f} %"
