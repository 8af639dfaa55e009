"""The results of a comparison of lotteries, with the runs, a table, and figures of accuracy against density."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lottery.rewind import RENAMED, REWINDS
from ..util.plotting import LINES, TEXT, percent, plain_axes, written
from ..util.tables import new_table, table_lines
from .runs import RunsReport, band, runs_drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = "dense"


@dataclass(frozen=True)
class LotteryRun:
    """One training run, which is a level of a lottery or of a control.

    Attributes:
        mode: one of `MODES`; "dense" at level 0.
        masks_of: the mode whose masks it has: its own, but for a control; "dense" at level 0.
        level: number of prunings before it.
        seed: of the initial weights, the order of the examples and the control's draws.
        density: fraction of nonzeros over all masked weights.
        accuracy: on the test part after the last epoch, in [0, 1].
        best: the highest accuracy of any epoch. It is chosen on the test part, so report it only beside others' best.
        seconds: wall-clock time of the training.
        early_stop: number of training batches, from the network's initialization on, after which the test loss was
            lowest of all epochs' ends: how fast it learns, in the paper. None in files of kprune 0.1.
        early_accuracy: on the test part then. It is chosen on the test part, as `best` is.
        curve: on the test part after each epoch that was trained, the last of which is the last of the network's
            training. None in files that were written before it was noted.
    """

    mode: str
    masks_of: str
    level: int
    seed: int
    density: float
    accuracy: float
    best: float
    seconds: float
    early_stop: int | None = None
    early_accuracy: float | None = None
    curve: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.curve is not None:
            object.__setattr__(self, "curve", tuple(self.curve))
        for name in ("mode", "masks_of"):  # in a file of kprune 0.1 by its old name
            object.__setattr__(self, name, RENAMED.get(getattr(self, name), getattr(self, name)))

    @property
    def key(self) -> tuple[str, str, int, int]:
        """The fields that distinguish this run from all other runs."""
        return self.mode, self.masks_of, self.level, self.seed


@dataclass(frozen=True)
class LotteryRuns(RunsReport[LotteryRun]):
    """The result of `kprune.run_lotteries`; `print(report)` shows a table.

    `plot` draws against density the accuracies after the last epoch and at the early stop, and the early stop: for each
    mode the mean over the seeds in a band from least to most. `plot_training` draws accuracy as training proceeds.

    Attributes:
        cells: one `LotteryRun` per training run: by seed, then mode, then level.
        modes: the modes, in their order.
        chance: the accuracy of guessing: 1 / classes.
        settings: what the runs had in common, as in the columns of the file.
    """

    modes: tuple[str, ...]
    chance: float
    settings: dict[str, Any]

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels, starting from 0."""
        return tuple(sorted({cell.level for cell in self.cells}))

    @property
    def densities(self) -> tuple[float, ...]:
        """The density of each level, in descending order."""
        found = {cell.level: cell.density for cell in self.cells}
        return tuple(found[level] for level in self.levels)

    def of(self, mode: str, level: int) -> tuple[LotteryRun, ...]:
        """Return the runs of a mode at a level, one per seed; at level 0, return those of the dense network."""
        name = mode if level else DENSE
        return tuple(cell for cell in self.cells if (cell.mode, cell.level) == (name, level))

    def margin(self, mode: str, level: int, over: str = DENSE) -> tuple[float, float]:
        """Return the mean difference in accuracy between two modes, paired by seed, and its standard error.

        Args:
            mode, level: of the one.
            over: the other mode, at the same level; "dense" for the network before any pruning.

        Returns:
            The mean over the seeds of the difference of their accuracies, and its standard error (NaN for one seed).
        """
        ones, others = self.of(mode, level), self.of(over, level if over != DENSE else 0)
        differences = [one.accuracy - other.accuracy for one, other in zip(ones, others, strict=True)]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        return fmean(differences), error

    def plot_training(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plot test accuracy against epochs, with the mean and range over seeds (arXiv:1803.03635, figure 3).

        On the left the dense network and five densities of the first mode, on the right all modes at about 20 %.

        Args:
            path: where to write it, if anywhere: .png, .svg or .pdf.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            ValueError: the path ends in something else, or the runs do not hold their curves.
        """
        if not self.knows_curves:
            raise ValueError(
                "These runs were saved by a version of kprune that did not record training curves, so none can be "
                "drawn. Repeat the runs with a new file to record their curves."
            )
        return written(path, lambda: _training(self))

    def _draw(self) -> Figure:
        return _figure(self)

    def __str__(self) -> str:
        several = f"mean +- half the range of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        lines = self._table(lambda run: 100 * run.accuracy, 1)
        lines.append(f"test accuracy after the last epoch, in percent, {several}; level 0 is the dense network")
        if self.knows_early_stops:
            lines += ["", *self._table(lambda run: run.early_stop, 0), f"batches to the lowest test loss, {several}"]
        return "\n".join(lines)

    @property
    def knows_early_stops(self) -> bool:
        """Whether the early stop of every run is recorded (kprune 0.1 did not record it)."""
        return all(run.early_stop is not None for run in self.cells)

    @property
    def knows_curves(self) -> bool:
        """Whether the accuracy after each epoch is recorded for every run."""
        return all(run.curve is not None for run in self.cells)

    def _table(self, value: Callable[[LotteryRun], Any], digits: int) -> list[str]:
        """Tabulate the mean and half the range over the seeds, with a row per level and a column per mode."""
        table = new_table()
        for column in ("level", "density", *self.modes):
            table.add_column(column, justify="right")
        for level, share in zip(self.levels, self.densities, strict=True):
            columns = [[value(run) for run in self.of(mode, level)] for mode in self.modes]
            table.add_row(str(level), f"{share:.2%}", *(_shown(column, digits) for column in columns))
        return table_lines(table)


def _shown(values: Sequence[float], digits: int) -> str:
    spread = f" +- {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


# Field -> what its axis says.
_PANELS = {
    "accuracy": "test accuracy after the last epoch",
    "early_accuracy": "test accuracy at the early stop",
    "early_stop": "early stop: batches to the lowest test loss",
}


# A mode keeps its color, whichever others are drawn.
_COLORS = dict(zip(("init", *REWINDS, "reinitialize", "shuffle"), LINES[::-1], strict=False))


def _figure(report: LotteryRuns) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    names = list(_PANELS) if report.knows_early_stops else ["accuracy"]
    figure = Figure(figsize=(4.5 + 4.5 * len(names), 5), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        for mode in report.modes:
            columns = [report.of(mode, level) for level in report.levels]
            band(axes, report.densities, columns, name, color=_COLORS[mode], label=mode, marker="o", markersize=4)
        dense = float(np.mean([getattr(run, name) for run in report.of("dense", 0)]))
        axes.axhline(dense, color=TEXT, linewidth=1, linestyle=":", label="dense")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(percent())
        if name != "early_stop":
            axes.yaxis.set_major_formatter(percent())
        axes.set_xlabel("density: kept weights / all weights")
        axes.set_ylabel(_PANELS[name])
        plain_axes(axes)
    figure.suptitle(f"lottery tickets: {runs_drawn(report)}", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _training(report: LotteryRuns) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    ticket, deepest = report.modes[0], len(report.levels) - 1
    drawn = sorted({round(deepest * share / 5) for share in range(1, 6)} - {0})
    near = min(report.levels[1:], key=lambda level: abs(math.log(report.densities[level] / 0.2)))
    shades = colormaps["viridis"](np.linspace(0.9, 0, len(drawn)))
    panels: dict[str, list[tuple[str, int, Any, Any]]] = {
        f"{ticket}, by density": [(ticket, level, report.densities[level], shades[i]) for i, level in enumerate(drawn)],
        f"at density {report.densities[near]:.1%}": [(mode, near, mode, _COLORS[mode]) for mode in report.modes],
    }
    figure = Figure(figsize=(11, 4.5), dpi=100, layout="constrained")
    for (title, lines), axes in zip(panels.items(), list(figure.subplots(1, 2, sharey=True)), strict=True):
        for mode, level, label, color in ((ticket, 0, "dense", TEXT), *lines):
            curves = np.asarray([run.curve for run in report.of(mode, level)])
            at = np.arange(curves.shape[1]) + report.settings["epochs"] - curves.shape[1] + 1
            axes.fill_between(at, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0)
            style = {"linestyle": ":"} if level == 0 else {}
            label = label if isinstance(label, str) else f"{label:.1%}"
            axes.plot(at, curves.mean(0), color=color, linewidth=1.8, label=label, **style)
        axes.yaxis.set_major_formatter(percent())
        axes.set(title=title, xlabel="epochs of training")
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
        plain_axes(axes)
    figure.axes[0].set_ylabel("test accuracy")
    figure.suptitle(f"training of lottery tickets: {runs_drawn(report)}", fontsize=11)
    return figure


__all__ = ["LotteryRun", "LotteryRuns"]
