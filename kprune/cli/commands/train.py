"""`kprune train`: train a sparse network."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...callbacks import GradualPruning, PruneAtInit, SparsityLogger
from ...criteria import CRITERIA
from ...data import Dataset
from ...deploy.export import export, targets
from ...report.plot import plot_sparsity
from ...report.summary import summary
from ...runtime.distribution import is_chief
from ...runtime.strategy import STRATEGIES, auto_strategy
from ...schedules import PolynomialDecay
from ...util.registry import trait
from ..options import Command, Option
from . import common

METHODS = ("dense", "gradual", *common.criteria("data"))


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune train`, which builds, trains and prunes a network, reports on it, and exports it.

    Args:
        values: the flags of the command, as attributes.
        arguments: none.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as the library raises them; what can be checked is checked
            before the training.
    """
    target = Path(values.export_dir, "model") if values.export_dir else None
    if target:
        _check_target(target, values)
    dataset = common.load_data(values, values.seed)
    with auto_strategy(values.strategy, importlib.import_module(values.library)).scope():
        network, accuracy = _train(values, dataset.divisible())
    with _kept(network, target):
        best = max(accuracy)
        print(f"\n{summary(network)}")
        print(f"\ntest accuracy: last {accuracy[-1]:.2%}, best {best:.2%} (epoch {accuracy.index(best) + 1})")
        if values.plot and is_chief():
            plot_sparsity(network, values.plot)
            print(f"figure: {values.plot}")
        if target:
            data = dataset.test if isinstance(dataset.test, tuple) else None
            written = export(network, target, data=data, overwrite=values.overwrite, verbose=0)
            if is_chief():
                print(f"exported and checked: {written}\n\n{written.card}")


def _check_target(target: Path, values: Any) -> None:
    """Check before training whether the export can be written, and raise the errors that it would raise later."""
    given = f"Received: export_dir={values.export_dir!r}"
    folder = target.parent
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--export_dir must be a folder, but {folder} is a file. {given}")
        if not values.overwrite:
            common.check_new(targets(target), given)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to {folder}: {error.strerror}. {given}") from error


@contextmanager
def _kept(network: Any, target: Path | None) -> Iterator[None]:
    """Save the trained network with its masks if anything fails in this context, and name the file in the error."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if target is None or not is_chief():
            raise
        for folder in (target.parent, Path(tempfile.gettempdir())):
            file = folder / f"trained-{os.getpid()}.keras"
            try:
                network.save(str(file))
            except OSError:
                continue
            reason = (str(error) or type(error).__name__).rstrip(".")
            raise RuntimeError(f"{reason}. The trained network was saved with its masks to {file}") from error
        raise


def _train(values: Any, dataset: Dataset) -> tuple[Any, list[float]]:
    """Train the network; return it and its test accuracy after each epoch."""
    network = common.new_network(values, dataset, values.seed, values.method != "dense", values.library)
    steps = common.count_steps(values, dataset)
    how = "dense" if values.method == "dense" else f"{values.method} to sparsity {values.sparsity:.6g}"
    images = f"{'x'.join(map(str, dataset.input_shape))}, {dataset.classes} classes"
    built = summary(network)
    size = built.size + built.other_size  # not `count_params`, which counts tfmot's masks
    print(f"{values.model} ({size:,} parameters) on {values.dataset} ({images}): {how}, {steps} steps")
    fitted = network.fit(
        **dataset.fit_kwargs(),
        epochs=values.epochs,
        callbacks=_callbacks(values, dataset, steps),
        verbose=1 if sys.stdout.isatty() else 2,  # a bar on a terminal, a line for each epoch in a file
    )
    return network, fitted.history["val_accuracy"]


def _callbacks(values: Any, dataset: Dataset, steps: int) -> list[Any]:
    if values.method == "dense":
        return []
    options: dict[str, Any] = {"scope": values.scope, "pattern": values.pattern, "seed": values.seed}
    pruning: Any
    if values.method == "gradual":
        end = max(1, 3 * steps // 4)
        schedule = PolynomialDecay(0.0, values.sparsity, begin_step=0, end_step=end, frequency=max(1, end // 50))
        pruning = GradualPruning(schedule, rounds=values.rounds or 1, **options)
    else:
        if "data" in trait(CRITERIA.get(values.method), "needs", ()):
            options.update(data=dataset.sample(seed=values.seed), batches=None)
        pruning = PruneAtInit(values.method, values.sparsity, rounds=values.rounds, **options)
    return [pruning, SparsityLogger(table=values.verbose)]


_WITH_DATA = ", ".join(sorted(set(METHODS[2:]) - set(common.criteria())))
_WITHOUT = ", ".join(common.criteria())

TRAIN = Command(
    "train",
    "Train a sparse network, report its sparsity, and export it.",
    "",
    "kprune train --model=vgg-11 --dataset=digits --method=synflow --sparsity=0.9 --export_dir=out",
    (
        Option("method", "synflow", "pruning method, described below", METHODS),
        Option("sparsity", 0.9, "fraction of weights to prune", float, common.SPARSITY),
        *common.training_options("conv-4", 1.0, 15, scope=None),
        common.PATTERN,
        common.LIBRARY,
        Option(
            "strategy",
            "auto",
            "devices: TPUs (tpu), GPUs (mirrored), workers (multiworker), or the first device (none)",
            STRATEGIES,
        ),
        Option(
            "seed",
            0,
            "seed for the initial weights, data order, random pruning and data sample",
            int,
            common.at_least(0),
        ),
        Option(
            "export_dir", None, "folder for the trained model, saved as a SavedModel and a .keras file [not exported]"
        ),
        Option("overwrite", False, "replace an existing model", bool),
        Option("plot", None, "file for a figure of each weight's sparsity: .png, .svg or .pdf", str, common.FIGURE),
        *common.LOGGING,
    ),
    "Methods:  dense      prune nothing\n          gradual    prune the smallest weights step by step during the first "
    "3/4 of the training steps\n          CRITERION  prune before training by one of these criteria:\n"
    f"          criteria that need no data: {_WITHOUT}\n"
    f"          criteria that use the loss on 10 training examples of each class: {_WITH_DATA}\n"
    f"{common.NETWORK_NOTES}",
    run,
)
