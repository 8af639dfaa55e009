"""Movement: how far training has moved a weight away from zero or toward it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..masks import MaskedWeight, library_of, masked_weights
from ..runtime.distribution import as_tensor, on_host, to_numpy
from ..runtime.jax_state import Places
from .base import CRITERIA, Context, Scores
from .engines.precision import with_float64
from .trackers import ArrayTracker


class Movement(ArrayTracker):
    """A running sum of how training moves the weights, for the criterion "movement": S += w_t * (w_{t+1} - w_t).

    The callbacks of `kprune.callbacks` have their own; this one is for a training loop of yours. Until `end` is
    called, S lies in float64 on the weights' devices, beside a copy of the last step's weights: 12 bytes for each
    float32 weight.

    Attributes:
        arrays: S so far, float64 arrays of the weights' shapes, in model order, copied from the devices. A pruned
            weight keeps the S it had.

    Raises:
        ValueError: by `begin` and `after_step`, if S is that of another model; by `after_step`, if `begin` was not
            called.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[5.0], [1.0]])]); _ = kprune.mask(model)
    >>> moved = kprune.criteria.Movement()
    >>> moved.begin(model)
    >>> _ = dense.kernel.assign([[4.0], [2.0]])  # a training step
    >>> moved.after_step(model)
    >>> _ = kprune.prune(model, "movement", 0.5, trackers=moved)  # -5 and 1
    >>> dense.kernel.numpy().tolist()
    [[0.0], [2.0]]
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: list[Any] = []
        self._places: Places | None = None  # of the weights and their masks, in turns
        self._add: Any = None  # the program of a step

    @property
    def arrays(self) -> list[np.ndarray]:
        return [total if isinstance(total, np.ndarray) else to_numpy(total) for total in self._totals]

    @arrays.setter
    def arrays(self, arrays: list[np.ndarray]) -> None:
        self._totals: list[Any] = [np.asarray(array, "float64") for array in arrays]

    def __getstate__(self) -> dict[str, Any]:
        # A compiled program cannot be copied, and the model is not the tracker's; `begin` makes both again.
        # JAX makes float32 of a float64 array that it unpickles.
        return {**vars(self), "_totals": self.arrays, "_add": None, "_places": None}

    def begin(self, model: Any) -> None:
        beside, weights = _BESIDE[library_of(model).backend()], masked_weights(model)
        if self._totals:
            self._check_shapes(self._totals, weights)
        values = [as_tensor(weight.variable) for weight in weights]
        pairs = [beside(*pair) for pair in zip(self._totals or [None] * len(values), values, strict=True)]
        self._totals, self._last = [total for total, _ in pairs], [last for _, last in pairs]
        self._add = _program_for(model, weights)

    def follows(self, model: Any) -> bool:
        if type(self).after_step is not Movement.after_step:  # what it reads is not known
            return False
        parts = [part for weight in masked_weights(model) for part in (weight.variable, weight.mask)]
        self._places = Places(model, parts)
        return self._places.known

    def after_step(self, model: Any) -> None:
        tensors = None if self._places is None else self._places.tensors()
        if tensors is None:
            weights = masked_weights(model)
            self._check_shapes(self._last, weights)
            self._add = self._add or _program_for(model, weights)
            tensors = [as_tensor(part) for weight in weights for part in (weight.variable, weight.mask)]
        self._totals, self._last = self._add(self._totals, self._last, tensors[::2], tensors[1::2])

    def end(self) -> None:
        self.arrays, self._last, self._places, self._add = self.arrays, [], None, None

    def ready(self) -> bool:
        return any(map(_any, self._totals))

    def on_devices(self, weights: list[MaskedWeight]) -> list[Any] | None:
        """Return S as float64 tensors, or None if nothing has moved or S does not lie on the weights' devices."""
        if any(isinstance(total, np.ndarray) for total in self._totals) or not self.ready():
            return None
        self._check_shapes(self._totals, weights)
        return self._totals


def _any(total: Any) -> bool:
    if hasattr(total, "any"):  # NumPy's and JAX's
        return bool(total.any())
    import tensorflow as tf

    return bool(tf.reduce_any(tf.not_equal(total, 0)))


def _beside_of_jax(total: np.ndarray | None, value: Any) -> tuple[Any, Any]:
    """Return S, or zeros, and a copy of the value, both laid out as the value is."""
    import jax

    with with_float64():
        zeros = jax.numpy.zeros_like(value, "float64", device=value.sharding)
        return zeros if total is None else jax.device_put(total, value.sharding), jax.numpy.copy(value)


def _beside_of_tensorflow(total: np.ndarray | None, value: Any) -> tuple[Any, Any]:
    import tensorflow as tf

    return tf.zeros_like(value, "float64") if total is None else tf.convert_to_tensor(total), value


_BESIDE = {"jax": _beside_of_jax, "tensorflow": _beside_of_tensorflow, "tf_keras": _beside_of_tensorflow}


def _program_for(model: Any, weights: list[MaskedWeight]) -> Callable[..., Any]:
    return _program(library_of(model).backend(), on_host(weight.variable for weight in weights))


def _program(backend: str, fused: bool) -> Callable[..., Any]:
    """Return a compiled function (S, last values, values, masks) -> (S, copies of the values).

    Args:
        backend: of the model.
        fused: whether TensorFlow, too, compiles it by XLA, which reads and writes a CPU's memory fewer times.
    """
    cast: Any
    where: Any
    copy: Any
    if backend == "jax":
        import jax

        cast, where, copy = jax.numpy.astype, jax.numpy.where, jax.numpy.copy
    else:
        import tensorflow as tf

        cast, where, copy = tf.cast, tf.where, tf.identity

    def add(totals: list[Any], lasts: list[Any], values: list[Any], masks: list[Any]) -> tuple[list[Any], list[Any]]:
        sums = []
        for total, last, value, mask in zip(totals, lasts, values, masks, strict=True):
            before, now = cast(last, "float64"), cast(value, "float64")
            sums.append(where(cast(mask, "bool"), total + before * (now - before), total))
        # Copies, because the next training step may donate the memory of the values themselves.
        return sums, list(map(copy, values))

    if backend != "jax":
        return tf.function(add, autograph=False, jit_compile=fused or None)
    compiled = jax.jit(add, donate_argnums=(0, 1))

    def with_wide_floats(*tensors: Any) -> Any:
        with with_float64():
            return compiled(*tensors)

    return with_wide_floats


def _tensors(weights: list[MaskedWeight], tracker: Any) -> list[Any] | None:
    return None if tracker is None else tracker.on_devices(weights)


@CRITERIA.register("movement", tracker=Movement, tensors=_tensors)
def movement(context: Context) -> Scores:
    """Movement in training: score = sum over the steps t of w_t * (w_{t+1} - w_t), which is signed (arXiv:2005.07683).

    Under SGD that is the paper's -sum of lr * w * dL/dw: high for weights that move away from zero, low for those that
    shrink, whatever their size. The difference is what the optimizer made of the gradient, so Adam's scaling and
    weight decay count, too.

    Callbacks add it up batch by batch, from zero at the start of each fit, and go on with the sum that a backup
    holds; with `steps_per_execution` = n, t counts n steps at once. Before anything has moved, pruning by it is
    refused.

    Returns:
        path -> float64 array of the weight's shape, any sign, in squared units of the weight.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> schedule = kprune.schedules.PolynomialDecay(0.0, 0.75, begin_step=2, end_step=8, frequency=2)
    >>> callback = kprune.callbacks.GradualPruning(schedule, "movement")
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity
    0.75
    """
    return context.tracker.of(context.weights)
