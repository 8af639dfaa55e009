"""`kprune export`: export a saved model for deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...deploy.export import export, targets
from ...deploy.formats import FORMATS
from ...report.saved import load
from ...runtime.distribution import is_chief
from ..options import Command, Option
from . import common


def run(values: Any, arguments: list[str]) -> None:
    """`kprune export`: a `.keras` file in other formats, with the card.

    Args:
        values: the flags of the command, as attributes.
        arguments: the model's path.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as `kprune.export` raises them.
    """
    out = Path(values.out) if values.out else Path(arguments[0]).with_suffix("")
    existing = [] if values.overwrite else [str(file) for file in targets(out, values.format) if file.exists()]
    if existing:
        raise ValueError(f"Already exists: {', '.join(existing)}; add --overwrite. Received: out={str(out)!r}")
    done = export(load(arguments[0]), out, values.format, shrink=values.shrink, overwrite=values.overwrite, verbose=0)
    if is_chief():
        print(f"exported and checked: {done}\n\n{done.card}")


# Representative examples come from Python alone.
_FROM_SHELL = {name: form for name, form in FORMATS.items() if not form.quantized}

EXPORT = Command(
    "export",
    "Export a saved model for deployment, check it, and report what is gained.",
    "MODEL",
    "kprune export out/model.keras --format=saved_model,saved_model_packed --out=served/model",
    (
        Option("format", "saved_model", "one or more of the formats below", list, common.each(_FROM_SHELL)),
        Option("out", None, "the SavedModel's folder; other files add an extension [MODEL without .keras]"),
        Option("shrink", False, "first remove the channels that zeros have killed", bool),
        Option("overwrite", False, "replace existing files", bool),
        *common.LOGGING,
    ),
    f"Formats: {', '.join(_FROM_SHELL)}.\n"
    "MODEL is a .keras file of Keras 3 or tf_keras, masked or plain. Save it on a TPU runtime without TensorFlow,\n"
    "export it on any machine with TensorFlow.",
    run,
)
