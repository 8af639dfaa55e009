"""Train one model from several starts with several seeds, and measure the metric that each run reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lottery.rewind import restore, snapshot
from ..masks import masked, masked_weights
from ..util.checks import check_function
from ..util.plotting import KEPT, Drawable, new_axes, plain_axes
from ..util.progress import check_verbose, progress
from ..util.tables import new_table, table_lines
from .evaluation import measure_by, unchanged
from .runs import check_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trials(Drawable):
    """A metric after training runs from several starts; `print(trials)` shows a table, and `plot` draws it.

    Attributes:
        values: start -> the metric of each seed's training.
        seeds: of the trainings, in their order.
        metric: its name.
        starts: what the starts are.
    """

    values: dict[Any, tuple[float, ...]]
    seeds: tuple[int, ...]
    metric: str
    starts: str

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values, with the starts as strings."""
        return {**asdict(self), "values": {str(start): list(values) for start, values in self.values.items()}}

    def __str__(self) -> str:
        table = new_table()
        for header in (self.starts, self.metric, "least", "most"):
            table.add_column(header, justify="right")
        for start, values in self.values.items():
            table.add_row(str(start), *(f"{value:.4f}" for value in (fmean(values), min(values), max(values))))
        return "\n".join([*table_lines(table), f"mean, least and greatest value of {len(self.seeds)} seeds"])

    def _draw(self) -> Figure:
        figure, axes = new_axes(7, 4)
        places, columns = list(range(len(self.values))), list(self.values.values())
        axes.vlines(places, list(map(min, columns)), list(map(max, columns)), color=KEPT, linewidth=1.8)
        axes.plot(places, list(map(fmean, columns)), color=KEPT, marker="o", linestyle="")
        axes.set_xticks(places, list(map(str, self.values)))
        axes.set_xlabel(self.starts)
        axes.set_ylabel(self.metric)
        plain_axes(axes)
        return figure


def trials(
    model: Any,
    starts: Mapping[Any, Callable[[Any, int], None]],
    train: Callable[[Any, int], Any],
    evaluate: Any,
    seeds: Sequence[int],
    verbose: Any,
    what: str,
    matches: Callable[[Any], Any] | None = None,
) -> Trials:
    """Train from each start with each seed, measure the metric, and restore the model.

    Args:
        model: a built, compiled model of either Keras.
        starts: name -> what brings the model, and a seed, to a start, from where it is now.
        train: a function of the model and a seed.
        evaluate: as in `kprune.sensitivity`.
        seeds, verbose: as in `kprune.tickets.neighborhood`.
        what: what the starts are, in the table.
        matches: raises an error, before the first training, if the model is not one for these starts.
    """
    check_verbose(verbose)
    check_seeds(seeds)
    check_function("train", train, "a model and a seed")
    measure, metric = measure_by(model, evaluate), ""
    values: dict[Any, list[float]] = {start: [] for start in starts}
    with masked(model, keep=False), unchanged(model, optimizer=True):
        begin, dense = snapshot(model), {w.path: np.ones(w.shape, bool) for w in masked_weights(model)}
        if matches is not None:
            matches(model)
        with progress("trials", len(starts) * len(seeds), verbose, unit="runs") as bar:
            for name, start in starts.items():
                for seed in seeds:
                    restore(model, dense, begin)
                    start(model, seed)
                    train(model, seed)
                    metric, value = measure()
                    values[name].append(value)
                    bar.update()
    return Trials({name: tuple(found) for name, found in values.items()}, tuple(seeds), metric, what)
