"""Weight-agnostic evaluation: how well a network's masks perform when all kept weights share one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from .experiments.evaluation import masked_meanwhile, measure_by
from .masks import masked_weights
from .util.checks import check_flag
from .util.plotting import KEPT, Drawable, new_axes, plain_axes
from .util.tables import new_table, table_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SharedValues(Drawable):
    """A metric for several shared weight values; `print(found)` shows a table, and `plot` draws it.

    Attributes:
        values: shared value -> the metric.
        metric: its name: a compiled one's, or that of the function.
    """

    values: dict[float, float]
    metric: str

    @property
    def mean(self) -> float:
        """The mean of the metric over all shared values, by which the paper ranks networks."""
        return fmean(self.values.values())

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values, with the shared values as strings."""
        return {
            **asdict(self),
            "values": {str(value): found for value, found in self.values.items()},
            "mean": self.mean,
        }

    def __str__(self) -> str:
        table = new_table()
        for header in ("shared value", self.metric):
            table.add_column(header, justify="right")
        for value, found in self.values.items():
            table.add_row(f"{value:g}", f"{found:.4f}")
        return "\n".join([*table_lines(table), f"mean: {self.mean:.4f}"])

    def _draw(self) -> Figure:
        figure, axes = new_axes(7, 4)
        axes.plot(list(self.values), list(self.values.values()), color=KEPT, marker="o", linewidth=1.8)
        axes.set_xlabel("value of all kept weights")
        axes.set_ylabel(self.metric)
        plain_axes(axes)
        return figure


def weight_agnostic(
    model: Any, evaluate: Any, values: Sequence[float] = (-2, -1, -0.5, 0.5, 1, 2), *, signs: bool = False
) -> SharedValues:
    """Evaluate a masked network with all kept weights set to one value, for each of several values (arXiv:1906.04358).

    w <- where(mask, value, 0), or where(mask, sign(w) * value, 0); biases and normalization stay as they are.
    Afterwards weights, masks, statistics, seeds and metrics are bit for bit what they were, also when the evaluation
    raises.

    Args:
        model: a masked Keras 3 model, or a tf_keras model that `kprune.mask` returned.
        evaluate: a function of the model that returns a number, or data, as in `kprune.sensitivity`.
        values: finite numbers, each once, in the unit of the weights; the paper's by default.
        signs: whether each entry keeps its sign, as supermasks of signed constants do.

    Raises:
        ValueError: the model has no masks, `values` are not as above, or as in `kprune.sensitivity`. Nothing has been
            changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    >>> _ = kprune.prune(model, "magnitude", 0.5)
    >>> def total(model):
    ...     return float(keras.ops.sum(model(np.ones((1, 4)))))
    >>> found = weight_agnostic(model, total, [-1, 0.5])
    >>> found.values, found.mean
    ({-1.0: -2.0, 0.5: 1.0}, -0.5)
    """
    weights = masked_weights(model)
    if not weights:
        raise ValueError(f"The model has no masks: call kprune.mask first. Received: model={model.name!r}")
    check_flag("signs", signs)
    shared = _checked(values)
    measure, found = measure_by(model, evaluate), {}
    with masked_meanwhile(model):
        starts = [np.sign(weight.value()) if signs else np.ones_like(weight.value()) for weight in weights]
        for value in shared:
            for weight, start in zip(weights, starts, strict=True):
                weight.variable.assign(np.where(weight.kept(), start * np.asarray(value, start.dtype), 0))
            metric, found[value] = measure()
    return SharedValues(found, metric)


def _checked(values: Any) -> list[float]:
    listed = list(values) if isinstance(values, Sequence | np.ndarray) and not isinstance(values, str) else []
    for value in listed:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(
                f"`values` must contain finite numbers, but {value!r:.100} is not one. Received: values={values!r:.200}"
            )
    numbers = [float(value) for value in listed]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"`values` must contain one or more distinct numbers. Received: values={values!r:.200}")
    return numbers


__all__ = ["SharedValues", "weight_agnostic"]
