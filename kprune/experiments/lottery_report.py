"""What lotteries side by side have found: one run per row, a table, and figures against density."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lottery.rewind import RENAMED
from ..util.plotting import LINES, TEXT, percent, plain_axes
from ..util.tables import new_table, table_lines
from .runs import RunsReport, band, runs_drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = "dense"


@dataclass(frozen=True)
class LotteryRun:
    """One training run: a level of a lottery, or of a control.

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

    def __post_init__(self) -> None:
        for name in ("mode", "masks_of"):  # in a file of kprune 0.1 by its old name
            object.__setattr__(self, name, RENAMED.get(getattr(self, name), getattr(self, name)))

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells it from the other runs."""
        return self.mode, self.masks_of, self.level, self.seed


@dataclass(frozen=True)
class LotteryRuns(RunsReport[LotteryRun]):
    """What `kprune.lottery_runs.run_lotteries` found; `print(report)` shows a table.

    `plot` draws against density the accuracies after the last epoch and at the early stop, and the early stop: for each
    mode the mean over the seeds in a band from least to most.

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
        """The levels, from 0."""
        return tuple(sorted({cell.level for cell in self.cells}))

    @property
    def densities(self) -> tuple[float, ...]:
        """The density of each level, descending."""
        found = {cell.level: cell.density for cell in self.cells}
        return tuple(found[level] for level in self.levels)

    def of(self, mode: str, level: int) -> tuple[LotteryRun, ...]:
        """The runs of a mode at a level, one for each seed; at level 0 those of the dense network."""
        name = mode if level else DENSE
        return tuple(cell for cell in self.cells if (cell.mode, cell.level) == (name, level))

    def margin(self, mode: str, level: int, over: str = DENSE) -> tuple[float, float]:
        """By how much a mode is more accurate than another (the dense network by default), seed by seed.

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

    def _draw(self) -> Figure:
        return _figure(self)

    def __str__(self) -> str:
        several = f"mean +- half the range of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        lines = self._table(lambda run: 100 * run.accuracy, 1)
        lines.append(f"test accuracy after the last epoch, in per cent, {several}; level 0 is dense")
        if self.knows_early_stops:
            lines += ["", *self._table(lambda run: run.early_stop, 0), f"batches to the lowest test loss, {several}"]
        return "\n".join(lines)

    @property
    def knows_early_stops(self) -> bool:
        """Whether all runs hold their early stop: those of a file of kprune 0.1 do not."""
        return all(run.early_stop is not None for run in self.cells)

    def _table(self, value: Callable[[LotteryRun], Any], digits: int) -> list[str]:
        """A row for each level and a column for each mode: mean and half the range over the seeds."""
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


def _figure(report: LotteryRuns) -> Figure:
    from matplotlib.figure import Figure

    names = list(_PANELS) if report.knows_early_stops else ["accuracy"]
    figure = Figure(figsize=(4.5 + 4.5 * len(names), 5), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        for mode, color in zip(report.modes, itertools.cycle(LINES[::-1]), strict=False):
            columns = [report.of(mode, level) for level in report.levels]
            band(axes, report.densities, columns, name, color=color, label=mode, marker="o", markersize=4)
        dense = float(np.mean([getattr(run, name) for run in report.of("dense", 0)]))
        axes.axhline(dense, color=TEXT, linewidth=1, linestyle=":", label="dense")
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(percent())
        if name != "early_stop":
            axes.yaxis.set_major_formatter(percent())
        axes.set_xlabel("density: weights left / weights")
        axes.set_ylabel(_PANELS[name])
        plain_axes(axes)
    figure.suptitle(f"lottery tickets: {runs_drawn(report)}", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


__all__ = ["LotteryRun", "LotteryRuns"]
