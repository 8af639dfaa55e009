"""The inputs and outputs of each layer of a model, for criteria that look at activations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ...masks import library_of
from ...masks.below import all_layers
from ...masks.masked_layers import is_masked
from ...runtime.distribution import to_numpy, undistributed
from ...runtime.inputs import call_with
from ..base import Context
from .precision import computing_in


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, or of an operation of a Keras 3 graph.

    Attributes:
        layer: what was called.
        given, made: the tensors of its arguments and of what it returned, in one list each.
    """

    layer: Any
    given: list[Any]
    made: list[Any]


def calls_of(context: Context, arguments: dict[str, Any]) -> list[Call]:
    """Run the model in inference mode under the context's masks, and return all calls in the order they finish.

    It computes in `context.dtype()`, with products of full precision, on one device of this process. A tensor that one
    layer hands to another is the same object in both calls. The model is not changed.

    Args:
        context: of a criterion.
        arguments: of the call, NumPy arrays by name, "" for the first.
    """
    calls: list[Call] = []
    backend = library_of(context.model).backend()
    if backend not in _RUNS:
        raise ValueError(
            "Criteria that use activations require the tensorflow or jax backend: set KERAS_BACKEND before importing "
            f"keras. Received: keras.backend.backend()={backend!r}"
        )
    _RUNS[backend](context, keras.tree.map_structure(_in(context.dtype()), arguments), calls)
    return calls


def is_concrete(tensor: Any) -> bool:
    """Return whether a tensor has values; a tensor inside a loop that the backend traces has none."""
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return hasattr(tensor, "numpy")


def following(calls: list[Call], tensor: Any, passes: Callable[[Any], bool]) -> Iterator[Call]:
    """Yield the calls that receive a tensor, directly or through layers for which `passes` is True.

    Args:
        calls: as `calls_of` returned them.
        tensor: one that a call made.
        passes: takes a layer or an operation.
    """
    reached, seen = [tensor], set()
    while reached:
        current = reached.pop(0)
        for number, call in enumerate(calls):
            if number not in seen and any(one is current for one in call.given):
                seen.add(number)
                yield call
                if passes(call.layer):
                    reached += call.made


def _in(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.astype(dtype) if array.dtype.kind == "f" else array


def _watched(layer: Any, calls: list[Call]) -> Callable[..., Any]:
    """Return the layer's `call`, wrapped to record its tensors."""
    call = layer.call

    @functools.wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        made = call(*args, **kwargs)
        calls.append(Call(layer, list(_tensors((args, kwargs))), list(_tensors(made))))
        return made

    # tfmot's wrappers look for `training` among the arguments.
    watched.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    return watched


def _tensors(structure: Any) -> Iterable[Any]:
    return (leaf for leaf in keras.tree.flatten(structure) if hasattr(leaf, "shape") and hasattr(leaf, "dtype"))


def _run_keras3(context: Context, arguments: dict[str, Any], calls: list[Call]) -> None:
    model, dtype = context.model, context.dtype()
    layers = all_layers(model)
    masks = [mask for layer in layers if is_masked(layer) for mask in layer.mask_store.masks]
    known = {id(w.variable): v for w, v in zip(context.weights, context.kept_values(), strict=True)}
    operations = {id(one): one for layer in layers for one in getattr(layer, "operations", [])}
    watched = list({**{id(layer): layer for layer in layers}, **operations}.values())
    scope = keras.StatelessScope()
    with computing_in(model, dtype) as patch, undistributed(), _full_precision():
        for one in watched:
            patch(one, "call", _watched(one, calls))
        for v in model.variables:
            value = known.get(id(v))
            value = to_numpy(v) if value is None else value
            # As a tensor of this host: what lies in parts on several devices does not mix with what does not.
            scope.add_update((v, keras.ops.convert_to_tensor(_in(dtype)(value))))
        for mask in masks:
            scope.add_update((mask, keras.ops.ones(mask.shape, "bool")))
        with scope:
            call_with(model, keras.tree.map_structure(keras.ops.convert_to_tensor, arguments), training=False)


@contextmanager
def _full_precision() -> Iterator[None]:
    context: AbstractContextManager[None]
    if keras.backend.backend() == "jax":
        import jax

        context = jax.default_matmul_precision("highest")
    else:
        from .precision_tensorflow import without_tf32

        context = without_tf32()
    with context:
        yield


def _run_tf_keras(context: Context, arguments: dict[str, Any], calls: list[Call]) -> None:
    import tensorflow as tf

    from .precision_tensorflow import without_tf32
    from .twins_tf_keras import Twins

    twins = context.once("calls of tf_keras", lambda: Twins(context.model, context.dtype()))
    patches = twins.patches
    twins.patches = [*patches, *((layer, "call", _watched(layer, calls)) for layer in twins.layers)]
    try:
        with twins.in_place(), without_tf32():
            twins.reset()
            for weight, value in zip(context.weights, context.kept_values(), strict=True):
                twins.of(weight.variable).assign(value)
            call_with(context.model, keras.tree.map_structure(tf.convert_to_tensor, arguments), training=False)
    finally:
        twins.patches = patches


_RUNS = {"tensorflow": _run_keras3, "jax": _run_keras3, "tf_keras": _run_tf_keras}
