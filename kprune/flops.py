"""Counts of how often each kernel entry is used per example, from which multiply-adds are computed.

The model runs once on one example, symbolically: no value is computed, no state changes. While it runs, each layer
that owns a kernel notes the shapes of what goes in and comes out, so that shared, nested and subclassed layers are
counted as they are called.

tf_keras keeps the losses of its last call, and TimeDistributed's way of looping, in private: `_eager_losses` and
`_always_use_reshape` are used here and nowhere else (checked with tf_keras 2.21).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from .masks import is_tf_keras, library_of
from .masks.layout import TRANSPOSED, einsum_labels
from .masks.types import is_a
from .runtime.inputs import call_with, input_like

Shape = tuple[int, ...]


def kernel_uses(model: Any) -> tuple[dict[int, int | None], str]:
    """Map each weight's id to how often each of its entries is multiplied per example, or to None if unknown.

    dense: the positions of the output; convolution: its pixels; transposed convolution: pixels of the input;
    recurrent: time steps (and pixels); EinsumDense: the product of the sizes of the input's dimensions that the kernel
    does not have; embedding: 0, it is looked up. A layer called twice counts twice, one that is not called 0.

    Returns:
        The dict, for weights of layers that are known only, and why nothing is known, or "".
    """
    owned = [(layer, v, rule) for layer, v in library_of(model).owned_weights(model) if (rule := _rule(layer))]
    uses: dict[int, int | None] = {}
    # Twice at most: a tf_keras Sequential that was built on another batch size traces itself anew when it is called.
    for _ in range(2):
        uses = {id(v): 0 for _, v, _ in owned}
        try:
            with _recording(model, owned, uses):
                _run_once(model)
        except Exception as error:
            # A report is never worth an error: the model may need real values, or inputs that nobody knows.
            return dict.fromkeys(uses), _reason(error)
        if None not in uses.values():
            break
    return uses, ""


def _per_output(layer: Any, given: Shape, made: Shape) -> int:
    return _positions(layer, made)


def _per_input(layer: Any, given: Shape, made: Shape) -> int:
    return _positions(layer, given)


def _per_step(layer: Any, given: Shape, made: Shape) -> int:
    if not is_a(layer, "ConvLSTM"):
        return given[0] * given[1]
    return math.prod(made) // layer.cell.filters * (1 if layer.return_sequences else given[1])


def _per_einsum(layer: Any, given: Shape, made: Shape) -> int:
    labels, kernel, _ = einsum_labels(layer)
    before, _, after = labels.partition("...")
    tail = len(given) - len(after)
    sizes = [size for label, size in zip(before, given, strict=False) if label not in kernel]
    sizes += [size for label, size in zip(after, given[tail:], strict=True) if label not in kernel]
    return math.prod(sizes) * math.prod(given[len(before) : tail])


def _never(layer: Any, given: Shape, made: Shape) -> int:
    return 0


Rule = Callable[[Any, Shape, Shape], int]
# By the names of the classes, which Keras 3 and tf_keras share; the first that a class's ancestry hits counts.
_RULES: dict[str, Rule] = {
    "Dense": _per_output,
    "EinsumDense": _per_einsum,
    "RNN": _per_step,
    "Embedding": _never,
    **{f"{name}Conv{n}D": _per_output for name in ("", "Depthwise", "Separable") for n in (1, 2, 3)},
    **dict.fromkeys(TRANSPOSED, _per_input),
}


def _rule(layer: Any) -> Rule | None:
    if getattr(layer, "quantization_mode", None) is not None:
        return None  # int4 kernels are stored packed, two entries in one
    return next((_RULES[cls.__name__] for cls in type(layer).__mro__ if cls.__name__ in _RULES), None)


def _positions(layer: Any, shape: Shape) -> int:
    channels = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    return math.prod(shape) // shape[channels]


@contextmanager
def _recording(model: Any, owned: list[tuple[Any, Any, Rule]], uses: dict[int, int | None]) -> Iterator[None]:
    """Make each call of the layers in `owned` add to `uses` while the context is active."""
    patched: list[tuple[Any, str, Any]] = []
    strings = any(x.dtype == "string" for x in getattr(model, "inputs", None) or ())

    def patch(layer: Any, name: str, value: Any) -> None:
        # Into the dict: both Kerases would track what is set as an attribute.
        patched.append((layer, name, vars(layer).get(name, _ABSENT)))
        vars(layer)[name] = value

    def recorder(layer: Any, ids: list[int], rule: Rule) -> Callable[..., Any]:
        call = layer.call

        @functools.wraps(call)
        def call_and_record(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            given, made = (_first_shape(structure, strings) for structure in ((args, kwargs), output))
            count = None if None in (*given, *made) else rule(layer, given, made)
            for key in ids:
                known = uses[key]
                uses[key] = None if known is None or count is None else known + count
            return output

        return call_and_record

    layers: dict[int, tuple[Any, list[int], Rule]] = {}
    for layer, v, rule in owned:
        layers.setdefault(id(layer), (layer, [], rule))[1].append(id(v))
    try:
        for layer, ids, rule in layers.values():
            patch(layer, "call", recorder(layer, ids, rule))
        if is_tf_keras(model):
            for layer in library_of(model).all_layers(model):
                if is_a(layer, "TimeDistributed"):
                    # Otherwise it traces one step of a loop, whose number of turns the layer inside cannot see.
                    patch(layer, "_always_use_reshape", True)
        yield
    finally:
        for layer, name, value in reversed(patched):
            if value is _ABSENT:
                del vars(layer)[name]
            else:
                vars(layer)[name] = value


_ABSENT = object()


def _first_shape(structure: Any, strings: bool) -> Shape:
    """Return the shape of the first tensor; a batch size that is unknown, as for text split into words, becomes 1."""
    shape = tuple(keras.tree.flatten(structure)[0].shape)
    return (1, *shape[1:]) if strings and shape and shape[0] is None else shape


class _Run(keras.layers.Layer):
    """A layer that runs a function on shapes only and changes no variables, using only the public API of Keras 3.

    A layer, because the outermost layer of a call drops the losses of its last call: here that is not the model.
    """

    def __init__(self, function: Callable[..., Any]):
        super().__init__(dtype="float32", autocast=False)
        self.function = function

    def call(self, inputs: Any) -> Any:
        return self.function(inputs)


def _run_once(model: Any) -> None:
    if is_tf_keras(model):
        import tensorflow as tf

        specs = input_like(model, lambda shape, dtype: tf.TensorSpec(shape, dtype))
        losses = [(layer, layer._eager_losses) for layer in library_of(model).all_layers(model)]
        try:
            # Traced and never executed: tfmot's wrappers assign to the weights when they run.
            tf.function(lambda inputs: call_with(model, inputs, training=False)).get_concrete_function(specs)
        finally:
            for layer, before in losses:
                layer._eager_losses = before
        return
    inputs = input_like(model, lambda shape, dtype: keras.KerasTensor(shape, dtype))
    _Run(lambda given: call_with(model, given, training=False))(inputs)


def _reason(error: Exception) -> str:
    """Return the cause of an error as one line, extracted from the bold part of Keras's message."""
    message = str(error).rpartition("\x1b[1m")[2].partition("\x1b[0m")[0].rpartition("Error encountered:")[2]
    return message.strip().partition("\n")[0] or type(error).__name__
