"""The formats of `kprune.export`: how each file is named, written, and opened in its own runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..masks import library_of
from ..report import quantized
from ..report.saved_variables import SavedVariables
from ..report.summary import weight_paths
from ..runtime.distribution import to_numpy
from ..runtime.inputs import call_with
from . import interchange, keras_file, litert, packed, saved_model
from .memory import peak_of
from .sample import HINT, Sample, arrays, predict

# A SavedModel runs as an optimized graph, so its float32 sums may be taken in another order.
TOLERANCE = 1e-4
# Another runtime may compute in float32 what TensorFlow computes in 16 bits, of which 10 or 7 are digits.
_TOLERANCE_16_BITS = 0.02
_KNOWN: set[str] = set()
_UNKNOWN = (None, None)


@dataclass(frozen=True)
class Opened:
    """An exported file in its own runtime.

    Attributes:
        run: a batch to the outputs.
        zeros: exact zeros in the tensors of rank 2 or more that the file holds, dequantized; None where nothing tells
            what its integers stand for.
        size: the entries of these tensors.
    """

    run: Callable[[Sample], list[np.ndarray]]
    zeros: int | None
    size: int | None

    def lost(self, zeros: int, size: int) -> bool:
        """Return whether the file has fewer zeros than the model, given the model's zeros and entries.

        A converter may add constants, or merge equal ones, so it is the values that cannot be more.
        """
        if self.zeros is None or self.size is None:
            return False
        return self.zeros < zeros and self.size - self.zeros > size - zeros


@dataclass(frozen=True)
class Format:
    """An export format: how its file is named, written and opened.

    Attributes:
        title: what messages call a file of it.
        suffix: what follows the name that the user gave.
        write: writes a stripped model to a path; the batch says what the model takes.
        open: opens what was written; the model says of which Keras it is.
        beside: suffix of a second file, written and moved with the first.
        timed: whether it has a runtime of its own, whose latency means something.
        needs: the packages that write and run it, beside Keras.
        extra: the extra of kprune that installs them, if it is not kprune itself.
        tf_keras: whether models of tf_keras can be written.
        tolerance: the largest difference of the outputs, relative to the largest output, that is let pass.
        hint: what may be the cause of a larger one, and the cure.
        why_no_smaller: why the file of a sparse model may be no smaller than the dense one's.
        why_no_faster: why it may be no faster; "" where that cannot be told.
    """

    title: str
    suffix: str
    write: Callable[[Any, Path, Sample], None]
    open: Callable[[Path, Any], Opened]
    beside: str = ""
    timed: bool = True
    needs: tuple[str, ...] = ("tensorflow",)
    extra: str = ""
    tf_keras: bool = True
    tolerance: float = TOLERANCE
    hint: str = f"If the random inputs are the cause, {HINT}."
    why_no_smaller: str = "a zero takes as many bytes as any other value until the file is zipped"
    why_no_faster: str = "it multiplies by zeros as by any other value"

    def check(self, name: str, model: Any) -> None:
        """Raise ImportError if a package is missing, or ValueError if the format does not support this model."""
        for package in self.needs:
            try:
                importlib.import_module(package)
            except ImportError as error:
                install = f"'kprune[{self.extra}]'" if self.extra and package != "tensorflow" else package
                raise ImportError(
                    f"format={name!r} requires {package}, which is not installed: run `pip install {install}`, or "
                    "export with format='keras' and convert that file on another machine (kprune export MODEL.keras "
                    "--format=...)."
                ) from error
        if library_of(model).package is not keras and not self.tf_keras:
            raise ValueError(
                f"Only Keras 3 models can be exported with format={name!r}. For a tf_keras model, export a SavedModel, "
                f"which tf2onnx and OpenVINO's ovc can read. Received: format={name!r}, model={model.name!r}"
            )

    def compared_on(self, batch: Sample) -> Sample:
        """Return the inputs to compare a file on; for a quantized file, these are the first calibration examples."""
        return batch.representative.first(32) if self.quantized and batch.representative else batch

    def allowed(self, model: Any) -> float:
        """Return the tolerance for this model."""
        layers = library_of(model).all_layers(model)
        short = any(getattr(layer, "compute_dtype", None) in ("float16", "bfloat16") for layer in layers)
        return max(self.tolerance, _TOLERANCE_16_BITS) if short and self.extra else self.tolerance

    def opened(self, path: Path, model: Any, batch: Sample) -> tuple[Opened, list[np.ndarray], int | None]:
        """Open the file in its runtime; return the result, its outputs for a batch, and the peak memory in bytes."""

        def work() -> tuple[Opened, list[np.ndarray]]:
            found = self.open(path, model)
            return found, found.run(batch)

        try:
            if self.title not in _KNOWN:  # what a runtime sets up once is no file's
                work()
                _KNOWN.add(self.title)
            (found, outputs), memory = peak_of(work)
        except Exception as error:
            if not self.extra:
                raise
            raise RuntimeError(
                f"Export: {self.title} was converted, but its runtime cannot run it, so nothing was written. "
                f"{self.hint} Cause: {' '.join(str(error).split())[:300]}"
            ) from error
        return found, outputs, memory

    @property
    def quantized(self) -> bool:
        """Whether the format needs representative examples."""
        return self.write is litert.write_int8

    def files(self, path: Path) -> list[Path]:
        """Return the path of the file or folder, and the path of its second file if the format has one."""
        return [path, *([path.with_suffix(self.beside)] if self.beside else [])]


def count_zeros(values: list[np.ndarray]) -> tuple[int, int]:
    """Count the zeros and entries of the tensors that may be kernels, judging by their rank and dtype."""
    tensors = [
        value
        for value in values
        if value.ndim > 1 and (value.dtype.kind in "fV" or value.dtype.name in ("int8", "uint8"))
    ]
    return sum(int(np.count_nonzero(value == 0)) for value in tensors), sum(value.size for value in tensors)


def zeros_of(model: Any, read: Callable[[Any], np.ndarray] = to_numpy) -> tuple[int, int]:
    """Count the zeros and entries of a model's weights of rank 2 or more, dequantizing 4-bit integers first."""
    weights = {id(v): (layer, v) for layer, v in library_of(model).owned_weights(model)}.values()
    # What `count_zeros` sees of a packed kernel are its entries that are not 0.
    values = [
        quantized.kept(layer, v, read).astype("uint8") if quantized.is_packed(layer, v) else read(v)
        for layer, v in weights
        if v.name not in quantized.SCALES
    ]
    return count_zeros(values)


def is_packed(model: Any) -> bool:
    """Return whether any kernel of the model stores two 4-bit integers per byte."""
    return any(quantized.is_packed(layer, v) for layer, v in library_of(model).owned_weights(model))


def _open_saved_model(folder: Path, model: Any) -> Opened:
    loaded = saved_model.load(folder)
    variables = SavedVariables(folder)
    if is_packed(model):
        paths = {id(v): path for path, v in weight_paths(model)}
        zeros, size = zeros_of(model, lambda v: variables.value(paths[id(v)]))
    else:
        zeros, size = count_zeros([variables.value(path) for path in variables.shapes])
    return Opened(lambda batch: arrays(call_with(loaded.serve, saved_model.constants(batch))), zeros, size)


def _open_keras(file: Path, model: Any) -> Opened:
    loaded = keras_file.load(file, model)
    return Opened(lambda batch: predict(loaded, batch), *zeros_of(loaded))


def _open_litert(file: Path, model: Any) -> Opened:
    return Opened(litert.runner(file), *(_UNKNOWN if is_packed(model) else litert.zeros(file)))


def _open_onnx(file: Path, model: Any) -> Opened:
    return Opened(interchange.onnx_runner(file), *_kernels(interchange.onnx_constants(file), model))


def _open_openvino(file: Path, model: Any) -> Opened:
    return Opened(interchange.openvino_runner(file), *_kernels(interchange.openvino_constants(file), model))


def _kernels(constants: list[np.ndarray], model: Any) -> tuple[int, int] | tuple[None, None]:
    """Count the zeros and entries of a converted file's constants, except biases that the converter reshaped."""
    return _UNKNOWN if is_packed(model) else count_zeros([v for v in constants if sum(d > 1 for d in v.shape) > 1])


_LITERT = ("tensorflow", "ai_edge_litert")
_ONNX = ("tensorflow", "tf2onnx", "onnx", "onnxruntime")
_SPARSE = (
    "LiteRT's sparse kernels are known to give wrong results without an error in float16, and for Dense layers whose "
    "number of inputs is not a multiple of 4. Use format='litert', or keep the sparsity of these layers below 0.9."
)
_INT8 = "The quantization ranges come from `representative`, which must contain typical model inputs."

FORMATS: dict[str, Format] = {
    "saved_model": Format("the SavedModel", "", saved_model.write, _open_saved_model),
    "saved_model_packed": Format(
        "the packed SavedModel",
        ".packed",
        packed.write,
        _open_saved_model,
        why_no_smaller="no kernel is large and sparse enough for packing to gain anything",
    ),
    "keras": Format("the .keras file", ".keras", keras_file.write, _open_keras, timed=False, needs=()),
    "litert": Format("the LiteRT file", ".tflite", litert.write, _open_litert, needs=_LITERT, extra="litert"),
    "litert_sparse": Format(
        "the sparse LiteRT file",
        ".sparse.tflite",
        litert.write_sparse,
        _open_litert,
        needs=_LITERT,
        extra="litert",
        hint=_SPARSE,
        why_no_faster="",  # its sparse kernels may leave zeros out
    ),
    "litert_int8": Format(
        "the 8-bit LiteRT file",
        ".int8.tflite",
        litert.write_int8,
        _open_litert,
        needs=_LITERT,
        extra="litert",
        tolerance=0.2,
        hint=_INT8,
        why_no_faster="",  # its 8-bit kernels differ from the dense file's
    ),
    "onnx": Format(
        "the ONNX file", ".onnx", interchange.write_onnx, _open_onnx, needs=_ONNX, extra="onnx", tf_keras=False
    ),
    "openvino": Format(
        "the OpenVINO file",
        ".xml",
        interchange.write_openvino,
        _open_openvino,
        beside=".bin",
        needs=("tensorflow", "openvino"),
        extra="openvino",
        tf_keras=False,
    ),
}
"""The formats by name."""
