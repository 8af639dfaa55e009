"""`kprune export`: export a saved model for deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ... import data
from ...data import own
from ...deploy.export import export, targets
from ...deploy.formats import FORMATS
from ...report.saved import load
from ...runtime.distribution import is_chief
from ..options import Command, Option
from . import common

EXAMPLES = 128


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune export`, which converts a `.keras` file to other formats and prints the card.

    Args:
        values: the flags of the command, as attributes.
        arguments: the model's path.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: as `kprune.export` raises them.
    """
    out = Path(values.out) if values.out else Path(arguments[0]).with_suffix("")
    if not values.overwrite:
        common.check_new(targets(out, values.format), f"Received: out={str(out)!r}")
    dataset = None if values.dataset is None else data.load(values.dataset, target=values.target)
    representative = _representative(values, dataset)
    done = export(
        load(arguments[0]),
        out,
        values.format,
        data=None if dataset is None else dataset.test,
        representative=representative,
        shrink=values.shrink,
        overwrite=values.overwrite,
        verbose=0,
    )
    if is_chief():
        print(f"exported and checked: {done}\n\n{done.card}")


def _representative(values: Any, dataset: data.Dataset | None) -> np.ndarray | None:
    """Return examples for the formats that need them, from the file or from the start of the dataset."""
    quantized = [name for name in values.format if FORMATS[name].quantized]
    if values.representative is not None:
        if not quantized:
            raise ValueError(
                "--representative applies only to --format=litert_int8. Received: "
                f"representative={values.representative!r}, format={','.join(values.format)!r}"
            )
        return own.examples(values.representative)
    if quantized and dataset is None:
        raise ValueError(
            f"--format={quantized[0]} needs example inputs to set its quantization ranges: add "
            "--representative with an .npy or .npz file of about 100 examples, or add --dataset. "
            "Received: representative=None, dataset=None"
        )
    return dataset.train[0][:EXAMPLES] if quantized and dataset is not None else None  # type: ignore[index]


EXPORT = Command(
    "export",
    "Export a saved model for deployment, check the files, and compare them with the dense model.",
    "MODEL",
    "kprune export out/model.keras --format=saved_model,saved_model_packed --out=served/model",
    (
        Option("format", "saved_model", "one or more of the formats below", list, common.each(FORMATS)),
        Option(
            "out", None, "folder for the SavedModel; other formats add an extension to its name [MODEL without .keras]"
        ),
        Option(
            "dataset",
            None,
            "data for testing each file's accuracy and for setting the quantization ranges of litert_int8",
            str,
            common.ARRAYS,
            "DATA",
        ),
        Option("target", None, "for a .csv file: the column that contains the classes", str, word="COLUMN"),
        Option(
            "representative",
            None,
            ".npy or .npz file with about 100 inputs for setting the quantization ranges of litert_int8",
            word="NPY",
        ),
        Option("shrink", False, "first remove the channels whose weights are all 0", bool),
        Option("overwrite", False, "replace existing files", bool),
        *common.LOGGING,
    ),
    f"Formats: {', '.join(FORMATS)}.\n"
    "DATA is the name of a dataset, an .npz file or a .csv file, as for kprune train.\n"
    "MODEL is a .keras file saved by Keras 3 or tf_keras; the model may be masked or plain. A model saved on a\n"
    "TPU runtime without TensorFlow can be exported on any machine that has TensorFlow.",
    run,
)
