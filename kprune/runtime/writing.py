"""Read and write large masked variables where they are: on an accelerator or in host memory."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np

from ..util.threads import side_by_side
from .distribution import as_numpy, on_host

# From so many entries on, a program that XLA compiles once per shape is faster than the way through NumPy.
LARGE = 1 << 20


def put(variable: Any, value: np.ndarray) -> None:
    """Assign a host array to a Keras 3 or tf_keras variable, on the device that holds its current value.

    What a compiled step returns is committed to its device, and JAX compiles the step anew for arrays that are not.

    >>> variable = keras.Variable([1.0, 2.0])
    >>> put(variable, np.zeros(2, "float32"))
    >>> variable.numpy().tolist()
    [0.0, 0.0]
    """
    if _on_jax([(variable, None)]):
        import jax

        now = variable.value
        if now.committed and len(now.sharding.device_set) == 1:
            value = jax.device_put(value, now.sharding)
    variable.assign(value)


def keep_where(kept: np.ndarray, variables: list[tuple[Any, float]], donate: bool = False) -> None:
    """Set each variable to where(kept, variable, initial); all variables must have the shape of `kept`.

    TensorFlow does so by an operation on the variable's device, JAX by a program that is compiled once per shape, or,
    of small arrays in the host's memory, through NumPy. What is not kept may be NaN.

    Args:
        kept: bool array.
        variables: of either Keras.
        donate: whether JAX may write into the arrays themselves, as the steps of a fit do; whoever else holds one
            loses it then.
    """
    if _on_jax(variables):
        if kept.size < LARGE and on_host(v for v, _ in variables):
            for v, initial in variables:
                value = as_numpy(v)
                put(v, np.where(kept, value, np.asarray(initial, value.dtype)))
            return
        values = [v.value for v, _ in variables]
        program = _program(tuple(value.sharding for value in values), donate)
        new = program(values, kept, [np.asarray(initial, v.dtype) for v, initial in variables])
    else:
        import tensorflow as tf

        mask = tf.convert_to_tensor(kept)
        values = [(_tensor(v), initial) for v, initial in variables]
        new = [tf.where(mask, value, tf.cast(initial, value.dtype)) for value, initial in values]
    for (v, _), value in zip(variables, new, strict=True):
        v.assign(value)


def pruned_entries(pairs: list[tuple[Any, Any]]) -> list[tuple[int, bool]]:
    """Return (number of pruned entries, whether any of them is not exactly 0) for each (variable, mask).

    In the host's memory NumPy counts, without copies; elsewhere one program does, and only the numbers come back.

    >>> variable, mask = keras.Variable([1.0, 0.0, 3.0]), keras.Variable([True, False, False], dtype="bool")
    >>> pruned_entries([(variable, mask)])
    [(2, True)]
    """
    if on_host(v for v, _ in pairs):

        def count(pair: tuple[Any, Any]) -> tuple[int, bool]:
            value, kept = as_numpy(pair[0]), as_numpy(pair[1]).astype(bool, copy=False)
            return kept.size - int(np.count_nonzero(kept)), bool(((value != 0) > kept).any())

        return side_by_side(count, pairs, sum(int(np.prod(v.shape)) for v, _ in pairs))
    if _on_jax(pairs):
        found = _counts()([(v.value, mask.value) for v, mask in pairs])
    else:
        import tensorflow as tf

        tensors = [(_tensor(v), tf.cast(_tensor(mask), tf.bool)) for v, mask in pairs]
        found = [
            (
                tf.reduce_sum(tf.cast(~mask, tf.int32)),
                tf.reduce_any(tf.logical_and(value != tf.zeros((), value.dtype), ~mask)),
            )
            for value, mask in tensors
        ]
    return [(int(pruned), bool(moved)) for pruned, moved in found]


def _on_jax(pairs: list[tuple[Any, Any]]) -> bool:
    return keras.backend.backend() == "jax" and all(isinstance(v, keras.Variable) for v, _ in pairs)


def _tensor(variable: Any) -> Any:
    import tensorflow as tf

    return tf.convert_to_tensor(variable.value if isinstance(variable, keras.Variable) else variable)


@functools.cache
def _program(shardings: tuple[Any, ...], donate: bool) -> Any:
    import jax

    def masked(values: list[Any], kept: Any, initial: list[Any]) -> list[Any]:
        return [jax.numpy.where(kept, value, start) for value, start in zip(values, initial, strict=True)]

    return jax.jit(masked, donate_argnums=(0,) if donate else (), out_shardings=list(shardings))


@functools.cache
def _counts() -> Any:
    import jax

    def counts(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        return [((~mask).sum(dtype="int32"), ((value != 0) & ~mask).any()) for value, mask in pairs]

    return jax.jit(counts)
