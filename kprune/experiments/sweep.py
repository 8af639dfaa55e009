"""The sweep that shows layer collapse by measuring accuracy at many compression ratios for several criteria."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..callbacks import PruneAtInit
from ..criteria import CRITERIA
from ..data import Dataset
from ..masks import masked_weights
from ..util.plotting import TEXT, line_of, new_axes, percent, plain_axes
from ..util.progress import check_verbose, progress
from ..util.registry import trait
from ..util.tables import new_table, table_lines
from .runs import RunsReport, RunTable, accuracies, band, check_each_once, check_epochs, check_seeds, runs_drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("random", "magnitude", "snip", "grasp", "synflow")
COMPRESSIONS = tuple(10 ** (half / 2) for half in range(8))
DENSE = "dense"


@dataclass(frozen=True)
class SweepRun:
    """One training run of a sweep.

    Attributes:
        method: the criterion's name; "dense" where nothing is pruned.
        compression: weights / weights left that was asked for; 1 for "dense".
        seed: of the initial weights, the order of the examples, the criterion's draws and sample.
        accuracy: on the test part after the last epoch, in [0, 1].
        best: the highest accuracy of any epoch. It is chosen on the test part, so report it only beside others' best.
        sparsity: fraction of zeros over all masked weights that was reached.
        collapsed: number of weights of which nothing is left.
        seconds: wall-clock time of building, pruning and training.
    """

    method: str
    compression: float
    seed: int
    accuracy: float
    best: float
    sparsity: float
    collapsed: int
    seconds: float

    @property
    def key(self) -> tuple[str, float, int]:
        """The fields that distinguish this cell from all other cells."""
        return self.method, self.compression, self.seed


@dataclass(frozen=True)
class Sweep(RunsReport[SweepRun]):
    """The result of `kprune.sweep`; `print(report)` shows a table.

    `plot` draws accuracy against compression: for each method the mean over the seeds in a band from least to most.

    Attributes:
        cells: one `SweepRun` per training run: by seed, then compression, then method.
        methods: the methods, in their order.
        chance: the accuracy of guessing: 1 / classes.
        settings: what the runs had in common, as in the columns of the file.
    """

    methods: tuple[str, ...]
    chance: float
    settings: dict[str, Any]

    @property
    def compressions(self) -> tuple[float, ...]:
        """The compressions, in ascending order."""
        return tuple(sorted({cell.compression for cell in self.cells}))

    def of(self, method: str, compression: float) -> tuple[SweepRun, ...]:
        """Return the cells of a method at a compression, one per seed; at compression 1, return those of "dense"."""
        name = DENSE if compression == 1 else method
        return tuple(cell for cell in self.cells if (cell.method, cell.compression) == (name, compression))

    def _draw(self) -> Figure:
        return _figure(self)

    def __str__(self) -> str:
        table = new_table()
        table.add_column("method")
        for compression in self.compressions:
            table.add_column(f"{compression:.4g}x", justify="right")
        for method in self.methods:
            table.add_row(method, *(_shown(self.of(method, compression)) for compression in self.compressions))
        note = (
            f"test accuracy after the last epoch, in percent, mean of {len(self.seeds)} "
            f"seed{'s' * (len(self.seeds) != 1)}; chance is {100 * self.chance:.4g}; * marks a collapsed layer"
        )
        return "\n".join([*table_lines(table), note])


def sweep(
    build: Callable[[int], Any],
    data: Dataset,
    methods: Sequence[str] = METHODS,
    compressions: Sequence[float] = COMPRESSIONS,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 15,
    *,
    scope: str = "global",
    rounds: int | None = None,
    path: str | os.PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    verbose: Any = "auto",
) -> Sweep:
    """Prune a network by several criteria at many compression ratios, then train it (arXiv:2006.05467, figure 1).

    Each cell builds the network from its seed, prunes it to sparsity = 1 - 1 / compression by
    `kprune.callbacks.PruneAtInit` and trains it. Criteria that need data get 10 training examples of each class.
    Compression 1 is trained once per seed, as the method "dense".

    Args:
        build: a function of a seed that returns a new model, compiled with metrics=["accuracy"], masked if it is one
            of tf_keras; it sets the seeds, as by `keras.utils.set_random_seed(seed)`.
        data: what to train and test on, from `kprune.data.load`.
        methods: names of criteria in `kprune.criteria.CRITERIA`.
        compressions: weights / weights left, each at least 1.
        seeds: integers >= 0.
        epochs: of each training run.
        scope, rounds: as in `kprune.PruningConfig`.
        path: CSV file for the cells, one row each, complete after each cell. If the file exists, the run resumes;
            finished cells are not trained again. Its folder is made.
        settings: what else decides the outcome (the network's name, the learning rate ...), as name -> value: columns
            of the file.
        verbose: 0 silent, 1 or "auto" a progress bar over the cells, 2 a line at the end.

    Returns:
        `Sweep`: `cells`, `of(method, compression)`, `to_dict()`, `plot(path)`; its str is a table.

    Raises:
        ValueError: an argument is wrong; or the file at `path` is no such CSV or was made with different settings (they
            are named); nothing has been trained or written then. After the first training: no accuracy is compiled.
        OSError: the file cannot be read or written, or another process is at it.

    >>> import keras, kprune
    >>> def build(seed):
    ...     keras.utils.set_random_seed(seed)
    ...     model = kprune.models.lenet_300_100((8, 8, 1), width=0.1)
    ...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    ...     return model
    >>> digits = kprune.data.load("digits")
    >>> report = kprune.sweep(build, digits, ["magnitude"], [1, 100], seeds=[0], epochs=1, verbose=0)
    >>> [(cell.method, cell.compression, round(cell.sparsity, 4)) for cell in report.cells]
    [('dense', 1.0, 0.0), ('magnitude', 100.0, 0.9897)]
    """
    check_verbose(verbose)
    keys = _keys(methods, compressions, seeds)
    check_epochs(epochs)
    own = {"dataset": data.name, "batch_size": data.batch_size, "epochs": epochs, "scope": scope, "rounds": rounds}
    table = RunTable(path, SweepRun, own, settings)
    samples = {seed: data.sample(seed=seed) for seed in seeds} if any(map(_needs_data, methods)) else {}

    def pruning(method: str, compression: float, seed: int) -> list[PruneAtInit]:
        if method == DENSE:
            return []
        options: dict[str, Any] = {"rounds": rounds, "scope": scope, "seed": seed, "verbose": 0}
        if _needs_data(method):
            options.update(data=samples[seed], batches=None)  # all, as the first batches have only the first classes
        return [PruneAtInit(method, 1 - 1 / compression, **options)]

    for key in keys[: len(methods) + 1]:  # has each method: wrong arguments are known before the first training
        pruning(*key)
    if table.path is not None:
        table.path.parent.mkdir(parents=True, exist_ok=True)
    with (
        table,
        progress("sweep", len(keys), verbose, unit="cells", done=sum(key in table.cells for key in keys)) as bar,
    ):
        for key in [key for key in keys if key not in table.cells]:
            bar.set_description("{} {:.4g}x seed {}".format(*key))
            table.add(_train(key, build, data, epochs, pruning(*key)))
            bar.update()
    cells = tuple(table.cells[key] for key in keys)
    return Sweep(cells, tuple(methods), 1 / data.classes, table.settings)


def _train(
    key: tuple[str, float, int], build: Callable[[int], Any], data: Dataset, epochs: int, pruning: list
) -> SweepRun:
    start = time.perf_counter()
    model = build(key[2])
    history = model.fit(**data.fit_kwargs(), epochs=epochs, callbacks=pruning, verbose=0).history
    accuracy, best = accuracies(history)
    kept = [weight.kept() for weight in masked_weights(model)]
    size = sum(mask.size for mask in kept)
    zeros = size - sum(int(mask.sum()) for mask in kept)
    return SweepRun(
        *key,
        accuracy=accuracy,
        best=best,
        sparsity=zeros / size if size else 0.0,
        collapsed=sum(not mask.any() for mask in kept),
        seconds=round(time.perf_counter() - start, 2),
    )


def _keys(methods: Sequence[str], compressions: Sequence[float], seeds: Sequence[int]) -> list[tuple[str, float, int]]:
    """Return the keys of the cells, grouped by seed so that an interrupted sweep completes one seed after another."""
    check_each_once("methods", methods)
    check_each_once("compressions", compressions)
    check_seeds(seeds)
    for method in methods:
        if trait(CRITERIA.get(method), "tracker", None) is not None:
            raise ValueError(
                "A sweep prunes before training, so it does not support criteria that compare weights with "
                f"their earlier values. Received: method={method!r}"
            )
    for compression in compressions:
        if isinstance(compression, bool) or not isinstance(compression, int | float) or not 1 <= compression < math.inf:
            raise ValueError(f"A compression must be a number >= 1. Received: compression={compression!r}")
    return [
        (method, float(compression), seed)
        for seed in seeds
        for compression in sorted(compressions)
        for method in ((DENSE,) if compression == 1 else methods)
    ]


def _needs_data(method: str) -> bool:
    return method != DENSE and "data" in trait(CRITERIA.get(method), "needs", ())


def _shown(cells: Sequence[SweepRun]) -> str:
    mean = sum(cell.accuracy for cell in cells) / len(cells)
    return f"{'*' * any(cell.collapsed for cell in cells)}{100 * mean:.1f}"


def _figure(report: Sweep) -> Figure:
    figure, axes = new_axes(9, 5)
    at = report.compressions
    known = (*METHODS, *sorted(set(CRITERIA) - set(METHODS)))
    for method in report.methods:
        columns, line = [report.of(method, compression) for compression in at], line_of(method, known)
        means = band(axes, at, columns, **line, label=method)
        for gone, marker in ((False, "o"), (True, "x")):
            some = [i for i, column in enumerate(columns) if any(cell.collapsed for cell in column) == gone]
            axes.scatter([at[i] for i in some], [means[i] for i in some], color=line["color"], marker=marker)
    axes.axhline(report.chance, color=TEXT, linewidth=1, linestyle=":", label="chance")
    axes.plot([], [], color=TEXT, linestyle="", marker="x", label="collapsed layer")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(percent())
    axes.set_xlabel("compression: all weights / kept weights")
    axes.set_ylabel("test accuracy after the last epoch")
    plain_axes(axes)
    figure.suptitle(f"pruned before training: {runs_drawn(report)}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


__all__ = ["COMPRESSIONS", "METHODS", "Sweep", "SweepRun", "sweep"]
