"""Twins (copies) of a tf_keras model's variables, with which its layers compute while the model is scored."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper


class Twins:
    """Twins (copies) of all variables of a model, with floats in `dtype`; within `in_place`, the layers use the twins.

    There the layers compute in `dtype`, too, and leave the masks out. The variables that they update (statistics,
    metrics, seeds) are twins, and when the block is left each attribute of theirs is what it was.

    Args:
        model: a tf_keras model of any kind.
        dtype: "float32" or "float64".

    Attributes:
        layers: the model, and all layers in it.
        patches: (layer, name of an attribute, its value inside `in_place`); more may be added.
    """

    def __init__(self, model: Any, dtype: str):
        modules = (model, *model.submodules)
        self._dtype = tf.as_dtype(dtype)
        self._pairs: dict[int, tuple[Any, Any]] = {}
        self.layers = [m for m in modules if isinstance(m, tf_keras.layers.Layer) and not _is_metric(m)]
        self.patches: list[tuple[Any, str, Any]] = []
        generators = [vars(layer).get("_random_generator") for layer in self.layers]
        self._owners = [*modules, *(generator for generator in generators if generator is not None)]
        for module in modules:
            if isinstance(module, pruning_wrapper.PruneLowMagnitude):
                self.patches.append((module, "pruning_vars", []))  # the masks, which it would apply
                continue
            for name, value in vars(module).items():
                twin = self._twin(value, None if _is_metric(module) else self._dtype)
                if twin is not value:
                    self.patches.append((module, name, twin))
        for layer in self.layers:
            self.patches += _patches(layer, self._dtype)

    def of(self, variable: Any) -> Any:
        """Return the variable's twin."""
        return self._pairs[id(variable)][1]

    def pairs(self) -> list[tuple[Any, Any]]:
        """Return (variable, twin) for all variables."""
        return list(self._pairs.values())

    def reset(self) -> None:
        """Give each twin the current value of its variable."""
        for variable, twin in self.pairs():
            twin.assign(tf.cast(variable, twin.dtype))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Make the model use the twins when it is traced or called within the context, and restore it afterwards."""
        before = [(vars(owner), vars(owner).copy()) for owner in self._owners]
        try:
            for owner, name, value in self.patches:
                vars(owner)[name] = value  # past tf_keras's own `__setattr__`, which would track the value
            yield
        finally:
            for attributes, was in before:
                attributes.clear()
                attributes.update(was)

    def _twin(self, value: Any, dtype: Any) -> Any:
        """Return an attribute's value with its variables replaced by twins, also in containers and regularizers."""
        if isinstance(value, tf.Variable):
            if id(value) not in self._pairs:
                dtype = dtype if dtype and value.dtype.is_floating else value.dtype
                self._pairs[id(value)] = value, tf.Variable(tf.cast(value, dtype), name=value.name.partition(":")[0])
            return self.of(value)
        if isinstance(value, functools.partial):
            new = self._twin(value.args, dtype)
            return value if new is value.args else functools.partial(value.func, *new, **value.keywords)
        if isinstance(value, dict):
            new = {key: self._twin(part, dtype) for key, part in value.items()}
            return value if all(new[key] is part for key, part in value.items()) else new
        if isinstance(value, list | tuple):
            new = [self._twin(part, dtype) for part in value]
            if any(a is not b for a, b in zip(new, value, strict=True)):
                return tuple(new) if isinstance(value, tuple) else new
        return value


def _patches(layer: Any, dtype: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield patches that make a layer compute in `dtype` and that replace the attributes a call would change.

    None of it has a public name (checked with tf_keras 2.21; tests/tf_keras/test_twins_tf_keras.py).
    """
    attributes = vars(layer)
    if layer._compute_dtype_object is not None and layer._compute_dtype_object.is_floating:
        yield layer, "_dtype_policy", tf_keras.mixed_precision.Policy(dtype.name)
        yield layer, "_compute_dtype_object", dtype
    if dtype == tf.float64 and attributes.get("fused"):
        yield layer, "fused", False  # TensorFlow's fused normalization has no float64
    yield layer, "_thread_local", threading.local()  # the losses that a call adds
    if hasattr(layer, "_conform_to_reference_input"):
        yield layer, "_conform_to_reference_input", functools.partial(_conform, layer, dtype)
    if "_has_explicit_input_shape" in attributes:
        yield layer, "_has_explicit_input_shape", True  # or another batch size has it make its graph anew
    random = attributes.get("_random_generator")
    if getattr(random, "_generator", None) is not None:
        yield random, "_generator", tf.random.Generator(copy_from=random._generator)
    # A traced function would be called with the variables that it was traced with, and keep the twins of this one.
    for cls in type(layer).__mro__:
        for name, value in vars(cls).items():
            if isinstance(value, tf.types.experimental.PolymorphicFunction):
                yield layer, name, types.MethodType(value.python_function, layer)
    for name, value in attributes.items():
        if isinstance(value, tf.types.experimental.PolymorphicFunction):
            yield layer, name, value.python_function


def _conform(model: Any, dtype: Any, tensor: Any, ref_input: Any) -> Any:
    """Make a Functional model cast its inputs to `dtype` instead of to the dtype of its Input."""
    wanted = dtype if ref_input.dtype.is_floating else ref_input.dtype
    return type(model)._conform_to_reference_input(model, tensor, tf.TensorSpec(ref_input.shape, wanted))


def _is_metric(module: Any) -> bool:
    return isinstance(module, tf_keras.metrics.Metric)
