"""The sensitivity scan, which measures how the model's metric changes if only one weight is pruned."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import PruningConfig
from ..criteria import CRITERIA, Context
from ..masks import MaskedWeight, masked_weights
from ..runtime.values import Values
from ..schedules import check_sparsity
from ..util.plotting import TEXT, TOTAL, Drawable, new_axes, short_paths
from ..util.progress import check_verbose, progress
from ..util.tables import new_table, table_lines
from .evaluation import masked_meanwhile, measure_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SensitivityRow:
    """The model's metric with one weight pruned.

    Attributes:
        path: the weight's unique name in the model, as in `kprune.masked_weights`.
        size: number of its entries.
        values: sparsity of this weight -> the metric of the model, in the order of the scan.
    """

    path: str
    size: int
    values: dict[float, float]


@dataclass(frozen=True)
class Sensitivity(Drawable):
    """The result of `kprune.sensitivity`; `print(report)` shows a table.

    `plot` draws a heat map, weights by sparsities.

    Attributes:
        rows: one `SensitivityRow` per masked weight, in model order.
        dense: the metric of the model as it is.
        metric: the metric's name: a compiled one's, or that of the function.
    """

    rows: tuple[SensitivityRow, ...]
    dense: float
    metric: str

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsities of the scan, in order."""
        return tuple(self.rows[0].values)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values, with `values` in the order of `sparsities`."""
        return {
            "metric": self.metric,
            "dense": self.dense,
            "sparsities": list(self.sparsities),
            "rows": [{"path": row.path, "size": row.size, "values": list(row.values.values())} for row in self.rows],
        }

    def _draw(self) -> Figure:
        return _figure(self)

    def __str__(self) -> str:
        table = new_table()
        table.add_column("weight")
        for header in ("size", *(f"{sparsity:.6g}" for sparsity in self.sparsities)):
            table.add_column(header, justify="right")
        for row in self.rows:
            table.add_row(row.path, f"{row.size:,}", *(f"{value:.4f}" for value in row.values.values()))
        return "\n".join(
            [
                *table_lines(table),
                f"{self.metric} with only that weight pruned to that sparsity; the unchanged model has "
                f"{self.dense:.4f}",
            ]
        )


def sensitivity(
    model: Any,
    evaluate: Any,
    sparsities: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.99),
    *,
    criterion: str | Callable[..., Any] = "magnitude",
    pattern: str | Callable[..., Any] = "unstructured",
    seed: int = 0,
    verbose: Any = "auto",
) -> Sensitivity:
    """Prune one weight at a time to find out which weights of a model can be pruned (arXiv:1506.02626).

    values[s] = metric(model in which this weight has floor(s * size) zeros and all others are as they are)

    The criterion scores the model once, as it is; an iterative one (SynFlow) too. That is weights x sparsities
    evaluations and one of the model as it is, by one compiled function. Afterwards weights, masks, statistics, seeds
    and metrics are bit for bit what they were, also when an evaluation raises; the optimizer is not touched.

    Args:
        model: a built Keras 3 model (without masks it is masked for the duration), or a tf_keras model that
            `kprune.mask` returned.
        evaluate: a function of the model that returns a number, higher = better, and does not train it; or the data
            for `model.evaluate`: (x, y), (x, y, sample_weight), a list of batches, a `tf.data.Dataset` or anything
            else that `model.evaluate` takes and that can be gone through many times. Then the metric is the first
            compiled one that is not a loss.
        sparsities: fractions of zeros, each in [0, 1). A weight that is sparser already stays as it is.
        criterion, pattern, seed: as in `kprune.PruningConfig`.
        verbose: 0 silent, 1 or "auto" a progress bar over the evaluations, 2 a line at the end.

    Returns:
        `Sensitivity`: `rows`, `dense`, `metric`, `to_dict()`, `plot(path)`; its str is a table.

    Raises:
        ValueError: an argument is wrong, the model has nothing to mask, a score is NaN or infinite, no metric is
            compiled, or `evaluate` does not return a number. The model is as it was then.

    >>> import keras, kprune
    >>> layers = [keras.layers.Dense(4, kernel_initializer="ones", name=name) for name in ("wide", "out")]
    >>> model = keras.Sequential([keras.Input((8,)), *layers], name="net")
    >>> report = kprune.sensitivity(model, lambda model: float(keras.ops.sum(model(keras.ops.ones((1, 8))))), [0.5])
    >>> report.dense, [(row.path, row.values) for row in report.rows]
    (128.0, [('net/wide/kernel', {0.5: 64.0}), ('net/out/kernel', {0.5: 64.0})])
    """
    check_verbose(verbose)
    config = PruningConfig(criterion, scope="layerwise", pattern=pattern, rounds=1, seed=seed)
    if not config.data_free:
        raise ValueError(
            "The scan does not train the model, so it does not support criteria that need the loss or "
            f"training statistics. Received: criterion={config.name!r}"
        )
    sparsities = _checked(sparsities)
    measure = measure_by(model, evaluate)
    with masked_meanwhile(model):
        weights = masked_weights(model)
        metric, dense = measure()
        scores = CRITERIA.get(criterion)(Context(model, weights, {w.path: w.kept() for w in weights}, seed))
        scored = dataclasses.replace(config, criterion=lambda context: scores)
        values: dict[str, dict[float, float]] = {w.path: {} for w in weights}
        total = len(weights) * len(sparsities)
        with progress("sensitivity", total, verbose, unit="evaluations", delay=1) as bar:
            for sparsity in sparsities:
                # Layerwise, so each of these masks is that of its weight pruned alone.
                masks = scored.masks(model, sparsity)
                for w in weights:
                    with _pruned(w, masks[w.path]):
                        _, values[w.path][sparsity] = measure()
                    bar.update()
    return Sensitivity(tuple(SensitivityRow(w.path, w.size, values[w.path]) for w in weights), dense, metric)


@contextmanager
def _pruned(weight: MaskedWeight, mask: np.ndarray) -> Iterator[None]:
    """Give the weight this mask in this context; unlike `set_masks`, do not touch the optimizer's slots."""
    before = Values([weight.mask, weight.variable])
    weight.write(mask)
    try:
        yield
    finally:
        before.put_back()


def _checked(sparsities: Any) -> tuple[float, ...]:
    if (
        isinstance(sparsities, str | numbers.Number)
        or not isinstance(sparsities, Iterable)
        or getattr(sparsities, "ndim", 1) != 1
    ):
        raise ValueError(
            f"`sparsities` must be a sequence of numbers, such as [0.5, 0.9]. Received: sparsities={sparsities!r}"
        )
    listed = list(sparsities)
    for sparsity in listed:
        check_sparsity("sparsity", sparsity)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(
            f"`sparsities` must contain at least one entry and no duplicates. Received: sparsities={listed!r}"
        )
    return tuple(float(sparsity) for sparsity in listed)


def _figure(report: Sensitivity) -> Figure:
    rows, sparsities = report.rows, report.sparsities
    values = np.array([list(row.values.values()) for row in rows])
    size = (3.6 + 0.75 * len(sparsities), 1.5 + 0.27 * max(len(rows), 3))
    figure, axes = new_axes(*size)
    finite = [value for value in (*values.flat, report.dense) if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    image = axes.imshow(values, cmap="Blues_r", vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    axes.set_facecolor(TOTAL)  # of cells that are NaN
    middle = (low + high) / 2
    for (y, x), value in np.ndenumerate(values):
        color = "white" if value < middle else TEXT
        axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(sparsities)), [f"{sparsity:.6g}" for sparsity in sparsities])
    axes.set_yticks(range(len(rows)), short_paths([row.path for row in rows]), fontsize=8.5)
    axes.set_xlabel("sparsity of this weight, with all other weights unchanged")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label=report.metric).outline.set_visible(False)
    figure.suptitle(f"{report.metric}; the unchanged model has {report.dense:.4g}", fontsize=11)
    return figure
