"""Uses of a ticket: when it becomes stable, how close to its start training may begin, and on which data.

See arXiv:1912.05671 and 1903.01611 (late resetting), 1905.01067 (what of the start matters) and 1906.02773 (one ticket
for several datasets). The controls of a single ticket are in `kprune.controls`, the lotteries in `kprune.find_ticket`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from .analysis import LinearPath, instability
from .controls import reinitialize, shuffled
from .experiments.evaluation import measure_by, unchanged
from .experiments.runs import check_each_once, check_seeds
from .lottery.rewind import Snapshot, restore, snapshot
from .lottery.ticket import Ticket
from .masks import masked, masked_weights
from .util.checks import check_function, check_number
from .util.plotting import KEPT, Drawable, new_axes, plain_axes
from .util.progress import check_verbose, progress
from .util.tables import Printed, new_table, table_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StablePoint(Printed):
    """The result of `stable_point`; `print(found)` shows a table.

    Attributes:
        step: the smallest stable one of those given; None if none is.
        paths: step -> `kprune.analysis.LinearPath` between the two trainings, for each that was tried, ascending.
        barriers: step -> its error barrier.
        threshold: the highest barrier that is stable.
    """

    step: int | None
    paths: dict[int, LinearPath]
    barriers: dict[int, float]
    threshold: float

    def __str__(self) -> str:
        table = new_table()
        for header in ("step", "barrier", "stable"):
            table.add_column(header, justify="right")
        for step, barrier in self.barriers.items():
            table.add_row(str(step), f"{barrier:.4f}", "yes" if barrier <= self.threshold else "no")
        found = "none is stable" if self.step is None else f"the smallest stable step is {self.step}"
        return "\n".join([*table_lines(table), f"{found}; stable: a barrier of at most {self.threshold:g}"])


def stable_point(
    model: Any,
    train: Callable[[Any, int], Any],
    evaluate: Any,
    snapshots: Mapping[int, Snapshot],
    *,
    threshold: float = 0.02,
    barrier: str = "fall",
    seeds: tuple[int, int] = (0, 1),
    points: int = 11,
    prepare: Callable[[Any], Any] | None = None,
    verbose: Any = "auto",
) -> StablePoint:
    """The smallest step to which a network can be rewound and be stable: late resetting (arXiv:1912.05671).

    A step k is stable if two trainings from it, on data in other orders, end in one basin: if on the straight line
    between them the error barrier is at most `threshold` (`kprune.analysis.instability`). Where a ticket is stable, it
    is as accurate as the dense network; the paper takes 2 %. The search is a bisection: it takes it that from a stable
    step on all are, and trains twice for each of about log2(number of steps) + 1.

    Args:
        model: a built, compiled model of either Keras, with the masks of a ticket or dense; afterwards it is bit for
            bit what it was.
        train, evaluate, seeds, points, prepare, verbose: as in `kprune.analysis.instability`.
        snapshots: step -> `kprune.Snapshot` of the first training at that step, as several
            `kprune.callbacks.TakeSnapshot` in one fit take them.
        threshold: the highest barrier that counts as stable, above 0.
        barrier: "fall" if `evaluate` gives an accuracy, "rise" if it gives a loss or an error.

    Raises:
        ValueError: an argument is wrong, or a snapshot is of another model.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=["mae"])
    >>> x, y = np.eye(2), np.array([[1.0], [-1.0]])
    >>> takers = {step: kprune.callbacks.TakeSnapshot(step) for step in (0, 2)}
    >>> def train(model, seed, callbacks=()):
    ...     batches = kprune.RewindableBatches(x, y, batch_size=1, model=model, seed=seed)
    ...     model.fit(batches, epochs=2, shuffle=False, callbacks=list(callbacks), verbose=0)
    >>> train(model, 0, takers.values())
    >>> snapshots = {step: taker.snapshot for step, taker in takers.items()}
    >>> stable_point(model, train, (x, y), snapshots, barrier="rise", points=3, verbose=0).step
    0
    """
    check_number("threshold", threshold, "above 0", lambda value: value > 0)
    if barrier not in ("fall", "rise"):
        raise ValueError(f"`barrier` must be 'fall' or 'rise'. Received: barrier={barrier!r}")
    if not isinstance(snapshots, Mapping) or not snapshots or not all(isinstance(step, int) for step in snapshots):
        raise ValueError(
            "`snapshots` must be a dict that maps steps to kprune.Snapshot objects. Received: "
            f"snapshots={snapshots!r:.200}"
        )
    steps, paths = sorted(snapshots), {}

    def stable(position: int) -> bool:
        step = steps[position]
        paths[step] = instability(model, train, evaluate, snapshots[step], seeds, points, prepare, verbose)
        return getattr(paths[step], barrier) <= threshold

    # Invariant: all before `low` are unstable; `high` and all after it are stable.
    low, high = 0, len(steps) - 1 if stable(len(steps) - 1) else len(steps)
    while low < min(high, len(steps) - 1):
        middle = (low + high) // 2
        low, high = (low, middle) if stable(middle) else (middle + 1, high)
    paths = dict(sorted(paths.items()))
    barriers = {step: getattr(path, barrier) for step, path in paths.items()}
    return StablePoint(steps[high] if high < len(steps) else None, paths, barriers, threshold)


@dataclass(frozen=True)
class Trials(Drawable):
    """A metric after trainings from several starts; `print(trials)` shows a table, `plot` draws it.

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
        """All fields as JSON-serializable values; starts as strings."""
        return {**asdict(self), "values": {str(start): list(values) for start, values in self.values.items()}}

    def __str__(self) -> str:
        table = new_table()
        for header in (self.starts, self.metric, "least", "most"):
            table.add_column(header, justify="right")
        for start, values in self.values.items():
            table.add_row(str(start), *(f"{value:.4f}" for value in (fmean(values), min(values), max(values))))
        return "\n".join([*table_lines(table), f"mean, least and most of {len(self.seeds)} seeds"])

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


def neighborhood(
    model: Any,
    ticket: Ticket,
    train: Callable[[Any, int], Any],
    evaluate: Any,
    *,
    sizes: Sequence[float] = (0.0, 0.1, 0.3, 1.0, 3.0),
    seeds: Sequence[int] = (0,),
    verbose: Any = "auto",
) -> Trials:
    """The metric after training a ticket from near its start: how exact must its initial weights be?

    w <- mask * (w0 + e * |w0| / |n| * n), n normal noise on the kept entries, for each weight by itself and each
    relative size e; then it is trained.

    Args:
        model: a built, compiled model of either Keras; afterwards with its optimizer bit for bit what it was.
        ticket: whose masks and weights are the start.
        train: a function of the model and a seed that trains it; it must not compile it. The optimizer is each time as
            it is now.
        evaluate: a function of the model that returns a number, or data, as in `kprune.sensitivity`.
        sizes: relative sizes e of the noise, each at least 0; 0 is the ticket itself.
        seeds: of the noise and the trainings.
        verbose: 0 silent, 1 or "auto" a progress bar over the trainings, 2 a line at the end.

    Raises:
        ValueError: an argument is wrong, or the ticket is not one of this model. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=["mae"])
    >>> masks = kprune.prune(model, "magnitude", 0.5)
    >>> x, y = np.eye(2), np.ones((2, 1))
    >>> def train(model, seed):
    ...     model.fit(x, y, verbose=0)
    >>> trials = neighborhood(model, kprune.Ticket.of(model), train, (x, y), sizes=[0.0, 0.5], verbose=0)
    >>> trials.metric, list(trials.values)
    ('mae', [0.0, 0.5])
    """
    check_each_once("sizes", sizes)
    for size in sizes:
        check_number("size", size, ">= 0", lambda value: value >= 0)

    def near(size: float) -> Callable[[Any, int], None]:
        def start(model: Any, seed: int) -> None:
            ticket.apply(model)
            for position, weight in enumerate(masked_weights(model)):
                value = weight.value()
                draw = np.random.default_rng([seed, position]).standard_normal(weight.shape)
                noise, exact = np.where(weight.kept(), draw, 0), value.astype(np.float64)
                length = np.sqrt(np.sum(noise**2))
                if size and length:
                    exact += size * np.sqrt(np.sum(exact**2)) / length * noise
                weight.variable.assign(exact.astype(value.dtype))

        return start

    starts = {size: near(size) for size in sizes}
    return _trials(model, ticket, None, starts, train, evaluate, seeds, verbose, "noise / weights")


def transfer(
    model: Any,
    ticket: Ticket,
    train: Callable[[Any, int], Any],
    evaluate: Any,
    *,
    skip: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    verbose: Any = "auto",
) -> Trials:
    """The metric of a ticket found on other data, compared with other starting points (arXiv:1906.02773).

    Trained from four starts each: "ticket", its masks and weights; "reinitialize", its masks and fresh weights;
    "shuffle", its weights under its masks shuffled within each weight; and "dense", fresh weights, none pruned.
    Fresh are also the weights that `skip` leaves out, such as the classifier of other classes.

    Args:
        model: a built, compiled model of either Keras, for these data; afterwards with its optimizer bit for bit what
            it was.
        ticket: found on other data.
        train, evaluate, verbose: as in `neighborhood`; both on these data.
        skip: as in `kprune.Ticket.apply`.
        seeds: of the fresh weights, the shuffles and the trainings.

    Raises:
        ValueError: an argument is wrong, or the ticket does not match. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=["mae"])
    >>> masks = kprune.prune(model, "magnitude", 0.5)
    >>> x, y = np.eye(2), np.ones((2, 1))
    >>> def train(model, seed):
    ...     model.fit(x, y, verbose=0)
    >>> list(transfer(model, kprune.Ticket.of(model), train, (x, y), seeds=[0], verbose=0).values)
    ['dense', 'ticket', 'reinitialize', 'shuffle']
    """

    def fresh(model: Any, seed: int) -> None:
        reinitialize(model, seed, weights="all")

    def own(model: Any, seed: int) -> None:
        fresh(model, seed)
        ticket.apply(model, skip)

    def redrawn(model: Any, seed: int) -> None:
        ticket.apply(model, skip)
        fresh(model, seed)

    def mixed(model: Any, seed: int) -> None:
        fresh(model, seed)
        Ticket(shuffled(ticket.masks, seed), ticket.weights).apply(model, skip)

    starts = {"dense": fresh, "ticket": own, "reinitialize": redrawn, "shuffle": mixed}
    return _trials(model, ticket, skip, starts, train, evaluate, seeds, verbose, "start")


def _trials(
    model: Any,
    ticket: Ticket,
    skip: str | None,
    starts: Mapping[Any, Callable[[Any, int], None]],
    train: Callable[[Any, int], Any],
    evaluate: Any,
    seeds: Sequence[int],
    verbose: Any,
    what: str,
) -> Trials:
    """Train from each start with each seed, and measure; afterwards the model is restored."""
    check_verbose(verbose)
    check_seeds(seeds)
    check_function("train", train, "a model and a seed")
    if not isinstance(ticket, Ticket):
        raise ValueError(f"Expected a kprune.Ticket. Received: ticket={type(ticket)}")
    measure, metric = measure_by(model, evaluate), ""
    values: dict[Any, list[float]] = {start: [] for start in starts}
    with masked(model, keep=False), unchanged(model, optimizer=True):
        begin, dense = snapshot(model), {w.path: np.ones(w.shape, bool) for w in masked_weights(model)}
        ticket.apply(model, skip)  # what does not match is known before the first training
        with progress("trials", len(starts) * len(seeds), verbose, unit="trainings") as bar:
            for name, start in starts.items():
                for seed in seeds:
                    restore(model, dense, begin)
                    start(model, seed)
                    train(model, seed)
                    metric, value = measure()
                    values[name].append(value)
                    bar.update()
    return Trials({name: tuple(found) for name, found in values.items()}, tuple(seeds), metric, what)


__all__ = ["StablePoint", "Trials", "neighborhood", "stable_point", "transfer"]
