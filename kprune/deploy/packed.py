"""The packed SavedModel, which stores one bit per weight plus the nonzero values and is unpacked on loading."""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..report.saved_variables import SavedVariables, write_paths
from . import saved_model
from .sample import Sample

# Bytes of the graph that unpacks one kernel (measured: 11,000).
_UNPACKING = 2**14


def write(model: Any, folder: Path, batch: Sample) -> None:
    """Write a SavedModel as `saved_model.write` does, with its sparse kernels packed.

    A kernel of n entries, k of them not 0, of s bytes each, takes n / 8 + k s bytes in place of n s; one that gains
    nothing stays as it is. TensorFlow alone unpacks them, bit for bit: in its initializers, which
    `tf.saved_model.load`, the C API and TensorFlow Serving run.
    """
    pack(saved_model.written(model, folder, batch), folder)


def pack(source: Path, folder: Path) -> None:
    """Write the packed form of the SavedModel in `source` to `folder`, with the same `serve` endpoint."""
    import tensorflow as tf

    loaded, known = saved_model.load(source), SavedVariables(source)
    [inner] = loaded.serve.concrete_functions
    paths = {path: known.value(path) for path in known.shapes}
    module, handles, packed = tf.Module(), {}, {}
    module.plain, module.bits, module.values, module.kernels = [], [], [], []
    for variable in inner.variables:
        value = variable.numpy()
        if not gains(value):
            module.plain.append(variable)
            continue
        kernel = _kernel_class()(value)
        handles[id(variable.handle)] = kernel.resource_handle
        path = next((p for p, v in paths.items() if v.shape == value.shape and v.tobytes() == value.tobytes()), None)
        if path is not None:
            packed[path] = len(module.bits), value.shape
            del paths[path]
        module.bits.append(kernel.bits)
        module.values.append(kernel.values)
        module.kernels.append(kernel)
    # Tables of words and the like: only what is reached from the module is saved.
    view = tf.train.TrackableView(loaded)
    module.tables = [
        thing for thing in view.descendants() if isinstance(thing, tf.saved_model.experimental.TrackableResource)
    ]
    captured = [handles.get(id(tensor), tensor) for tensor in inner.captured_inputs]

    def serve(*arguments: Any) -> Any:
        # Through `identity`, as only a tensor of this graph can take the place of another.
        flat = [tf.identity(tensor) for tensor in (*tf.nest.flatten(arguments), *captured)]
        outputs = tf.graph_util.import_graph_def(
            inner.graph.as_graph_def(),
            input_map={tensor.name: new for tensor, new in zip(inner.inputs, flat, strict=True)},
            return_elements=[tensor.name for tensor in inner.outputs],
            name="",
        )
        return tf.nest.pack_sequence_as(inner.structured_outputs, outputs)

    module.serve = tf.function(serve, input_signature=inner.structured_input_signature[0], autograph=False)
    signatures = {name: module.serve.get_concrete_function() for name in ("serve", "serving_default")}
    # A file for inference keeps no gradients; those of what JAX compiled could not be saved again.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), signatures=signatures, options=options)
    write_paths(folder, list(paths.items()), packed)


def gains(value: np.ndarray) -> bool:
    """Return whether packing a value saves bytes, counting what TensorFlow needs to unpack it.

    >>> gains(np.eye(128, dtype="float32")), gains(np.ones((128, 128), "float32")), gains(np.eye(8, dtype="float32"))
    (True, False, False)
    """
    if value.ndim < 2 or value.dtype.kind not in "fV":
        return False
    kept = np.count_nonzero(_bits_set(value))
    return bool(value.size / 8 + kept * value.itemsize + _UNPACKING < value.nbytes)


def _bits_set(value: np.ndarray) -> np.ndarray:
    """Return which entries have any bit set, including entries of -0.0, which must survive packing."""
    return value.view(f"u{value.itemsize}") != 0


@functools.cache
def _kernel_class() -> Any:
    import tensorflow as tf

    class PackedKernel(tf.saved_model.experimental.TrackableResource):
        """A variable that is created from its packed value when the SavedModel is loaded."""

        def __init__(self, value: np.ndarray):
            super().__init__()
            self._shape, self._dtype = value.shape, tf.as_dtype(value.dtype)
            kept = _bits_set(value)
            # Eager resources of one name are one: SavedModels that are loaded side by side share what is equal, only.
            digest = hashlib.sha256(f"{value.dtype.name} {value.shape} ".encode() + value.tobytes())
            self._shared_name = f"kprune_packed_{digest.hexdigest()}"
            self.bits = tf.Variable(np.packbits(kept), trainable=False, name="bits")
            self.values = tf.Variable(value[kept], trainable=False, name="values")
            self.resource_handle  # noqa: B018  # makes it

        def _create_resource(self) -> Any:
            return tf.raw_ops.VarHandleOp(dtype=self._dtype, shape=self._shape, shared_name=self._shared_name)

        def _initialize(self) -> None:
            size = math.prod(self._shape)
            shifts = tf.range(7, -1, -1, dtype=tf.int32)
            bits = tf.bitwise.right_shift(tf.cast(self.bits, tf.int32)[:, tf.newaxis], shifts) & 1
            at = tf.where(tf.reshape(bits, [-1])[:size] > 0)
            value = tf.scatter_nd(at, self.values, tf.constant([size], tf.int64))
            tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=tf.reshape(value, self._shape))

    return PackedKernel
