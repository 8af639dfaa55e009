"""Saved models: a `.keras` file of either Keras, loaded or reported; of a SavedModel's folder, the report."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..masks import DEFAULT_WEIGHTS, unique_paths
from .keras_file import describe
from .summary import Row, Summary, summary
from .trusted import check_config


def read(path: str | os.PathLike[str]) -> Summary:
    """Load a saved model and say what is left of it; nothing in it is run or changed.

    Args:
        path: a `.keras` file of Keras 3 or tf_keras, masked or plain, or the folder of any SavedModel.

    Returns:
        `kprune.summary` of the model. Of a SavedModel, which knows variables but no layers: one row per variable of
        rank 2 or more that is called a kernel (or, if none is, per variable of rank 2 or more); layers and
        multiply-adds are not known.

    Raises:
        OSError: there is nothing at `path`, or it cannot be read.
        ValueError: it is something else, or a layer in it is not known here.

    >>> import keras, kprune, tempfile
    >>> from kprune.report.saved import read
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.keras")
    ...     read(f"{folder}/model.keras").zeros
    6
    """
    if (Path(path) / "saved_model.pb").is_file():
        return _of_saved_model(Path(path))
    return summary(load(path))


def load(path: str | os.PathLike[str]) -> Any:
    """The model in a `.keras` file, masks included, not compiled.

    Args:
        path: a `.keras` file of Keras 3 or tf_keras, masked or plain.

    Returns:
        A `keras.Model` or a `tf_keras.Model`, as it was saved.

    Raises:
        OSError: there is nothing at `path`, or it cannot be read.
        ValueError: it is something else (a SavedModel's folder holds no layers to load), or a layer in it is not
            known here.

    >>> import keras, kprune, tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.keras")
    ...     kprune.summary(load(f"{folder}/model.keras")).zeros
    6
    """
    file = Path(path)
    if not file.exists():
        raise OSError(f"There is no file or folder {str(path)!r}.")
    if (file / "saved_model.pb").is_file():
        raise ValueError(
            f"A SavedModel holds variables, not layers: load the .keras file that `kprune.export` wrote beside it. "
            f"Received: path={os.fspath(path)!r}"
        )
    if file.suffix != ".keras" or not file.is_file():  # by other endings, Keras reads other formats
        raise ValueError(
            f"Expected a .keras file (or a SavedModel, a folder that holds saved_model.pb, to report on). "
            f"Received: path={os.fspath(path)!r}"
        )
    try:
        version, config = describe(file)
        return _load_checked(os.path.abspath(file), version, config)
    except ImportError:
        raise
    except Exception as error:  # of any kind: what Keras raises on a file that it does not understand
        raise ValueError(
            f"This .keras file cannot be loaded: {_short(error)}. Received: path={os.fspath(path)!r}"
        ) from error


def _load_checked(file: str, version: str, config: dict[str, Any]) -> Any:
    if version.startswith("3."):
        import keras

        check_config(config, keras)
        return keras.models.load_model(file, compile=False, safe_mode=True)
    import tensorflow_model_optimization as tfmot
    import tf_keras

    with tfmot.sparsity.keras.prune_scope():  # where tfmot's wrappers are known by their names
        check_config(config, tf_keras)
        return tf_keras.models.load_model(file, compile=False, safe_mode=True)


def _short(error: Exception) -> str:
    """The error in one line, without the whole config that Keras repeats in its own."""
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.split(r"\.? (?:Full object config|config=|Exception encountered)", words)[0].rstrip(".")
    return words if len(words) <= 500 else f"{words[:500]} ..."


def _of_saved_model(folder: Path) -> Summary:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    # Keras lists the variables under this name; any other SavedModel has those that its functions use.
    found = list(getattr(loaded, "variables", ())) or [v for f in loaded.signatures.values() for v in f.variables]
    variables = list({id(v): v for v in found}.values())
    named = dict(zip(unique_paths([v.name.partition(":")[0] for v in variables]), variables, strict=True))
    tensors = {path: v for path, v in named.items() if len(v.shape) > 1}
    kernels = {path: v for path, v in tensors.items() if v.name.partition(":")[0].split("/")[-1] in DEFAULT_WEIGHTS}
    chosen = kernels or tensors
    other = sum(int(np.prod(v.shape)) for path, v in named.items() if path not in chosen)
    rows = tuple(_row(path, v.numpy()) for path, v in chosen.items())
    return Summary(rows, False, other, None, "a SavedModel holds variables, not layers")


def _row(path: str, value: np.ndarray) -> Row:
    kept = value != 0
    dead = int(np.count_nonzero(~kept.any(axis=tuple(range(kept.ndim - 1)))))
    return Row(path, "?", tuple(kept.shape), kept.size, int(np.count_nonzero(~kept)), None, None, dead)
