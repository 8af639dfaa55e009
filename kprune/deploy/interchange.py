"""Write ONNX and OpenVINO files from TensorFlow graphs with Keras's own export, and run the files."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from . import keras_file
from .sample import Sample, in_order, named

# With less room than this, in bytes, a disk is full.
_FULL = 2**20
# A process of its own where Keras runs on JAX, whose programs neither converter reads.
_CONVERT = """
import sys
import keras
file, target, format = sys.argv[1:]
model = keras.models.load_model(file, compile=False)
inputs = model.inputs[0] if hasattr(model, "add") else model.input
model(keras.tree.map_structure(lambda x: keras.ops.zeros([d or 1 for d in x.shape], x.dtype), inputs))
model.export(target, format=format, verbose=False)
"""


def write_onnx(model: Any, file: Path, batch: Sample) -> None:
    """Write an ONNX file with tf2onnx."""
    _write(model, file, batch, "onnx")


def write_openvino(model: Any, file: Path, batch: Sample) -> None:
    """Write OpenVINO's `.xml` and `.bin` files in the model's own precision."""
    _write(model, file, batch, "openvino")


def _write(model: Any, file: Path, batch: Sample, format: str) -> None:
    if keras.backend.backend() == "tensorflow":
        kinds = keras.tree.map_structure(
            lambda spec: keras.InputSpec(shape=spec.shape, dtype=spec.dtype, name=spec.name), list(batch.specs.values())
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of NumPy, for what Keras asks of it
            try:
                model.export(str(file), format=format, input_signature=kinds, verbose=False)
            except RuntimeError as error:
                _check_written(str(error), file)
                raise
        return
    source = file.with_name(f"for-{format}-{file.name.partition('.')[0]}.keras")
    keras_file.write(model, source, batch)
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, str(source), str(file), format],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        _check_written(done.stderr, file)
        raise RuntimeError(
            f"Export: format={format!r} is converted from a TensorFlow graph, so the model is loaded in a separate "
            "process with Keras on TensorFlow. That failed, so nothing was written. A model with custom layers must "
            f"be exported on the TensorFlow backend. Cause: {done.stderr.strip().rpartition(chr(10))[2][:300]}"
        )


def _check_written(cause: str, file: Path) -> None:
    """Raise OSError if the text of a converter's error shows that the file could not be written."""
    if "iostream error" in cause or f"[Errno {errno.ENOSPC}]" in cause:
        full = shutil.disk_usage(file.parent).free < _FULL  # C++ does not say why
        number = errno.ENOSPC if full or "iostream" not in cause else errno.EIO
        raise OSError(number, os.strerror(number), str(file))


def onnx_runner(file: Path) -> Callable[[Sample], list[np.ndarray]]:
    """Return a function that runs the file on a batch in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = [x.name for x in session.get_inputs()]
    return lambda batch: session.run(None, named(batch, inputs))


def onnx_constants(file: Path) -> list[np.ndarray]:
    """Return the constants in the file."""
    import onnx

    graph = onnx.load(str(file)).graph
    return [onnx.numpy_helper.to_array(constant) for constant in graph.initializer]


def openvino_runner(file: Path) -> Callable[[Sample], list[np.ndarray]]:
    """Return a function that runs the file on a batch in OpenVINO, on one thread and in its own precision."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    inputs = [x.get_any_name() for x in compiled.inputs]
    names = in_order(x.get_any_name() for x in compiled.outputs)

    def run(batch: Sample) -> list[np.ndarray]:
        outputs = compiled(named(batch, inputs))
        return [np.array(outputs[name]) for name in names]

    return run


def openvino_constants(file: Path) -> list[np.ndarray]:
    """Return the constants in the file."""
    import openvino

    operations = openvino.Core().read_model(str(file)).get_ops()
    return [op.data for op in operations if op.get_type_name() == "Constant"]
