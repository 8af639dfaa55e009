"""Draw a figure of the kept entries of each weight."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..util.plotting import GONE, KEPT, TEXT, TOTAL, new_axes, short_paths, written
from .summary import Row, Summary, percentage, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sparsity(model_or_summary: Any, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw a bar for the kept entries of each weight in front of a bar for the weight's size, on a log scale.

    The label of a bar is the weight's density in percent; a weight of which nothing is left is marked in red.

    Args:
        model_or_summary: a model, as for `kprune.summary`, or a `Summary`.
        path: where to write the figure, if anywhere: .png, .svg or .pdf.

    Returns:
        The `matplotlib.figure.Figure`. No display is needed and no state of pyplot is touched.

    Raises:
        ValueError: the path ends in something else, or as in `kprune.summary`.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> figure = kprune.plot_sparsity(model)
    >>> figure.axes[0].get_xlabel()
    'parameters (labels: density)'
    """
    return written(
        path, lambda: _draw(model_or_summary if isinstance(model_or_summary, Summary) else summary(model_or_summary))
    )


def _draw(summary: Summary) -> Figure:
    rows = summary.rows
    figure, axes = new_axes(9, 1.3 + 0.27 * max(len(rows), 2))
    at = range(len(rows))
    # On a logarithmic axis a bar has to begin somewhere: below one parameter, so that a single one still shows.
    start = 0.6
    bar: dict[str, Any] = {"left": start, "height": 0.72}
    largest = max((row.size for row in rows), default=1)
    axes.barh(at, [row.size - start for row in rows], **bar, color=TOTAL, label="total")
    kept = [max(row.size - row.zeros - start, 0) for row in rows]
    axes.barh(at, kept, **bar, color=KEPT, label="kept")
    for y, row in enumerate(rows):
        if row.collapsed:
            axes.barh(y, row.size - start, **bar, facecolor="none", edgecolor=GONE, hatch="////", linewidth=1)
        axes.annotate(
            "collapsed" if row.collapsed else _per_cent(row),
            (max(row.size, 1), y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=GONE if row.collapsed else TEXT,
            fontweight="bold" if row.collapsed else "normal",
        )
    axes.set_xscale("log")
    axes.set_xlim(start, largest * (largest / start) ** 0.16)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.set_yticks(at, short_paths([row.path for row in rows]), fontsize=8.5)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(GONE if row.collapsed else TEXT)
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


def _per_cent(row: Row) -> str:
    """Format the density in percent, never as "0 %" if any entry is kept or "100 %" if any entry is pruned."""
    digits = next((d for d in range(1, 6) if 0 < round(100 * row.density, d) < 100), 1)
    return "100 %" if not row.zeros else f"{100 * row.density:.{digits}f} %"
