"""`kprune sensitivity`: find out which weights of a saved model can be pruned."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from ...data import Dataset
from ...experiments.sensitivity import Sensitivity, sensitivity
from ...masks import library_of, mask
from ...report.saved import load
from ...util.whole import write_whole
from ..options import Command, Option
from . import common


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune sensitivity`, which scans a saved model on the test part of a dataset.

    Args:
        values: the flags of the command, as attributes.
        arguments: the model's path.

    Raises:
        ValueError, OSError, ImportError: the path holds no model, or one that does not fit the dataset.
    """
    model = load(arguments[0])
    dataset = common.load_data(values, values.seed)
    _check_shapes(model, dataset, arguments[0])
    model = mask(model).model
    common.compile_for_classes(model, library_of(model).package)

    def accuracy(model: Any) -> float:
        return model.evaluate(**dataset.evaluate_kwargs(), verbose=0, return_dict=True)["accuracy"]

    sparsities = [float(word) for word in values.sparsities]
    report = sensitivity(model, accuracy, sparsities, criterion=values.criterion, seed=values.seed)
    if values.plot:
        report.plot(values.plot)
    if values.csv:
        _write(report, values.csv)
    if values.json:
        print(json.dumps({"model": arguments[0], "dataset": values.dataset, **report.to_dict()}, indent=2))
        return
    print(report)
    for what, file in (("figure", values.plot), ("table", values.csv)):
        if file:
            print(f"{what}: {file}")


def _check_shapes(model: Any, dataset: Dataset, path: str) -> None:
    images, logits = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not isinstance(images, tuple) or not isinstance(logits, tuple):
        return  # a subclassed model has no shapes of its own; Keras says then what does not fit
    takes, has = (*images[1:], logits[-1]), (*dataset.input_shape, dataset.classes)
    if len(takes) != len(has) or any(a not in (None, b) for a, b in zip(takes, has, strict=True)):
        raise ValueError(
            f"The model expects images of shape {takes[:-1]} and predicts {takes[-1]} classes, but {dataset.name} has "
            f"images of shape {has[:-1]} and {has[-1]} classes: pass the --dataset that the model was trained on. "
            f"Received: model={path!r}"
        )


def _write(report: Sensitivity, path: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["weight", "size", *report.sparsities])
    writer.writerows([row.path, row.size, *row.values.values()] for row in report.rows)
    write_whole(path, text.getvalue().encode())


SENSITIVITY = Command(
    "sensitivity",
    "Prune each weight of a saved model in turn, and measure how much accuracy is lost.",
    "MODEL",
    "kprune sensitivity out/model.keras --dataset=digits --plot=out/sensitivity.png",
    (
        *common.DATA,
        Option("sparsities", "0.5,0.8,0.9,0.95,0.99", "sparsities to prune each weight to", list, common.SPARSITIES),
        Option("criterion", "magnitude", "criterion to prune by, listed below", common.criteria()),
        Option("seed", 0, "seed for the random criterion", int, common.at_least(0)),
        Option("json", False, "print JSON instead of the table", bool),
        Option("csv", None, "file for the table in CSV format"),
        Option("plot", None, "file for a heat map: .png, .svg or .pdf", str, common.FIGURE),
        *common.LOGGING,
    ),
    "MODEL is a .keras file (of Keras 3 or tf_keras, masked or plain) that was trained on the dataset.\n"
    f"Criteria: {', '.join(common.criteria())}\n{common.DATA_NOTES}",
    run,
)
