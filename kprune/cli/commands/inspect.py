"""`kprune inspect`: report the sparsity of a saved model."""

from __future__ import annotations

import json
from typing import Any

from ...report.plot import plot_sparsity
from ...report.saved import read
from ..options import Command, Option
from . import common


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune inspect`, which prints the report on a saved model.

    Args:
        values: the flags of the command, as attributes.
        arguments: the model's path.

    Raises:
        ValueError, OSError, ImportError: the path holds no model, or one that cannot be loaded.
    """
    report = read(arguments[0])
    if values.plot:
        plot_sparsity(report, values.plot)
    if values.json:
        print(json.dumps({"model": arguments[0], **report.to_dict()}, indent=2))
    else:
        print(report)
        if values.plot:
            print(f"figure: {values.plot}")


INSPECT = Command(
    "inspect",
    "Show the sparsity of each weight in a saved model.",
    "MODEL",
    "kprune inspect out/model.keras",
    (
        Option("json", False, "print JSON instead of the table", bool),
        Option("plot", None, "file for a figure: .png, .svg or .pdf", str, common.FIGURE),
        *common.LOGGING,
    ),
    "MODEL is a .keras file (of Keras 3 or tf_keras, masked or plain) or a SavedModel's folder.",
    run,
)
