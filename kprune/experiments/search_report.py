"""The result of a search for the sparsest network, with rows, a table and a figure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..util.plotting import GONE, KEPT, TEXT, Drawable, new_axes, plain_axes
from ..util.tables import new_table, table_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SearchRow:
    """One sparsity that was tried.

    Attributes:
        sparsity: fraction of zeros that was asked for.
        values: one for each seed.
        dense: the mean of the dense network, on the same seeds.
        accepted: whether the mean of the values is at least `dense - within`.
        anew: whether it was measured again, on other seeds, after the search had chosen it.
    """

    sparsity: float
    values: tuple[float, ...]
    dense: float
    accepted: bool
    anew: bool

    @property
    def value(self) -> float:
        """The mean of the values."""
        return fmean(self.values)


@dataclass(frozen=True)
class SearchResult(Drawable):
    """The result of `kprune.search`; `print(result)` shows a table.

    `plot` draws the values against sparsity: means in a band from least to most, and those measured anew.

    Attributes:
        sparsity: of the sparsest network that held when it was measured anew; 0 if none did.
        value: its mean on the fresh seeds; of the dense network if none held.
        dense: the dense network's mean on the same seeds.
        rows: what was tried, a `SearchRow` each, by sparsity.
        within: by how much a network may be worse.
        metric: what the values are.
        model: the network at `sparsity`, trained; None if none held.
    """

    sparsity: float
    value: float
    dense: float
    rows: tuple[SearchRow, ...]
    within: float
    metric: str
    model: Any

    @property
    def rises(self) -> tuple[tuple[float, float], ...]:
        """Pairs of neighboring sparsities where all runs of the sparser network beat all runs of the denser one."""
        tried = [row for row in self.rows if row.sparsity and not row.anew]
        return tuple((a.sparsity, b.sparsity) for a, b in itertools.pairwise(tried) if min(b.values) > max(a.values))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except the model as JSON-serializable values."""
        names = ("sparsity", "value", "dense", "within", "metric")
        rows = [{**vars(row), "values": list(row.values), "value": row.value} for row in self.rows]
        return {**{name: getattr(self, name) for name in names}, "rows": rows, "rises": [list(r) for r in self.rises]}

    def _draw(self) -> Figure:
        return _figure(self)

    def __str__(self) -> str:
        table = new_table()
        for column in ("sparsity", self.metric, "vs. dense"):
            table.add_column(column, justify="right")
        table.add_column("")
        for row in self.rows:
            words = ("measured again: " if row.anew else "") + ("accepted" if row.accepted else "too far below")
            words = "" if row.sparsity == 0 else words
            table.add_row(f"{row.sparsity:.6g}", _shown(row), f"{row.value - row.dense:+.4f}", words)
        return "\n".join([*table_lines(table), self.found, *said_of_rises(self)])

    @property
    def found(self) -> str:
        """The result of the search in one line."""
        if not self.sparsity:
            return f"no sparse network had {self.metric} within {self.within:g} of the dense network's {self.dense:.4f}"
        return (
            f"sparsity {self.sparsity:.6g}: {self.metric} {self.value:.4f} on fresh seeds, "
            f"dense {self.dense:.4f} (within {self.within:g})"
        )


def _shown(row: SearchRow) -> str:
    spread = f" +- {(max(row.values) - min(row.values)) / 2:.4f}" if len(row.values) > 1 else ""
    return f"{row.value:.4f}{spread}"


def said_of_rises(found: SearchResult) -> list[str]:
    """Return a list with a note if a sparser network was clearly better than a denser one; otherwise an empty list."""
    if not found.rises:
        return []
    pairs = ", ".join(f"{a:.6g} to {b:.6g}" for a, b in found.rises)
    return [
        f"{found.metric} does not fall steadily: it rises from sparsity {pairs}. A sparser network than the one "
        "found may be good enough: try more steps, more seeds, or longer training"
    ]


def _figure(found: SearchResult) -> Figure:
    figure, axes = new_axes(9, 5)
    tried = [row for row in found.rows if not row.anew]
    at = [row.sparsity for row in tried]
    low, high = ([limit(row.values) for row in tried] for limit in (min, max))
    axes.fill_between(at, low, high, color=KEPT, alpha=0.15, lw=0)
    axes.plot(at, [row.value for row in tried], color=KEPT, marker="o", linewidth=1.8, label="during the search")
    for row in (row for row in found.rows if row.anew):
        color = KEPT if row.accepted else GONE
        held = "accepted" if row.accepted else "too far below"
        axes.scatter([row.sparsity], [row.value], color=color, marker="D", zorder=3, label=f"measured again: {held}")
    axes.axhline(tried[0].dense - found.within, color=TEXT, linewidth=1, linestyle=":", label="dense - within")
    axes.set_xlabel("sparsity")
    axes.set_ylabel(found.metric)
    plain_axes(axes)
    figure.suptitle(found.found, fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


__all__ = ["SearchResult", "SearchRow", "said_of_rises"]
