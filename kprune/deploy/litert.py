"""Write LiteRT files (plain, sparse or 8-bit) by converting the SavedModel with TensorFlow, and run them."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..masks import library_of
from ..masks.types import is_a
from . import saved_model
from .sample import Sample, in_order, named

SIGNATURE = "serving_default"


def write(model: Any, file: Path, batch: Sample) -> None:
    """Write a file with dense float kernels, and with unrolled recurrent layers where necessary and possible."""
    _convert(model, file, batch, [])


def write_sparse(model: Any, file: Path, batch: Sample) -> None:
    """Write a file that stores only nonzero values and their positions wherever LiteRT has sparse kernels.

    The converter decides for each kernel: it takes blocks of 4 along the inputs of a Dense layer where the zeros have
    that form, single values otherwise, and leaves a kernel as it is that is not sparse enough.
    """
    import tensorflow as tf

    _convert(model, file, batch, [tf.lite.Optimize.EXPERIMENTAL_SPARSITY])


def write_int8(model: Any, file: Path, batch: Sample) -> None:
    """Write a file that computes in 8-bit integers, calibrated on `batch.representative`; inputs stay floats.

    Kernels are symmetric, each output channel by its own scale, so a zero is the integer 0.
    """
    import tensorflow as tf

    _convert(model, file, batch, [tf.lite.Optimize.DEFAULT])


def _convert(model: Any, file: Path, batch: Sample, optimizations: list[Any]) -> None:
    import tensorflow as tf

    # From the SavedModel: `from_concrete_functions` has been seen to write a file without weights, in silence.
    folder = _source(model, file, batch)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[SIGNATURE])
    converter.optimizations = optimizations
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if tf.lite.Optimize.DEFAULT in optimizations:
        names = list(saved_model.load(folder).signatures[SIGNATURE].structured_input_signature[1])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

        def examples() -> Iterator[dict[str, np.ndarray]]:
            for one in batch.representative.each():  # type: ignore[union-attr]
                yield named(one, names)

        converter.representative_dataset = examples
    try:
        with _quiet():
            data = converter.convert()
    except Exception as error:  # the converter's own, whose class is not public
        raise RuntimeError(
            "LiteRT's converter cannot convert this model, so nothing was written."
            f"{_LOOPS if 'TensorList' in str(error) else ''} Cause: {' '.join(str(error).split())[:500]}"
        ) from error
    file.write_bytes(data)


_LOOPS = (
    " LiteRT cannot loop over time steps when the batch size is unknown: fix the number of steps with "
    "keras.Input((steps, features)), so that recurrent layers of Keras 3 are unrolled, or fix the batch size with "
    "keras.Input(batch_shape=...)."
)


def _source(model: Any, file: Path, batch: Sample) -> Path:
    """Return the SavedModel to convert, with recurrent layers unrolled where necessary and possible."""
    shapes = [spec.shape for spec in keras.tree.flatten(list(batch.specs.values()))]
    open_batch = any(shape[0] is None for shape in shapes) and not any(None in shape[1:] for shape in shapes)
    loops = [layer for layer in library_of(model).all_layers(model) if is_a(layer, "RNN") and not layer.unroll]
    if not loops or not open_batch or library_of(model).backend() != "tensorflow":
        return saved_model.written(model, file, batch)
    folder = file.with_name(f"unrolled-{file.name.partition('.')[0]}")
    if not folder.is_dir():
        try:
            for layer in loops:
                layer.unroll = True
            saved_model.write(model, folder, batch)
        finally:
            for layer in loops:
                layer.unroll = False
    return folder


def runner(file: Path) -> Callable[[Sample], list[np.ndarray]]:
    """Return a function that runs the file on a batch, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=1)
    run_signature = interpreter.get_signature_runner(SIGNATURE)
    inputs = list(run_signature.get_input_details())

    def run(batch: Sample) -> list[np.ndarray]:
        outputs = run_signature(**named(batch, inputs))
        return [outputs[name] for name in in_order(outputs)]

    return run


def zeros(file: Path) -> tuple[int, int]:
    """Count the zeros and entries of the file's float or quantized constants that may be kernels."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {
        schema.TensorType.FLOAT32: np.float32,
        schema.TensorType.FLOAT16: np.float16,
        schema.TensorType.INT8: np.int8,
        schema.TensorType.UINT8: np.uint8,
    }
    model = schema.Model.GetRootAs(file.read_bytes(), 0)
    kept = size = 0
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            buffer = model.Buffers(tensor.Buffer())
            shape = tensor.ShapeAsNumpy().tolist() if tensor.ShapeLength() else []
            # Converters give biases a higher rank.
            if tensor.Type() not in kinds or sum(d > 1 for d in shape) < 2 or not buffer.DataLength():
                continue
            # A sparse tensor holds its blocks that are not 0, and nothing of the others.
            values = buffer.DataAsNumpy().view(kinds[tensor.Type()])
            size += math.prod(shape)
            kept += int(np.count_nonzero(values != _zero_point(tensor)))
    return size - kept, size


def _zero_point(tensor: Any) -> int:
    """Return the integer that represents 0, which all channels share because kernels are quantized symmetrically."""
    quantization = tensor.Quantization()
    return int(quantization.ZeroPoint(0)) if quantization is not None and quantization.ZeroPointLength() else 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what C++ code writes to stderr in this context: a page of text for each conversion."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
