"""`kprune advise`: estimate how much pruning saves on each target, before a network is trained."""

from __future__ import annotations

import json
from typing import Any

from ...masks import library_of, mask, masked_weights
from ...report.saved import load
from ...targets import TARGETS, advise
from ..options import Command, Option
from . import common


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune advise`, which prints one paragraph for each target.

    Args:
        values: the flags of the command, as attributes.
        arguments: the model's path.

    Raises:
        ValueError, OSError, ImportError: the path holds no model, or one that cannot be loaded.
    """
    model = load(arguments[0])
    if not library_of(model).IN_PLACE and not masked_weights(model):
        model = mask(model).model
    found = [advise(model, target, sparsity=values.sparsity) for target in values.target or TARGETS]
    if values.json:
        print(json.dumps({"model": arguments[0], "advice": [one.to_dict() for one in found]}, indent=2))
    else:
        print("\n\n".join(map(str, found)))


ADVISE = Command(
    "advise",
    "Estimate how much size and computation pruning saves on each target, and recommend a pattern for each.",
    "MODEL",
    "kprune advise model.keras --target=litert-cpu",
    (
        Option("target", None, f"one or more of {', '.join(TARGETS)} [all]", list, common.each(TARGETS)),
        Option("sparsity", 0.9, "fraction of weights to prune", float, common.SPARSITY),
        Option("json", False, "print JSON instead of text", bool),
        *common.LOGGING,
    ),
    "MODEL is a .keras file saved by Keras 3 or tf_keras; the model may be trained or not.\n"
    "The estimate does not run the model. To measure the savings, use kprune export.",
    run,
)
