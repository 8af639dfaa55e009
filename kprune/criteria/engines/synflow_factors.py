"""SynFlow's R for a Keras 3 model on the host CPU, and its derivatives, many of which are stored as two factors.

The gradient by a convolution's kernel is windows^T deltas, of the windows of its inputs and the derivatives by its
outputs. Where a single example has few positions both are small beside it, so it is left to whoever needs a part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from ...masks import library_of
from ...masks.below import all_layers
from ...masks.masked_layers import plain_type
from ...runtime.distribution import undistributed
from .convolutions import is_plain_convolution, windows
from .linearize import SCALINGS, linearized
from .precision import float64_on, host_of_jax, patched_attributes

FEW = 32  # positions; of more, a framework multiplies the factors faster than they are multiplied in parts


@dataclass(frozen=True)
class Derivative:
    """The derivative dR/dw of one weight: windows^T deltas, or just the deltas.

    Attributes:
        deltas: (positions, filters); without windows, an array of the weight's shape.
        windows: (positions, inputs of a filter), or None.
    """

    deltas: np.ndarray
    windows: np.ndarray | None = None


# Returns R and the derivatives by the weights that lie in the arrays now.
Derivatives = Callable[[], tuple[float, list[Derivative]]]


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy of the array at an address that both frameworks can use without copying again."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def make_derivatives(flow: Any, kernels: list[np.ndarray]) -> Derivatives:
    """Return a function that computes R and its derivatives with respect to `kernels`, which may change between calls.

    Args:
        flow: of the model.
        kernels: what `aligned` returned for each of its weights.
    """
    backend, convolutions = library_of(flow.model).backend(), _convolutions(flow)
    # XLA has no fast convolution of float64 on a CPU, for those whose gradient is asked for whole.
    with linearized(flow.model, products=backend == "jax"):
        return {"tensorflow": _tensorflow, "jax": _jax}[backend](flow, kernels, convolutions)


def _convolutions(flow: Any) -> dict[int, Any]:
    """Map a weight's index to its convolution, if no other layer uses the weight and all layers are Keras's own."""
    layers = all_layers(flow.model)
    own = all(plain_type(layer).__module__.startswith("keras.") for layer in layers)
    # Keras 3.13 and 3.15 trace what they are to compute anew apart, where nothing can be recorded.
    own = own and not any(getattr(layer, "_remat_mode", None) for layer in layers)
    names = {type(operation).__name__ for layer in layers for operation in getattr(layer, "operations", [])}
    if not own or names & SCALINGS:
        return {}
    readers: dict[int, list[Any]] = {}
    for layer in layers:
        for variable in {id(v): v for v in layer.trainable_variables + layer.non_trainable_variables}.values():
            readers.setdefault(id(variable), []).append(layer)
    found = {}
    for i, weight in enumerate(flow.weights):
        ends = [layer for layer in readers[id(weight.variable)] if not getattr(layer, "layers", None)]
        if len(ends) == 1 and is_plain_convolution(ends[0]) and ends[0].kernel is weight.variable:
            found[i] = ends[0]
    return found


class _Recorder:
    """A record of the convolutions in one forward pass; `mark` prepares each output for differentiation."""

    def __init__(self, convolutions: dict[int, Any], kernels: list[Any], mark: Callable[[Any], Any]):
        self.convolutions, self.kernels, self.mark = convolutions, kernels, mark
        self.owners: list[int] = []
        self.windows: list[Any] = []
        self.outputs: list[Any] = []

    def output(self, flow: Any, constants: list[Any]) -> Any:
        with patched_attributes() as patch:
            for i, layer in self.convolutions.items():
                patch(layer, "convolution_op", functools.partial(self._convolve, i))
            return flow.output(self.kernels, constants)

    def _convolve(self, i: int, inputs: Any, _: Any) -> Any:
        kernel = self.kernels[i]
        shaped = windows(self.convolutions[i], inputs, kernel.shape)
        rows = ops.reshape(shaped, (-1, shaped.shape[-1]))
        output = self.mark(ops.matmul(rows, ops.reshape(kernel, (rows.shape[-1], kernel.shape[-1]))))
        self.owners.append(i)
        self.windows.append(rows)
        self.outputs.append(output)
        return ops.reshape(output, (*shaped.shape[:-1], kernel.shape[-1]))


def _parts(
    kernels: list[Any], recorded: tuple[list[int], list[Any], list[Any]], whole: dict[int, Any]
) -> list[list[Any]]:
    """Return each weight's gradient, or its factors (deltas and windows), combined over all calls of its layer.

    Args:
        kernels: tensors of the weights' shapes.
        recorded: of each convolution the index of its weight, its windows and its deltas.
        whole: index -> gradient, of all other weights.
    """
    parts = []
    for i, kernel in enumerate(kernels):
        calls = [(deltas, rows) for owner, rows, deltas in zip(*recorded, strict=True) if owner == i]
        if not calls:
            parts.append([whole[i] if i in whole else ops.zeros_like(kernel)])
            continue
        deltas, rows = calls[0] if len(calls) == 1 else map(ops.concatenate, zip(*calls, strict=True))
        few = rows.shape[0] <= FEW
        parts.append([deltas, rows] if few else [ops.reshape(ops.matmul(ops.transpose(rows), deltas), kernel.shape)])
    return parts


def _tensorflow(flow: Any, kernels: list[np.ndarray], convolutions: dict[int, Any]) -> Derivatives:
    import tensorflow as tf

    others = [i for i in range(len(kernels)) if i not in convolutions]
    lent = _lent(kernels, lambda array: tf.experimental.dlpack.from_dlpack(array.__dlpack__()), tf.constant)
    with tf.device("CPU:0"):
        constants = [tf.constant(value) for _, value in flow.constants]

    @tf.function(autograph=False, input_signature=[[tf.TensorSpec(k.shape, tf.float64) for k in kernels]])
    def differentiate(tensors: list[Any]) -> Any:
        with tf.device("CPU:0"):
            with tf.GradientTape() as tape:
                wanted = [tensors[i] for i in others]
                tape.watch(wanted)

                def mark(output: Any) -> Any:
                    tape.watch(output)
                    return output

                recorder = _Recorder(convolutions, tensors, mark)
                total = recorder.output(flow, constants)
            deltas, whole = tape.gradient(total, (recorder.outputs, wanted), unconnected_gradients="zero")
            return total, _parts(
                tensors, (recorder.owners, recorder.windows, deltas), dict(zip(others, whole, strict=True))
            )

    traced = differentiate.get_concrete_function()

    def derivatives() -> tuple[float, list[Derivative]]:
        with tf.device("CPU:0"):
            total, parts = traced(*lent())
        return float(total), [Derivative(*map(np.asarray, part)) for part in parts]

    return derivatives


def _jax(flow: Any, kernels: list[np.ndarray], convolutions: dict[int, Any]) -> Derivatives:
    import jax

    cpu = host_of_jax()
    others = [i for i in range(len(kernels)) if i not in convolutions]
    owners: list[int] = []
    shapes: list[Any] = []

    def record(tensors: list[Any], constants: list[Any]) -> Any:
        recorder = _Recorder(convolutions, tensors, lambda output: output)
        total = recorder.output(flow, constants)
        owners[:], shapes[:] = recorder.owners, [output.shape for output in recorder.outputs]
        return total

    def output(zeros: list[Any], wanted: list[Any], tensors: list[Any], constants: list[Any]) -> Any:
        given, rest = iter(zeros), dict(zip(others, wanted, strict=True))
        values = [rest.get(i, tensor) for i, tensor in enumerate(tensors)]
        recorder = _Recorder(convolutions, values, lambda output: output + next(given))
        return recorder.output(flow, constants), recorder.windows

    def differentiate(tensors: list[Any], constants: list[Any]) -> Any:
        zeros = [jax.numpy.zeros(shape) for shape in shapes]
        by = jax.value_and_grad(output, (0, 1), has_aux=True)
        (total, rows), (deltas, whole) = by(zeros, [tensors[i] for i in others], tensors, constants)
        return total, _parts(tensors, (owners, rows, deltas), dict(zip(others, whole, strict=True)))

    with float64_on(cpu), undistributed():
        lent = _lent(kernels, jax.dlpack.from_dlpack, jax.numpy.array)
        constants = [jax.numpy.asarray(value) for _, value in flow.constants]
        if convolutions:
            jax.eval_shape(record, lent(), constants)
        compiled = jax.jit(differentiate).lower(lent(), constants).compile()

    def derivatives() -> tuple[float, list[Derivative]]:
        with float64_on(cpu):
            total, parts = compiled(lent(), constants)
            return float(total), [Derivative(*map(np.asarray, part)) for part in parts]

    return derivatives


def _lent(
    arrays: list[np.ndarray], lend: Callable[[np.ndarray], Any], copy: Callable[[np.ndarray], Any]
) -> Callable[[], list[Any]]:
    """Return a function that gives the arrays' current contents as tensors, sharing memory if possible."""
    tensors = [lend(array) for array in arrays]
    if all(np.asarray(t).ctypes.data == a.ctypes.data for t, a in zip(tensors, arrays, strict=True)):
        return lambda: tensors
    return lambda: [copy(array) for array in arrays]
