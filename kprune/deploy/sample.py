"""Inputs for comparing exported files with their model, in the form that each file takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ..masks import library_of
from ..runtime.distribution import to_numpy
from ..runtime.inputs import call_with, check_inputs, input_like

# How a user gets past what cannot be found out.
HINT = "pass `inputs=` with a batch that `model.predict` accepts"


@dataclass(frozen=True)
class Sample:
    """A batch for a model, in the dtypes that an exported file takes.

    Attributes:
        arguments: NumPy arrays by the name of the argument, "" for the first, in the model's own structure.
        specs: (shape, dtype, name) for each array, in the same structure; None for a batch size that is open.
        representative: examples from which a quantized file takes its ranges, and on which it is compared.
    """

    arguments: dict[str, Any]
    specs: dict[str, Any]
    representative: Sample | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        """All arrays, in order."""
        return keras.tree.flatten(list(self.arguments.values()))

    def first(self, count: int) -> Sample:
        """Return the first `count` examples, or the whole batch if its size is fixed."""
        if any(spec.shape[0] is not None for spec in _leaves(self)):
            return self
        return Sample(keras.tree.map_structure(lambda array: array[:count], self.arguments), self.specs)

    def each(self) -> Iterator[Sample]:
        """Yield batches of the model's fixed batch size, or of one example each if the batch size is variable."""
        size = next((spec.shape[0] for spec in _leaves(self) if spec.shape[0] is not None), 1)
        for start in range(0, len(self.arrays[0]) - size + 1, size):
            rows = slice(start, start + size)
            yield Sample(keras.tree.map_structure(lambda array, rows=rows: array[rows], self.arguments), self.specs)

    def with_fixed_batch(self) -> Sample:
        """Return the same sample with specs that fix the batch size to that of the arrays."""
        fixed = [(array.shape, spec.dtype, spec.name) for array, spec in zip(self.arrays, _leaves(self), strict=True)]
        return Sample(self.arguments, _pack(self.arguments, [Spec(*spec) for spec in fixed]))


@dataclass(frozen=True)
class Spec:
    """The shape (with None for any size), dtype and name of an input of a file."""

    shape: tuple[int | None, ...]
    dtype: str
    name: str | None


def sample(model: Any, inputs: Any = None) -> Sample:
    """Prepare the user's batch, or two random examples (two short texts for string inputs).

    float64 and float16 arrays become what the model computes in, integers what its inputs declare, as in `predict`; a
    batch size that the model's inputs fix stays fixed.

    Raises:
        ValueError: the shape of the model's inputs is not known or not fixed and no `inputs` are given.
    """
    declared = getattr(model, "inputs", None) or []
    if inputs is None:
        sizes = {x.shape[0] for x in declared} - {None}
        try:
            arguments = input_like(model, _maker(), batch=int(sizes.pop()) if sizes else 2)
        except ValueError as error:
            raise ValueError(f"{str(error).replace('Received:', f'Alternatively, {HINT}. Received:')}") from error
    else:
        check_inputs(inputs)
        arguments = {"": inputs}
    leaves = [_array(leaf) for leaf in keras.tree.flatten(list(arguments.values()))]
    declared = declared if len(declared) == len(leaves) else [None] * len(leaves)
    pairs = [_as_declared(leaf, x) for leaf, x in zip(leaves, declared, strict=True)]
    packed = _pack(arguments, [array for array, _ in pairs])
    return Sample(packed, _pack(arguments, [spec for _, spec in pairs]))


def named(batch: Sample, names: list[str]) -> dict[str, np.ndarray]:
    """Map the file's input names to the batch's arrays, by name if the names match and by order otherwise.

    >>> batch = Sample({"": [np.zeros(1), np.ones(1)]}, {"": [Spec((None,), "float32", None)] * 2})
    >>> named(batch, ["inputs_1", "inputs"])
    {'inputs': array([0.]), 'inputs_1': array([1.])}
    """
    known = [spec.name or "" for spec in _leaves(batch)]
    ordered = known if set(known) == set(names) else in_order(names)
    return dict(zip(ordered, batch.arrays, strict=True))


def in_order(names: Iterable[str]) -> list[str]:
    """Sort input or output names in Keras's flattened order, by the number at the end of each name, if any.

    >>> in_order(["output_10", "output_9"]), in_order(["two", "one"]), in_order(["Identity_1:0", "Identity:0"])
    (['output_9', 'output_10'], ['one', 'two'], ['Identity:0', 'Identity_1:0'])
    """

    def key(name: str) -> tuple[str, int]:
        name = name.partition(":")[0]
        stem, _, number = name.rpartition("_")
        return (stem, int(number)) if number.isdigit() else (name, -1)

    return sorted(names, key=key)


def signature(call_sample: Sample, kind: type) -> tuple[inspect.Signature, list[Any]]:
    """Return the signature of a function that takes this sample, and a spec of `kind` for each argument."""
    names = [name or "inputs" for name in call_sample.arguments]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    specs = [
        keras.tree.map_structure(lambda spec: kind(shape=spec.shape, dtype=spec.dtype, name=spec.name), structure)
        for structure in call_sample.specs.values()
    ]
    return inspect.Signature(parameters), specs


def predict(model: Any, batch: Sample) -> list[np.ndarray]:
    """Return the model's predictions without changing the states of seeds and stateful layers."""
    with unchanged(model):
        return arrays(call_with(model, tensors(batch), training=False))


def tensors(batch: Sample) -> dict[str, Any]:
    """Return the arguments of a call, with arrays of strings converted to TensorFlow tensors."""

    def convert(array: np.ndarray) -> Any:
        if array.dtype.kind not in "OUS":
            return array
        import tensorflow as tf

        return tf.constant(array)

    return keras.tree.map_structure(convert, batch.arguments)


def arrays(outputs: Any) -> list[np.ndarray]:
    """Return the outputs of a call as one list of NumPy arrays."""
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Restore the model's seeds, and any other states that a call may change, on exit from this context."""
    states = [(v, to_numpy(v)) for v in _states(model)]
    try:
        yield
    finally:
        for v, value in states:
            v.assign(value)


@contextmanager
def from_reset_states(model: Any) -> Iterator[None]:
    """Reset the states of stateful recurrent layers to match the exported files, and restore the states on exit."""
    with unchanged(model):
        for state in _recurrent_states(model):
            state.assign(np.zeros(state.shape, to_numpy(state).dtype))
        yield


def _states(model: Any) -> list[Any]:
    return [*model.non_trainable_variables, *_recurrent_states(model)]


def _recurrent_states(model: Any) -> list[Any]:
    """Return the states of recurrent layers, which neither Keras 3 nor tf_keras lists among a model's variables."""
    layers = library_of(model).all_layers(model)
    stateful = [layer for layer in layers if getattr(layer, "stateful", False) and getattr(layer, "states", None)]
    return [state for layer in stateful for state in keras.tree.flatten(layer.states) if state is not None]


def _maker() -> Any:
    rng = np.random.default_rng(0)

    def make(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if dtype == "string":
            return np.resize(np.array(["a b c", "b"], object), shape)
        return rng.normal(size=shape).astype("float32") if "float" in dtype else np.zeros(shape, dtype)

    return make


def _array(leaf: Any) -> np.ndarray:
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    return array.astype(object) if array.dtype.kind in "US" else array


def _as_declared(array: np.ndarray, declared: Any) -> tuple[np.ndarray, Spec]:
    """Return the array as `predict` would cast it, and the spec of the file's input."""
    dtype, shape = array.dtype.name, (None, *array.shape[1:])
    if declared is not None:
        dtype = declared.dtype if isinstance(declared.dtype, str) else declared.dtype.name
        if len(declared.shape) == array.ndim:
            shape = tuple(None if d is None else int(d) for d in declared.shape)
    elif array.dtype.kind == "f":
        dtype = keras.config.floatx()
    if array.dtype.kind == "O" or dtype == "string":
        return array.astype(object), Spec(shape, "string", getattr(declared, "name", None))
    return array.astype(dtype), Spec(shape, dtype, getattr(declared, "name", None))


def _leaves(batch: Sample) -> list[Spec]:
    return keras.tree.flatten(list(batch.specs.values()))


def _pack(arguments: dict[str, Any], leaves: list[Any]) -> dict[str, Any]:
    packed = keras.tree.pack_sequence_as(list(arguments.values()), leaves)
    return dict(zip(arguments, packed, strict=True))
