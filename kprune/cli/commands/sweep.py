"""`kprune sweep`: show layer collapse by plotting accuracy against compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from absl import logging

from ...experiments.sweep import METHODS, sweep
from ..options import Command, Option
from . import common

_COMPRESSIONS = "10^0,10^0.5,10^1,10^1.5,10^2,10^2.5,10^3,10^3.5"

# With the sweep's own, all flags that decide the outcome.
_SETTINGS = ("model", "width", "data_dir", "image_size", "optimizer", "decay", "library")


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune sweep`, which writes accuracy by criterion and compression to a CSV file, a figure and a table.

    Args:
        values: the flags of the command, as attributes.
        arguments: none.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as the library raises them; what can be checked is checked
            before the training.
    """
    if not values.verbose:
        logging.set_verbosity(logging.ERROR)  # that layers collapse is the result here, not a mishap to warn of
    dataset = common.load_data(values, seed=0)
    table = Path(values.out_dir, "collapse.csv")
    figure = table.with_suffix(".png")
    report = sweep(
        lambda seed: common.new_network(values, dataset, seed, True, values.library),
        dataset,
        values.methods,
        list(map(_compression, values.compressions)),
        range(values.seeds),
        values.epochs,
        scope=values.scope,
        rounds=values.rounds,
        path=table,
        settings={
            **{name: getattr(values, name) for name in _SETTINGS},
            "learning_rate": common.learning_rate(values),
            "backend": keras.backend.backend(),
        },
    )
    report.plot(figure)
    print(f"{report}\ntable: {table}\nfigure: {figure}")


def _compression(word: str) -> float:
    base, power, exponent = word.partition("^")
    return float(base) ** float(exponent) if power else float(base)


_AT_LEAST_1 = common.numbers(
    _compression,
    lambda value: 1 <= value < float("inf"),
    "must be numbers >= 1, such as 10 or 10^2.5, without duplicates",
)

_CRITERIA = common.criteria("data")

SWEEP = Command(
    "sweep",
    "Plot test accuracy against compression for several ways to prune before training.",
    "",
    "kprune sweep --model=vgg-11 --width=0.25 --dataset=digits --out_dir=out",
    (
        Option("methods", ",".join(METHODS), "criteria to compare, listed below", list, common.each(_CRITERIA)),
        Option("compressions", _COMPRESSIONS, "compression ratios (weights / kept weights)", list, _AT_LEAST_1),
        Option(
            "seeds",
            3,
            "number of training runs per criterion and compression, with seeds 0, 1, ...",
            int,
            common.at_least(1),
        ),
        *common.training_options("vgg-11", 0.25, 10, 0.01),
        common.LIBRARY,
        Option("out_dir", "out", "folder for collapse.csv (a later run resumes from it) and collapse.png"),
        *common.LOGGING,
    ),
    f"Criteria: {', '.join(_CRITERIA)}\n{common.NETWORK_NOTES}",
    run,
)
