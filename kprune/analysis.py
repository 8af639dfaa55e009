"""Analysis of tickets: supermasks, distances between masks, and linear mode connectivity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from .experiments.evaluation import masked_meanwhile, measure_by, unchanged
from .lottery.rewind import Arrays, Snapshot, matched, model_weights, rewind, snapshot
from .lottery.ticket import Ticket
from .masks import Masks, current_masks, masked_weights, strip
from .masks.matching import mask_distance as mask_distance
from .util.checks import check_function
from .util.plotting import KEPT, LINES, Drawable, new_axes, plain_axes
from .util.progress import check_verbose, progress
from .util.tables import new_table, table_lines
from .weight_agnostic import SharedValues as SharedValues
from .weight_agnostic import weight_agnostic as weight_agnostic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 10**6


def supermask(model: Any, ticket: Ticket, evaluate: Any) -> float:
    """Evaluate a ticket's masks applied to its initial weights, without training (arXiv:1905.01067).

    Afterwards weights, masks, statistics, seeds, metrics and optimizer are bit for bit what they were, also when the
    evaluation raises.

    Args:
        model: a built Keras 3 model (without masks it is masked for the duration), or a tf_keras model that
            `kprune.mask` returned.
        ticket: of this model; rewound to "init", as its weights are those to be evaluated. Masks by the criterion
            "init_final_sign" make the best supermasks of those in the paper.
        evaluate: a function of the model that returns a number, or data, as in `kprune.sensitivity`.

    Returns:
        The number, or the first compiled metric that is not a loss.

    Raises:
        ValueError: the ticket does not match the model, or as in `kprune.sensitivity`. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
    >>> def total(model):
    ...     return float(keras.ops.sum(model(np.ones((1, 4)))))
    >>> ticket = kprune.find_ticket(model, lambda model, level: None, levels=1, rate=0.5, verbose=0)
    >>> model.set_weights([np.zeros_like(value) for value in model.get_weights()])  # here in reality it is trained
    >>> total(model), supermask(model, ticket, total)
    (0.0, 2.0)
    """
    if not isinstance(ticket, Ticket):
        raise ValueError(f"`ticket` must be a kprune.Ticket. Received: ticket={type(ticket)}")
    measure = measure_by(model, evaluate)
    with masked_meanwhile(model):
        _put(model, _matched(model, ticket.weights, "ticket"), _matched(model, ticket.masks, "ticket", masks=True))
        return measure()[1]


@dataclass(frozen=True)
class LinearPath(Drawable):
    """A metric along the straight line between two networks; `print(path)` shows a table.

    `plot` draws the metric along the way, and the line between the ends.

    Attributes:
        places: from 0, the one network, to 1, the other, evenly spaced.
        values: the metric at each place.
        metric: its name: a compiled one's, or that of the function.
    """

    places: tuple[float, ...]
    values: tuple[float, ...]
    metric: str

    @property
    def rise(self) -> float:
        """The largest rise above the line between the ends, which is the barrier if the metric is a loss or error."""
        return barrier(self.values)

    @property
    def fall(self) -> float:
        """The largest fall below the line between the ends, which is the barrier if the metric is an accuracy."""
        return barrier([-value for value in self.values])

    def to_dict(self) -> dict[str, Any]:
        """Return the metric, places, values, `rise` and `fall` as JSON-serializable values."""
        lists = {"places": list(self.places), "values": list(self.values)}
        return {"metric": self.metric, **lists, "rise": self.rise, "fall": self.fall}

    def _draw(self) -> Figure:
        return _figure(self)

    def __str__(self) -> str:
        table = new_table()
        for header in ("place", self.metric):
            table.add_column(header, justify="right")
        for place, value in zip(self.places, self.values, strict=True):
            table.add_row(f"{place:.4g}", f"{value:.4f}")
        ends = f"largest deviation from the line between the ends: {self.rise:.4f} above, {self.fall:.4f} below"
        return "\n".join([*table_lines(table), ends])


def barrier(values: Sequence[float]) -> float:
    """Return the largest rise of values above the line from the first to the last (arXiv:1912.05671, 2110.06296).

    barrier = max over i of values[i] - ((1 - t) * values[0] + t * values[-1]), t = i / (len(values) - 1)

    1912.05671 subtracts the mean of the two ends instead, which is the same where the ends are equal.

    Args:
        values: losses or errors (lower = better) along a path, at evenly spaced places; NaN gives NaN.

    Returns:
        At least 0, as at the ends nothing rises.

    Raises:
        ValueError: there are fewer than two numbers.

    >>> barrier([0.25, 1.0, 1.25, 0.75])
    0.6666666666666667
    """
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"`values` must contain at least two numbers. Received: values={values!r}")
    return float(np.max(array - np.linspace(array[0], array[-1], len(array))))


def linear_path(
    model: Any,
    one: Snapshot,
    other: Snapshot,
    evaluate: Any,
    points: int = 11,
    prepare: Callable[[Any], Any] | None = None,
    verbose: Any = "auto",
) -> LinearPath:
    """Evaluate the networks on the straight line between two networks (arXiv:1912.05671).

    values[i] = metric((1 - t) * one + t * other), t = i / (points - 1)

    All floating-point weights go along the line, normalization statistics too; a network between two others has
    statistics of its own, which `prepare` may estimate. The seeds are those of `one`, and masks are the model's: what
    they prune is 0 all along. Afterwards weights, masks, statistics, seeds and metrics are bit for bit what they were,
    also when an evaluation raises.

    Args:
        model: a built model of either Keras, masked or not.
        one, other: from `kprune.snapshot`; only their weights matter. A `kprune.Ticket` will do.
        evaluate: a function of the model that returns a number, or data, as in `kprune.sensitivity`.
        points: number of places, both ends included.
        prepare: a function of the model, called at each place before it is evaluated. It may call the model with
            `training=True` on training data, by which the statistics move; it must not train it.
        verbose: 0 silent, 1 or "auto" a progress bar over the places, 2 a line at the end.

    Returns:
        `LinearPath`: `places`, `values`, `rise`, `fall`, `to_dict()`, `plot(path)`; its str is a table.

    Raises:
        ValueError: an argument is wrong, or a snapshot is of another model. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> ends = []
    >>> for weight in (-1.0, 1.0):
    ...     model.set_weights([np.array([[weight]])])
    ...     ends.append(kprune.snapshot(model))
    >>> def loss(model):  # (w ** 2 - 1) ** 2: two valleys
    ...     return float((model.get_weights()[0][0, 0] ** 2 - 1) ** 2)
    >>> path = linear_path(model, *ends, loss, points=5)
    >>> path.values, path.rise
    ((0.0, 0.5625, 1.0, 0.5625, 0.0), 1.0)
    """
    _check_points(points)
    check_verbose(verbose)
    if prepare is not None:
        check_function("prepare", prepare, "a model")
    for name, end in (("one", one), ("other", other)):
        if not isinstance(end, Snapshot | Ticket):
            raise ValueError(f"`{name}` must be a kprune.Snapshot or a kprune.Ticket. Received: {name}={end!r:.200}")
    measure = measure_by(model, evaluate)
    ends = [_matched(model, end.weights, name) for name, end in (("one", one), ("other", other))]
    places, values = [i / (points - 1) for i in range(points)], []
    with unchanged(model), progress("linear path", points, verbose, unit="points", delay=1) as bar:
        for place in places:
            _put(model, {path: _between(value, ends[1][path], place) for path, value in ends[0].items()})
            if prepare is not None:
                prepare(model)
            metric, value = measure()
            values.append(value)
            bar.update()
    return LinearPath(tuple(places), tuple(values), metric)


def instability(
    model: Any,
    train: Callable[[Any, int], Any],
    evaluate: Any,
    at: Snapshot | None = None,
    seeds: tuple[int, int] = (0, 1),
    points: int = 11,
    prepare: Callable[[Any], Any] | None = None,
    verbose: Any = "auto",
) -> LinearPath:
    """Train two copies of a model on differently ordered data, and evaluate the line between them (arXiv:1912.05671).

    Networks whose error hardly rises on the line between the copies are stable: from that point on the order of the
    data does not decide where training ends. Winning tickets are found where the rewind point is stable. Afterwards
    the model with its optimizer is bit for bit what it was, also after an exception.

    Args:
        model: a built, compiled model of either Keras, with the masks of a ticket or dense.
        train: a function of the model and a seed that trains the model to its end, with data in the order of the seed:
            `kprune.RewindableBatches(..., seed=seed)`, or `keras.utils.set_random_seed(seed)` before `fit`. It must
            neither compile the model nor change its masks.
        evaluate: a function of the model that returns a number, or data, as in `kprune.sensitivity`.
        at: `kprune.Snapshot` from which both are trained, optimizer and dropout's seeds included, as
            `kprune.callbacks.TakeSnapshot` takes it; by default the model as it is now.
        seeds: two different integers for `train`.
        points, prepare, verbose: as in `linear_path`.

    Returns:
        `LinearPath` from the copy of the first seed to that of the second.

    Raises:
        ValueError: an argument is wrong, `at` is of another model or optimizer, or `train` changed the masks.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=["mae"])
    >>> x, y = np.eye(2), np.array([[1.0], [-1.0]])
    >>> def train(model, seed):
    ...     batches = kprune.RewindableBatches(x, y, batch_size=1, model=model, seed=seed)
    ...     model.fit(batches, epochs=2, shuffle=False, verbose=0)
    >>> path = instability(model, train, (x, y), points=3, verbose=0)
    >>> path.metric, path.places
    ('mae', (0.0, 0.5, 1.0))
    """
    _check_points(points)
    check_function("train", train, "a model and a seed")
    if prepare is not None:
        check_function("prepare", prepare, "a model")
    integers = isinstance(seeds, Sequence) and all(isinstance(s, Integral) and not isinstance(s, bool) for s in seeds)
    if not integers or len(seeds) != 2 or seeds[0] == seeds[1]:
        raise ValueError(f"`seeds` must be two different integers. Received: seeds={seeds!r}")
    if at is not None and not isinstance(at, Snapshot):
        raise ValueError(f"`at` must be a kprune.Snapshot, which includes the optimizer. Received: at={type(at)}")
    measure_by(model, evaluate)
    masks, ends = current_masks(model), []
    with unchanged(model, optimizer=True):
        begin = snapshot(model) if at is None else at
        try:
            with progress("instability", len(seeds), verbose, unit="runs") as bar:
                for seed in seeds:
                    rewind(model, begin)
                    train(model, seed)
                    if any((kept != masks.get(path, True)).any() for path, kept in current_masks(model).items()):
                        raise ValueError(f"`train` must not change the masks. Received: seed={seed!r}")
                    ends.append(snapshot(model))
                    bar.update()
            return linear_path(model, ends[0], ends[1], evaluate, points, prepare, verbose)
        finally:
            if not masks and masked_weights(model):  # a callback of kprune's among those of `train` has masked it
                strip(model)


def _check_points(points: int) -> None:
    if not isinstance(points, int) or isinstance(points, bool) or not 2 <= points <= _MOST_POINTS:
        raise ValueError(f"`points` must be an integer from 2 to {_MOST_POINTS:,}. Received: points={points!r:.200}")


def _matched(model: Any, arrays: Arrays, name: str, masks: bool = False) -> Arrays:
    """Map the path of each (masked) weight to its array; raise ValueError if the arrays do not match the model."""
    mine = {weight.path: weight for weight in masked_weights(model)} if masks else model_weights(model)
    try:
        return matched(mine, arrays, "model")
    except ValueError as error:
        raise ValueError(f"`{name}` does not match the model. Cause: {error}") from error


def _between(one: np.ndarray, other: np.ndarray, place: float) -> np.ndarray:
    """Return `(1 - place) * one + place * other` in the arrays' dtype; integers, such as seeds, come from `one`."""
    if not keras.backend.is_float_dtype(one.dtype.name):
        return one
    return ((1 - place) * one.astype(np.float64) + place * other.astype(np.float64)).astype(one.dtype)


def _put(model: Any, weights: Arrays, masks: Masks | None = None) -> None:
    """Assign weights, and masks if given, to a model; unlike `set_masks`, do not touch the optimizer."""
    variables = model_weights(model)
    for path, value in weights.items():
        variables[path].assign(value)
    for weight in masked_weights(model):
        weight.write(weight.kept() if masks is None else masks[weight.path])


def _figure(path: LinearPath) -> Figure:
    figure, axes = new_axes(7, 4)
    axes.plot(path.places, path.values, color=KEPT, marker="o", linewidth=1.8, label=path.metric)
    ends = [path.values[0], path.values[-1]]
    axes.plot([0, 1], ends, color=LINES[0], linestyle="--", linewidth=1, label="straight line between the ends")
    axes.set_xlabel("position on the line from the first network (0) to the second (1)")
    axes.set_ylabel(path.metric)
    plain_axes(axes)
    figure.suptitle(f"at most {path.rise:.4g} above and {path.fall:.4g} below the line between the ends", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


__all__ = [
    "LinearPath",
    "SharedValues",
    "barrier",
    "instability",
    "linear_path",
    "mask_distance",
    "supermask",
    "weight_agnostic",
]
