"""What a network's connections are worth: all kept weights share one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ..masks import masked_weights
from ..util.checks import check_flag
from ..util.plotting import KEPT, Drawable, new_axes, plain_axes
from ..util.progress import check_verbose, progress
from ..util.tables import new_table, table_lines
from .evaluation import masked_meanwhile, measure_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALUES = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class SharedWeight(Drawable):
    """A metric against the one value that all kept weights share; `print(found)` shows a table, `plot` draws it.

    Attributes:
        values: the shared values, in the order that was asked for.
        results: the metric at each.
        metric: its name: a compiled one's, or that of the function.
        signed: whether each weight had its own sign.
    """

    values: tuple[float, ...]
    results: tuple[float, ...]
    metric: str
    signed: bool

    @property
    def mean(self) -> float:
        """The mean over the values, by which the paper ranks connections."""
        return float(np.mean(self.results))

    def to_dict(self) -> dict[str, Any]:
        """Everything above as JSON-serializable values."""
        lists = {"values": list(self.values), "results": list(self.results)}
        return {"metric": self.metric, "signed": self.signed, **lists, "mean": self.mean}

    def _draw(self) -> Figure:
        figure, axes = new_axes(7, 4)
        pairs = sorted(zip(self.values, self.results, strict=True))
        axes.plot(*zip(*pairs, strict=True), color=KEPT, marker="o", linewidth=1.8)
        axes.set_xlabel("shared value times the weight's sign" if self.signed else "shared value")
        axes.set_ylabel(self.metric)
        plain_axes(axes)
        return figure

    def __str__(self) -> str:
        table = new_table()
        for header in ("signed value" if self.signed else "value", self.metric):
            table.add_column(header, justify="right")
        for value, result in zip(self.values, self.results, strict=True):
            table.add_row(f"{value:.4g}", f"{result:.4f}")
        return "\n".join([*table_lines(table), f"mean {self.mean:.4f}"])


def shared_weight(
    model: Any, evaluate: Any, values: Sequence[float] = VALUES, *, signed: bool = False, verbose: Any = "auto"
) -> SharedWeight:
    """Evaluate a network whose kept weights all have one value, for each of several values (arXiv:1906.04358).

    results[i] = metric of the model whose masked weights are where(mask, values[i], 0), or with `signed`
    where(mask, values[i] * sign(w), 0). Biases and other weights stay. What is left of the metric is due to the
    connections, and to signs, alone. Afterwards weights, masks, statistics, seeds, metrics and optimizer are bit for
    bit what they were, also when the evaluation raises.

    Args:
        model: a built Keras 3 model (without masks it is masked for the duration), or a tf_keras model that
            `kprune.mask` returned.
        evaluate: a function of the model that returns a number, or data, as in `kprune.sensitivity`.
        values: the shared values, by default those of the paper.
        signed: whether each weight keeps its sign.
        verbose: 0 silent, 1 or "auto" a progress bar over the values, 2 a line at the end.

    Returns:
        `SharedWeight`: `values`, `results`, `mean`, `to_dict()`, `plot(path)`; its str is a table.

    Raises:
        ValueError: an argument is wrong, or as in `kprune.sensitivity`. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> _ = kprune.prune(model, "magnitude", 0.5)
    >>> def total(model):
    ...     return float(keras.ops.sum(model(np.ones((1, 4)))))
    >>> shared_weight(model, total, [-1.0, 3.0], verbose=0).results
    (-2.0, 6.0)
    """
    check_flag("signed", signed)
    check_verbose(verbose)
    listed = list(values) if isinstance(values, Sequence | np.ndarray) and not isinstance(values, str | bytes) else []
    if not listed or not all(isinstance(v, Real) and not isinstance(v, bool) and np.isfinite(v) for v in listed):
        raise ValueError(f"`values` must be a sequence of one or more finite numbers. Received: values={values!r:.200}")
    measure, results, metric = measure_by(model, evaluate), [], ""
    with masked_meanwhile(model), progress("shared weight", len(listed), verbose, unit="values", delay=1) as bar:
        weights = [(weight, weight.kept(), weight.value()) for weight in masked_weights(model)]
        for value in listed:
            for weight, kept, own in weights:
                new = np.sign(own) * value if signed else np.full(own.shape, value)
                weight.variable.assign(np.where(kept, new, 0).astype(own.dtype))
            metric, result = measure()
            results.append(result)
            bar.update()
    return SharedWeight(tuple(float(value) for value in listed), tuple(results), metric, signed)
