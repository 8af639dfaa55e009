"""`kprune search`: find the sparsest network that is nearly as good as the dense one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from ...deploy.export import export
from ...experiments.search import search
from ..options import Command, Option
from . import common

# With the search's own, all flags that decide the outcome of a training.
_SETTINGS = ("width", "data_dir", "image_size", "target", "batch_size", "epochs", "optimizer", "decay", "library")


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune search`, which writes a CSV file, a figure, a table and the network found.

    Args:
        values: the flags of the command, as attributes.
        arguments: the model.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as the library raises them; what can be checked is checked
            before the training.
    """
    [model] = arguments
    known, says = common.MODEL
    if not known(model):
        wrong = says(model)
        raise ValueError(f"MODEL {wrong}{'' if wrong.endswith('?') else '.'} Received: model={model!r}")
    if not values.low < values.high:
        raise ValueError(f"--low must be below --high. Received: low={values.low}, high={values.high}")
    dataset = common.load_data(values, seed=0)
    folder = Path(values.out_dir)

    def build(seed: int) -> Any:
        return common.new_network(values, dataset, seed, True, values.library, model=model)

    def train(network: Any, trial: Any) -> None:
        network.fit(**dataset.fit_kwargs(), epochs=values.epochs, callbacks=trial.callbacks, verbose=0)

    def accuracy(network: Any) -> float:
        return network.evaluate(**dataset.evaluate_kwargs(), verbose=0, return_dict=True)["accuracy"]

    report = search(
        build(0) if model.endswith(".keras") else build,
        train,
        accuracy,
        within=values.within,
        low=values.low,
        high=values.high,
        steps=values.steps,
        seeds=range(values.seeds),
        criterion=values.criterion,
        scope=values.scope,
        pattern=values.pattern,
        rounds=values.rounds,
        data=dataset.sample() if values.criterion not in common.criteria("training") else None,
        batches=None,
        folder=folder,
        settings={
            "model": model,
            "dataset": dataset.name,
            **{name: getattr(values, name) for name in _SETTINGS},
            "learning_rate": common.learning_rate(values),
            "backend": keras.backend.backend(),
        },
    )
    figure = values.plot or folder / "search.png"
    report.plot(figure)
    print(f"{report}\ntable: {folder / 'search.csv'}\nfigure: {figure}")
    if report.model is not None:
        print(f"model: {export(report.model, folder / 'sparsest', 'keras', overwrite=True, verbose=0)}")


_CRITERIA = common.criteria("data", "training")


def _training_options() -> tuple[Option, ...]:
    return tuple(option for option in common.training_options("", 1.0, 15, scope=None) if option.name != "model")


SEARCH = Command(
    "search",
    "Find the sparsest network that is nearly as accurate as the dense one.",
    "MODEL",
    "kprune search lenet-300-100 --dataset=digits --within=0.01 --out_dir=out",
    (
        Option(
            "within", 0.01, "largest accuracy loss to accept (0.01 is one percentage point)", float, common.SPARSITY
        ),
        Option("low", 0.5, "lowest sparsity to try", float, common.FRACTION),
        Option("high", 0.99, "highest sparsity to try", float, common.FRACTION),
        Option("steps", 6, "number of sparsities to try between --low and --high", int, common.at_least(0)),
        Option("seeds", 3, "number of training runs per sparsity, with seeds 0, 1, ...", int, common.at_least(1)),
        Option("criterion", "magnitude", "criterion to prune by, listed below", _CRITERIA),
        *_training_options(),
        common.PATTERN,
        common.LIBRARY,
        Option("out_dir", "out", "folder for search.csv (a later run resumes from it) and sparsest.keras"),
        Option("plot", None, "file for the figure [OUT_DIR/search.png]", str, common.FIGURE),
        *common.LOGGING,
    ),
    "Each training run starts from scratch, prunes gradually during the first 70% of its steps, and ends with a test.\n"
    "The network found and the dense network are then trained and tested again with fresh seeds. The report says\n"
    "where accuracy rises with sparsity.\n"
    f"Criteria: {', '.join(_CRITERIA)}\n"
    f"{common.NETWORK_NOTES.replace('Models:  ', 'MODEL:   ', 1)}",
    run,
)
