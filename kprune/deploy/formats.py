"""The formats of `kprune.export`: how each file is named, written, and opened in its own runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..masks import is_tf_keras
from ..masks.keras3 import seed_states
from ..report.saved_variables import SavedVariables
from ..report.summary import weight_paths
from ..runtime.distribution import to_numpy
from ..runtime.inputs import call_with
from . import packed, saved_model
from .sample import Sample, arrays, predict

# A SavedModel runs as an optimized graph, so its float32 sums may be taken in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Opened:
    """An exported file in its own runtime.

    Attributes:
        run: a batch to the outputs.
        zeros: exact zeros in the tensors of rank 2 or more that the file holds.
        size: the entries of these tensors.
    """

    run: Callable[[Sample], list[np.ndarray]]
    zeros: int
    size: int


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        title: what messages call a file of it.
        suffix: what follows the name that the user gave.
        write: writes a stripped model to a path; the batch says what the model takes.
        open: opens what was written; the model says of which Keras it is.
        timed: whether it has a runtime of its own, whose latency means something.
        needs: the package that writes it, beside Keras.
    """

    title: str
    suffix: str
    write: Callable[[Any, Path, Sample], None]
    open: Callable[[Path, Any], Opened]
    timed: bool = True
    needs: str = "tensorflow"

    def check(self, name: str) -> None:
        """Raise ImportError, in one line, unless the package that it needs can be imported."""
        if not self.needs:
            return
        try:
            importlib.import_module(self.needs)
        except ImportError as error:
            raise ImportError(
                f"format={name!r} needs {self.needs} on every backend, and it is not installed: "
                f"pip install {self.needs}, or export format='keras' and convert that file on another machine "
                "(kprune export MODEL.keras --format=...)."
            ) from error


def count_zeros(values: list[np.ndarray]) -> tuple[int, int]:
    """Zeros and entries of the tensors of rank 2 or more."""
    tensors = [value for value in values if value.ndim > 1]
    return sum(int(np.count_nonzero(value == 0)) for value in tensors), sum(value.size for value in tensors)


def _open_saved_model(folder: Path, model: Any) -> Opened:
    loaded = saved_model.load(folder)
    variables = SavedVariables(folder)
    zeros, size = count_zeros([variables.value(path) for path in variables.shapes])
    return Opened(lambda batch: arrays(call_with(loaded.serve, saved_model.constants(batch))), zeros, size)


def _write_keras(model: Any, file: Path, batch: Sample) -> None:
    # The optimizer's slots are twice the weights, and of use to nobody who does not go on with this very training.
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        model.optimizer = None
    try:
        model.save(str(file))
    finally:
        if optimizer is not None:
            model.optimizer = optimizer


def _open_keras(file: Path, model: Any) -> Opened:
    library = importlib.import_module("tf_keras" if is_tf_keras(model) else "keras")
    loaded = library.models.load_model(str(file), compile=False)
    if not is_tf_keras(model):
        # A layer of the user's own may make its seed anew when it is loaded; to be compared, both draw from one.
        for mine, theirs in zip(seed_states(model), seed_states(loaded), strict=False):
            theirs.assign(mine)
    zeros, size = count_zeros([to_numpy(v) for _, v in weight_paths(loaded)])
    return Opened(lambda batch: predict(loaded, batch), zeros, size)


FORMATS: dict[str, Format] = {
    "saved_model": Format("the SavedModel", "", saved_model.write, _open_saved_model),
    "saved_model_packed": Format("the packed SavedModel", ".packed", packed.write, _open_saved_model),
    "keras": Format("the .keras file", ".keras", _write_keras, _open_keras, timed=False, needs=""),
}
"""The formats by name."""
