"""Write the SavedModel of a stripped model for inference only, with each variable stored once."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import keras
from absl import logging

from ..masks import is_tf_keras, library_of
from ..masks.below import all_layers
from ..report.saved_variables import write_paths
from ..report.summary import weight_paths
from ..runtime.distribution import to_numpy
from ..runtime.inputs import call_with
from .sample import Sample, signature, tensors


def write(model: Any, folder: Path, batch: Sample) -> None:
    """Write a SavedModel whose endpoints `serve` and "serving_default" compute `model(..., training=False)`.

    Args:
        model: a stripped model of either Keras.
        folder: where to; it must not exist.
        batch: what the model takes. A model that cannot be traced for a batch of any size is traced for the size of
            this one, and a warning says so.
    """
    try:
        archive = _traced(model, batch)
    except Exception as error:  # of any kind: whatever a layer raises while it is traced
        fixed = batch.with_fixed_batch()
        if fixed.specs == batch.specs:
            raise
        archive = _traced(model, fixed)
        size = len(fixed.arrays[0])
        logging.warning(
            "kprune: the model cannot be traced with a variable batch size, so the SavedModel accepts only batches "
            "of %d, the batch size of `inputs`. Cause: %s",
            size,
            str(error).strip().partition("\n")[0][:300],
        )
    with contextlib.redirect_stdout(io.StringIO()):  # where tf_keras lists the endpoints
        archive.write_out(str(folder))
    write_paths(folder, [(path, to_numpy(v)) for path, v in weight_paths(model)])


def written(model: Any, file: Path, batch: Sample) -> Path:
    """Return the path of the SavedModel that is converted to `file`; write the SavedModel if it does not exist."""
    stem = file.name.partition(".")[0]
    own, folder = file.with_name(stem), file.with_name(f"traced-{stem}")
    if own.is_dir():
        return own
    if not folder.is_dir():
        write(model, folder, batch)
    return folder


def load(folder: Path) -> Any:
    """Load the SavedModel with TensorFlow."""
    import tensorflow as tf

    return tf.saved_model.load(str(folder))


def constants(batch: Sample) -> dict[str, Any]:
    """Return the arguments of `serve` as TensorFlow constants."""
    import tensorflow as tf

    return {name: keras.tree.map_structure(tf.constant, value) for name, value in tensors(batch).items()}


def _traced(model: Any, batch: Sample) -> Any:
    """Trace the model, and return a Keras export archive with the traced function as its only endpoint."""
    library = library_of(model).package
    archive = library.export.ExportArchive()
    if library_of(model).backend() != "tensorflow":
        archive.track(model)
    else:
        # Not the model: Keras (checked with 3.13.2 and 3.15.1) would write each of its variables twice, once as its own
        # and once as TensorFlow's. Tables are no variables, and are not found otherwise.
        archive.add_variable_collection("variables", [v.value for v in model.variables])
        for resource in _resources(model):
            archive.track(resource)
    parameters, specs = signature(batch, _spec_kind(model))

    def serve(*args: Any, **kwargs: Any) -> Any:
        named = dict(zip(batch.arguments, parameters.bind(*args, **kwargs).args, strict=True))
        return call_with(model, named, training=False)

    serve.__signature__ = parameters  # type: ignore[attr-defined]
    # The gradient of an inference is asked for by nobody, and with sizes that are open it cannot always be traced.
    options = {"jax2tf_kwargs": {"with_gradient": False}} if library_of(model).backend() == "jax" else {}
    traced = archive.add_endpoint("serve", serve, specs, **options) or archive.serve  # tf_keras returns nothing
    traced.get_concrete_function()
    return archive


def _spec_kind(model: Any) -> Any:
    if not is_tf_keras(model):
        return keras.InputSpec
    import tensorflow as tf

    return tf.TensorSpec


def _resources(model: Any) -> list[Any]:
    from tensorflow.saved_model.experimental import TrackableResource

    found: dict[int, Any] = {}
    for layer in all_layers(model):
        for value in vars(layer).values():
            if isinstance(value, TrackableResource):
                found[id(value)] = value
    return list(found.values())
