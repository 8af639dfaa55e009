"""Load or report on a `.keras` file of Keras 3 or tf_keras, or report on a SavedModel folder."""

from __future__ import annotations

import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..masks import DEFAULT_WEIGHTS
from ..masks.below import all_layers
from ..util.tables import printable
from .keras_file import Description, describe
from .saved_variables import SavedVariables
from .summary import Row, Summary, summary
from .tf_keras_rounds import rounds_that_end
from .trusted import check_config
from .variable_budget import variables_within

# Variables that no file holds: the states of stateful layers, counters.
_BESIDE = 2**24


def read(path: str | os.PathLike[str]) -> Summary:
    """Report the sparsity of a saved model without running anything in it, so that untrusted files are safe.

    Args:
        path: a `.keras` file of Keras 3 or tf_keras, masked or plain, or the folder of any SavedModel.

    Returns:
        `kprune.summary` of the model. Of a SavedModel, which knows variables but no layers: one row per variable of
        rank 2 or more that is called a kernel (or, if none is, per variable of rank 2 or more); layers and
        multiply-adds are not known. What `kprune.export` wrote has the weights' paths in the model.

    Raises:
        OSError: there is nothing at `path`, or it cannot be read.
        ImportError: the library that made it is not installed.
        ValueError: it is something else, it is damaged, it holds more than a model needs, or a name in it is not that
            of a part of a model that is known here.

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
        try:
            return _of_saved_model(Path(path))
        except ImportError:
            raise
        except Exception as error:  # of any kind: what TensorFlow raises on a checkpoint that it does not understand
            raise ValueError(_refusal("SavedModel cannot be read", error, path)) from error
    model = load(path)
    try:
        return summary(model)
    except Exception as error:  # of any kind: a model may load and yet be none, as one that is not built
        raise ValueError(_refusal(".keras file cannot be summarized", error, path)) from error


def load(path: str | os.PathLike[str]) -> Any:
    """Load the model in a `.keras` file, masks included, without compiling it.

    Args:
        path: a `.keras` file of Keras 3 or tf_keras, masked or plain.

    Returns:
        A `keras.Model` or a `tf_keras.Model`, as it was saved.

    Raises:
        OSError: there is nothing at `path`, or it cannot be read.
        ImportError: the Keras that made it is not installed.
        ValueError: it is something else (a SavedModel's folder holds no layers to load), it is damaged, it holds more
            than a model needs, or a name in it is not that of a part of a model that is known here. Layers of your own
            are known once they are registered by `register_keras_serializable`; a Lambda layer never is.

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
        raise OSError(f"No such file or folder: {str(path)!r}")
    if (file / "saved_model.pb").is_file():
        raise ValueError(
            "A SavedModel contains variables, not layers, so no model can be loaded from it: load the .keras file "
            f"that `kprune.export` wrote beside it. Received: path={os.fspath(path)!r}"
        )
    if file.suffix != ".keras" or not file.is_file():  # by other endings, Keras reads other formats
        raise ValueError(
            "The path must be a .keras file or, for a report, a SavedModel folder, which contains saved_model.pb. "
            f"Received: path={os.fspath(path)!r}"
        )
    try:
        about = describe(file)
    except ValueError as error:
        raise ValueError(_refusal(".keras file cannot be loaded", error, path)) from error
    try:
        with warnings.catch_warnings(record=True) as caught:  # of a file that is refused, the refusal is enough
            model = _load_checked(os.path.abspath(file), about)
    except ImportError:
        raise
    except Exception as error:  # of any kind: what Keras raises on a file that it does not understand
        raise ValueError(_refusal(".keras file cannot be loaded", error, path)) from error
    for one in caught:
        warnings.warn_explicit(printable(str(one.message)), one.category, one.filename, one.lineno)
    return model


def _load_checked(file: str, about: Description) -> Any:
    limit = _BESIDE + about.array_bytes
    if about.version.startswith("3."):
        import keras

        check_config(about.config, keras)
        with variables_within(limit, keras):
            model = keras.models.load_model(file, compile=False, safe_mode=True)
        return _check_masks(_check_model(model, keras.Model))
    import tensorflow_model_optimization as tfmot
    import tf_keras

    with tfmot.sparsity.keras.prune_scope():  # where tfmot's wrappers are known by their names
        check_config(about.config, tf_keras)
        with variables_within(limit, tf_keras), rounds_that_end():
            model = tf_keras.models.load_model(file, compile=False, safe_mode=True)
        return _check_model(model, tf_keras.Model)


def _check_model(model: Any, kind: type) -> Any:
    if not isinstance(model, kind):
        raise ValueError(f"it contains a {type(model).__name__}, not a model")
    return model


def _check_masks(model: Any) -> Any:
    """Raise ValueError if masks could not be applied because their layer has the wrong number of weights."""
    for layer in all_layers(model):
        if "_pending_masks" in vars(layer):
            expected = vars(layer)["_pending_masks"].expected
            raise ValueError(
                f"the masks of layer {layer.name!r} are for a layer with {expected:,} weights, but this layer has "
                f"{len(layer.weights)}"
            )
    return model


def _refusal(what: str, error: Exception, path: str | os.PathLike[str]) -> str:
    """Return the error in one line, without the config that Keras repeats in its messages."""
    words = re.sub(r"\x1b\[[01]m", "", str(error))  # which Keras puts around some of its messages
    words = printable(" ".join(words.split())) or type(error).__name__
    words = re.split(r"\.? (?:Full object config|config=|Exception encountered)", words)[0].rstrip(".")
    words = words if len(words) <= 500 else f"{words[:500]} ..."
    return f"This {what}: {words}. Received: path={os.fspath(path)!r}"


def _of_saved_model(folder: Path) -> Summary:
    variables = SavedVariables(folder)
    tensors = [path for path, shape in variables.shapes.items() if len(shape) > 1]
    kernels = [path for path in tensors if re.sub(r"_\d+$", "", path.split("/")[-1]) in DEFAULT_WEIGHTS]
    chosen = dict.fromkeys(kernels or tensors)
    other = sum(math.prod(shape) for path, shape in variables.shapes.items() if path not in chosen)
    rows = tuple(_row(path, variables.value(path)) for path in chosen)
    return Summary(rows, False, other, None, "a SavedModel contains variables, not layers")


def _row(path: str, value: np.ndarray) -> Row:
    kept = value != 0
    dead = int(np.count_nonzero(~kept.any(axis=tuple(range(kept.ndim - 1)))))
    return Row(path, "?", tuple(kept.shape), kept.size, int(np.count_nonzero(~kept)), None, None, dead)
