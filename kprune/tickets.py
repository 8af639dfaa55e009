"""Experiments with tickets: stable rewind points, noisy initial weights, transfer to other data, and short levels.

See arXiv:1912.05671 and 1903.01611 (late resetting), 1905.01067 (what of the start matters) and 1906.02773 (one ticket
for several datasets). The controls of a single ticket are in `kprune.controls`, the lotteries in `kprune.find_ticket`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .analysis import LinearPath, instability
from .controls import reinitialize, shuffled
from .experiments.find_ticket import find_ticket
from .experiments.runs import check_each_once
from .experiments.trials import Trials as Trials
from .experiments.trials import trials
from .lottery.rewind import Snapshot
from .lottery.ticket import Ticket
from .masks import masked_weights
from .util.checks import check_function, check_integer, check_number
from .util.tables import Printed, new_table, table_lines


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
        found = "no step is stable" if self.step is None else f"the smallest stable step is {self.step}"
        return "\n".join([*table_lines(table), f"{found} (stable means a barrier of at most {self.threshold:g})"])


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
    """Find the smallest step from which a rewound network trains stably (late resetting, arXiv:1912.05671).

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
    if not isinstance(snapshots, Mapping) or not snapshots:
        raise ValueError(
            "`snapshots` must be a non-empty dict that maps steps to kprune.Snapshot objects. Received: "
            f"snapshots={snapshots!r:.200}"
        )
    for step, taken in snapshots.items():
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(f"Each key of `snapshots` must be an integer >= 0 (a step). Received: key={step!r}")
        if not isinstance(taken, Snapshot):
            raise ValueError(
                "Each value of `snapshots` must be a kprune.Snapshot. Received: "
                f"snapshots[{step!r}]={type(taken).__name__}"
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
    """Train a ticket from noisy versions of its initial weights, to measure how exact these must be.

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
    _check_ticket(ticket)
    return trials(model, starts, train, evaluate, seeds, verbose, "noise / weights", matches=ticket.apply)


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
    """Train a ticket found on another data set, and compare it with alternative starting points (arXiv:1906.02773).

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
    _check_ticket(ticket)
    return trials(
        model, starts, train, evaluate, seeds, verbose, "start", matches=lambda model: ticket.apply(model, skip)
    )


def short_levels(
    model: Any,
    train: Callable[[Any, int, int], Any],
    evaluate: Any,
    *,
    epochs: Sequence[int],
    full: int,
    levels: int = 3,
    rate: float = 0.2,
    seeds: Sequence[int] = (0,),
    verbose: Any = "auto",
    **lottery: Any,
) -> Trials:
    """Compare tickets found with few and with many epochs per level, to measure how short levels can be.

    For each number of epochs a lottery from the model as it is (`kprune.find_ticket`), whose levels train that long;
    then its ticket is trained for `full` epochs, as all are.

    Args:
        model: a built, compiled model of either Keras; afterwards with its optimizer bit for bit what it was.
        train: a function of the model, a seed and a number of epochs that trains it; it must not compile it.
        evaluate: a function of the model that returns a number, or data, as in `kprune.sensitivity`.
        epochs: of a level, each at least 1.
        full: epochs of the training that is measured, at least 1.
        levels, rate, lottery: as in `kprune.find_ticket`, also `rewind_to`, `criterion` and the like.
        seeds: of the lotteries and the trainings.
        verbose: 0 silent, 1 or "auto" a progress bar over the trainings, 2 a line at the end.

    Raises:
        ValueError: an argument is wrong. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=["mae"])
    >>> x, y = np.eye(2), np.ones((2, 1))
    >>> def train(model, seed, epochs):
    ...     model.fit(x, y, epochs=epochs, verbose=0)
    >>> found = short_levels(model, train, (x, y), epochs=[1, 2], full=2, levels=1, verbose=0)
    >>> found.starts, list(found.values)
    ('epochs per level', [1, 2])
    """
    check_each_once("epochs", epochs)
    for length in epochs:
        check_integer("epochs", length, 1)
    check_integer("full", full, 1)
    check_function("train", train, "a model, a seed and a number of epochs")

    def found_with(length: int) -> Callable[[Any, int], None]:
        def start(model: Any, seed: int) -> None:
            def level(model: Any, level: Any) -> None:
                train(model, seed, length)

            find_ticket(model, level, levels=levels, rate=rate, verbose=0, **lottery).apply(model)

        return start

    starts = {length: found_with(length) for length in epochs}
    return trials(
        model, starts, lambda model, seed: train(model, seed, full), evaluate, seeds, verbose, "epochs per level"
    )


def _check_ticket(ticket: Any) -> None:
    if not isinstance(ticket, Ticket):
        raise ValueError(f"`ticket` must be a kprune.Ticket. Received: ticket={type(ticket)}")


__all__ = ["StablePoint", "Trials", "neighborhood", "short_levels", "stable_point", "transfer"]
