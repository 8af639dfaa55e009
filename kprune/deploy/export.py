"""Export: a plain SavedModel and .keras file, checked against the masked model before they are called done."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ..masks import is_tf_keras, masked_weights, plain
from ..report.saved_variables import write_paths
from ..report.summary import weight_paths
from ..runtime.distribution import is_chief, to_numpy
from ..runtime.inputs import call_with, input_like
from ..runtime.temporary import temporary_beside
from ..util.checks import check_path

# A SavedModel runs as an optimized graph, so its float32 sums may be taken in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Export:
    """What `kprune.export` wrote.

    Attributes:
        saved_model: the SavedModel's folder.
        keras_file: the `.keras` file beside it.
        saved_model_bytes, keras_bytes: their sizes in bytes.
        zipped_bytes: the SavedModel's size as a zip archive: zeros compress, so this is what a download costs.
        difference: largest |reloaded SavedModel - model|, relative to the largest |output|.
    """

    saved_model: pathlib.Path
    keras_file: pathlib.Path
    saved_model_bytes: int
    keras_bytes: int
    zipped_bytes: int
    difference: float

    def __str__(self) -> str:
        return (
            f"SavedModel {self.saved_model} ({self.saved_model_bytes:,} bytes, {self.zipped_bytes:,} zipped), "
            f"{self.keras_file} ({self.keras_bytes:,} bytes); reloaded, largest relative difference "
            f"{self.difference:.1e}"
        )


def export(model: Any, path: str | os.PathLike[str], *, inputs: Any = None, overwrite: bool = False) -> Export:
    """Write the stripped model as a SavedModel `path/` and as `path.keras`, reload both, check that they agree.

    Both are loadable without kprune. The model itself stays as it is, masks included. Files appear under their names
    only once they have been checked; if anything fails, what was there stays. Of several processes that train together
    all call this; the chief's files stay.

    Args:
        model: a model of either Keras, masked or not.
        path: the SavedModel's folder; the `.keras` file gets the same name with that ending.
        inputs: inputs to compare the predictions on, as the model takes them; by default two random normal examples.
        overwrite: replace what is there.

    Returns:
        `Export`: where, how large, and how well the reloaded SavedModel agrees.

    Raises:
        ValueError: `path` is no path, or exists and `overwrite` is False, or the model's input shape is not known or
            not fixed and no `inputs` are given.
        OSError: the files cannot be written (no space left ...).
        RuntimeError: a reloaded file predicts something else.
        ImportError: no TensorFlow; a SavedModel needs it on every backend.

    >>> import keras, kprune, tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kprune.export(model, f"{folder}/sparse").keras_file.name
    'sparse.keras'
    """
    masked_weights(model)  # raises for what is no model
    check_path("path", path)
    with contextlib.ExitStack() as stack:
        target = pathlib.Path(path)
        if not is_chief():
            target = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), target.name)
        return _export(model, target, inputs, overwrite)


def _export(model: Any, target: pathlib.Path, inputs: Any, overwrite: bool) -> Export:
    keras_target = target.with_name(f"{target.name}.keras")
    for existing in (target, keras_target):
        if existing.exists() and not overwrite:
            raise ValueError(f"{existing} exists; pass overwrite=True to replace it. Received: path={str(target)!r}")
    arguments = {"": inputs} if inputs is not None else input_like(model, _random(), batch=2)
    expected = _arrays(call_with(model, arguments, training=False))
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = temporary_beside(target).name
    with _os_errors(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
        saved, keras_file = pathlib.Path(folder, "saved_model"), pathlib.Path(folder, "model.keras")
        with plain(model) as stripped:
            _check("the stripped model", _arrays(call_with(stripped, arguments, training=False)), expected, 0.0)
            with contextlib.redirect_stdout(
                io.StringIO()
            ):  # where tf_keras lists the endpoints, as Keras 3 does by default
                stripped.export(str(saved))
            write_paths(saved, [(path, to_numpy(v)) for path, v in weight_paths(stripped)])
            stripped.save(str(keras_file))
        difference = _check("the SavedModel", _served(saved, arguments), expected, TOLERANCE)
        loaded = _load(model, keras_file)
        _check("the .keras file", _arrays(call_with(loaded, arguments, training=False)), expected, TOLERANCE)
        zipped = _zipped_bytes(saved, pathlib.Path(folder, "saved_model.zip"))
        _move({saved: target, keras_file: keras_target})
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Export(target, keras_target, size, keras_target.stat().st_size, zipped, difference)


@contextlib.contextmanager
def _os_errors(target: pathlib.Path) -> Iterator[None]:
    """Inside, whatever a library raises because a file cannot be written is an OSError that names `target`."""
    import tensorflow as tf

    numbers = {
        tf.errors.ResourceExhaustedError: errno.ENOSPC,
        tf.errors.OutOfRangeError: errno.EFBIG,
        tf.errors.PermissionDeniedError: errno.EACCES,
    }
    try:
        yield
    except (OSError, *numbers) as error:
        number = numbers.get(type(error)) or getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        raise OSError(number or errno.EIO, f"The export was not written: {reason}", str(target)) from error


def _move(goals: dict[pathlib.Path, pathlib.Path]) -> None:
    """Rename each source to its goal; if one cannot be, what was at the goals is there again."""
    moved: list[tuple[pathlib.Path, pathlib.Path]] = []
    try:
        for source, goal in goals.items():
            for old, new in ((goal, source.with_name(f"old-{source.name}")), (source, goal)):
                if old.exists():
                    old.replace(new)
                    moved.append((old, new))
    except BaseException:
        for old, new in reversed(moved):
            new.replace(old)
        raise


def _random() -> Any:
    rng = np.random.default_rng(0)

    def make(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return rng.normal(size=shape).astype("float32") if "float" in dtype else np.zeros(shape, dtype)

    return make


def _served(folder: pathlib.Path, arguments: dict[str, Any]) -> list[np.ndarray]:
    import tensorflow as tf

    tensors = {name: tf.nest.map_structure(tf.constant, value) for name, value in arguments.items()}
    loaded = tf.saved_model.load(str(folder))  # owns the variables, so it must outlive the call
    return _arrays(call_with(loaded.serve, tensors))


def _load(model: Any, file: pathlib.Path) -> Any:
    library = importlib.import_module("tf_keras" if is_tf_keras(model) else "keras")
    return library.models.load_model(str(file), compile=False)


def _arrays(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def _check(what: str, actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> float:
    """The largest difference relative to the largest output; RuntimeError if it is above the tolerance."""
    scale = max([float(np.abs(e).max()) for e in expected if e.size], default=0.0) or 1.0
    worst = max(float(np.abs(a.astype(np.float64) - e).max()) for a, e in zip(actual, expected, strict=True)) / scale
    if not worst <= tolerance:
        raise RuntimeError(
            f"Export: {what} does not predict what the masked model predicts, so nothing was written. "
            f"Received: relative difference={worst:.3g}, tolerance={tolerance}"
        )
    return worst


def _zipped_bytes(folder: pathlib.Path, archive: pathlib.Path) -> int:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(folder.rglob("*")):
            zipped.write(file, file.relative_to(folder))
    return archive.stat().st_size
