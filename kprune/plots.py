"""Figures, drawn on objects of matplotlib's own: no pyplot, so no display, no global state, nothing to close."""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib.figure import Figure

from .report import Row, Summary, percentage

_TOTAL, _KEPT, _GONE, _TEXT = "#d5dbe3", "#2f6db5", "#c62828", "#333333"
_LABEL_WIDTH = 42


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
