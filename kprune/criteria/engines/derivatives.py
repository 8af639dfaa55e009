"""Gradients and Hessian products of the loss under any masks, traced once for all rounds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from ...data.batches import Batch
from ...masks import library_of
from ...masks.below import all_layers
from ...masks.masked_layers import is_masked
from ...runtime.distribution import device_layout, on_host, to_numpy, undistributed
from ..base import Context, Derivative
from .convolutions import convolutions_as_products
from .precision import computing_in, patched_attributes


class Gradients:
    """Derivatives of the compiled loss with respect to the masked weights.

    The loss is the model's own `compute_loss`: what `fit` minimizes, weights of the losses, of the samples and
    regularizers included. The weights are replaced by the values given and the masks are left out, so that the
    gradient is that by the effective weight, also where a mask cuts it off. Nothing in the model changes. Whatever
    the layers' own policies are, all is computed in float32, or in float64 where the weights are float64: there, the
    rounding of an activation next to a kink (a ReLU's zero) does not decide on which side of it the gradient is.
    Products, too, are float32's own, where the backend's default on a GPU is TF32 and on a TPU bfloat16.

    Args:
        context: of the criterion; its model must be compiled.
        training: False for inference mode (batch normalization uses its moving statistics, no dropout), True for
            training mode.
        temperature: the logits are divided by it before the loss. Where the loss takes probabilities, they are what
            the divided logits would have made them.

    Attributes:
        loss: what the model was compiled with.

    Raises:
        ValueError: the model is not compiled with a loss.
    """

    def __init__(self, context: Context, training: bool = False, temperature: float = 1.0):
        model = context.model
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
            raise ValueError(f"`temperature` must be a positive number. Received: temperature={temperature!r}")
        _check_compiled(model, context.data[0])
        self.loss = _compiled_loss(model)
        heat = _heat(model, temperature)
        backend = library_of(model).backend()
        if backend not in _DERIVATIVES:
            raise ValueError(
                "Criteria that use gradients require the tensorflow or jax backend: set KERAS_BACKEND before "
                f"importing keras. Received: keras.backend.backend()={backend!r}"
            )
        self._gradient, self._curvature = _DERIVATIVES[backend](context, training, heat)

    def gradient(self, values: list[np.ndarray], batch: Batch) -> list[np.ndarray]:
        """Return dL/dw at these weights on one batch."""
        return self._gradient(values, [], batch)

    def curvature(self, values: list[np.ndarray], vectors: list[np.ndarray], batch: Batch) -> list[np.ndarray]:
        """Return H v, the Hessian of the loss at these weights times vectors of the same shapes."""
        return self._curvature(values, vectors, batch)


def gradients_of(context: Context, training: bool = False, temperature: float = 1.0) -> Gradients:
    """Return the `Gradients` of a context, reusing those of an earlier round or update with the same compiled loss."""
    name = f"gradients {training} {temperature} {context.dtype()}"
    found: Gradients | None = context.compiled.get(name)
    if found is None or found.loss is not _compiled_loss(context.model):
        found = context.compiled[name] = Gradients(context, training, temperature)
    return found


def _compiled_loss(model: Any) -> Any:
    """Return the loss object that each `compile` creates anew; neither Keras 3 nor tf_keras names it publicly."""
    return getattr(model, "_compile_loss", None) or getattr(model, "compiled_loss", None)


def _check_compiled(model: Any, batch: Batch) -> None:
    if getattr(model, "optimizer", None) is None:
        raise _no_loss(model)
    own = type(model).compute_loss is not library_of(model).package.Model.compute_loss
    if batch[1] is None and getattr(model, "loss", None) and not own:
        raise ValueError("The compiled loss needs targets: pass data as tuples (x, y). Received: y=None")


def _no_loss(model: Any) -> ValueError:
    """Return the error for a model without a loss that criteria can use."""
    return ValueError(
        "The criterion needs a loss: compile the model with `model.compile(optimizer, loss=...)`, or define a loss "
        "in `compute_loss` or `add_loss`. A loss computed in `train_step` cannot be used. Received: "
        f"model={model.name!r}"
    )


def _own_loss(model: Any, batch: Batch, run: Callable[[Callable[[], Any]], Any] = lambda forward: forward()) -> Any:
    """Return a copy of the compiled loss that has separate trackers for several outputs.

    `run` returns the result of the forward pass that it is given, or tensors of the same structure, shapes and dtypes,
    which are enough to build the trackers.

    `_compile_loss` has no public name (checked with Keras 3.13.2 and 3.15.1; a model that was never trained, in
    tests/test_gradients.py).
    """
    loss = model._compile_loss
    own = None if loss is None else type(loss)(loss._user_loss, loss._user_loss_weights, output_names=loss.output_names)
    one = keras.tree.map_structure(lambda part: ops.convert_to_tensor(part[:1]), batch, none_is_leaf=False)
    with keras.StatelessScope(collect_losses=True) as scope, undistributed():
        y_pred = run(lambda: model(one[0]))
        if own is None and type(model).compute_loss is keras.Model.compute_loss and not scope.losses:
            raise _no_loss(model)
        if own is not None and one[1] is None:  # what it will be called with is known to `compute_loss` alone
            with patched_attributes() as patch:
                patch(model, "_compile_loss", own)
                _compute_loss(model, one, y_pred, training=False)
    if own is not None and one[1] is not None:
        own(one[1], y_pred)
    return own


@contextmanager
def _scoring(model: Any, loss: Any, dtype: str, products: bool = False) -> Iterator[None]:
    """Make the model compute this loss in `dtype`; with `products`, without convolutions that XLA's CPU is slow at."""
    with computing_in(model, dtype) as patch, undistributed():
        patch(model, "_compile_loss", loss)
        if products:
            for change in convolutions_as_products(all_layers(model), only_small=dtype != "float64"):
                patch(*change)
        yield


def _loss(model: Any, updates: list[tuple[Any, Any]], batch: Any, training: bool, heat: Callable[[Any], Any]) -> Any:
    """Return a Keras 3 model's loss with variables set to the values in `updates`; discard the model's own updates."""
    scope = keras.StatelessScope(collect_losses=True)  # those of `add_loss` and activity regularizers
    for variable, value in updates:
        scope.add_update((variable, value))
    with scope:
        return _compute_loss(model, batch, heat(model(batch[0], training=training)), training)


def _compute_loss(model: Any, batch: Any, y_pred: Any, training: bool) -> Any:
    x, y, sample_weight = batch
    # As in `fit`, which serves overrides written before there was `training`, too.
    takes = inspect.signature(model.compute_loss).parameters
    options = {"training": training} if "training" in takes or "kwargs" in takes else {}
    return model.compute_loss(x, y, y_pred, sample_weight, **options)


def _mask_variables(model: Any) -> list[Any]:
    return [mask for layer in all_layers(model) if is_masked(layer) for mask in layer.mask_store.masks]


def _tensorflow_derivatives(
    context: Context, training: bool, heat: Callable[[Any], Any]
) -> tuple[Derivative, Derivative]:
    import tensorflow as tf

    from .moments_tensorflow import twice_differentiable_moments
    from .precision_tensorflow import without_tf32

    model, dtype, masks = context.model, context.dtype(), _mask_variables(context.model)
    own_loss = _own_loss(model, context.data[0])
    variables = [w.variable for w in context.weights]

    def gradient(values: list[Any], batch: Any) -> list[Any]:
        updates = [*zip(variables, values, strict=True), *((m, tf.ones(m.shape, tf.bool)) for m in masks)]
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = _loss(model, updates, batch, training, heat)
        return tape.gradient(loss, values, unconnected_gradients="zero")

    def curvature(values: list[Any], vectors: list[Any], batch: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            gradients = gradient(values, batch)
            product = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
        return tape.gradient(product, values, unconnected_gradients="zero")

    first = tf.function(lambda values, vectors, batch: gradient(values, batch), autograph=False)
    second = tf.function(curvature, autograph=False)

    def run(function: Any) -> Derivative:
        def call(values: list[np.ndarray], vectors: list[np.ndarray], batch: Batch) -> list[np.ndarray]:
            tensors = keras.tree.map_structure(tf.convert_to_tensor, (values, vectors, batch), none_is_leaf=False)
            with _scoring(model, own_loss, dtype), twice_differentiable_moments(), without_tf32():
                return [np.asarray(d) for d in function(*tensors)]

        return call

    return run(first), run(second)


def _jax_derivatives(context: Context, training: bool, heat: Callable[[Any], Any]) -> tuple[Derivative, Derivative]:
    import jax

    def traced(forward: Callable[[], Any]) -> Any:
        return jax.tree.map(lambda result: jax.numpy.zeros(result.shape, result.dtype), jax.eval_shape(forward))

    model, dtype, masks = context.model, context.dtype(), _mask_variables(context.model)
    try:
        # Run eagerly, each operation would be compiled separately, which takes seconds.
        own_loss = _own_loss(model, context.data[0], traced)
    except TypeError:  # JAX's where the loss reads a tensor that the call has stored, or an output is no array
        own_loss = _own_loss(model, context.data[0])
    scored = {id(w.variable) for w in context.weights} | {id(m) for m in masks}
    variables = [w.variable for w in context.weights]
    others = [v for v in model.variables if id(v) not in scored]
    layouts = [device_layout(v) for v in variables]
    products = on_host(variables)  # some of XLA's convolutions on a CPU are many times slower than its products

    def loss(values: list[Any], constants: list[Any], batch: Any) -> Any:
        updates = [*zip(variables, values, strict=True), *zip(others, constants, strict=True)]
        updates += [(m, jax.numpy.ones(m.shape, bool)) for m in masks]
        return _loss(model, updates, batch, training, heat)

    def curvature(values: list[Any], vectors: list[Any], constants: list[Any], batch: Any) -> Any:
        return jax.jvp(lambda v: jax.grad(loss)(v, constants, batch), (values,), (vectors,))[1]

    first = jax.jit(lambda values, vectors, constants, batch: jax.grad(loss)(values, constants, batch))
    second = jax.jit(curvature)

    def run(function: Any) -> Derivative:
        def call(values: list[np.ndarray], vectors: list[np.ndarray], batch: Batch) -> list[np.ndarray]:
            # Float64 arrays, and int64 class ids, in the types that JAX has.
            batch = jax.tree.map(lambda part: part.astype(jax.dtypes.canonicalize_dtype(part.dtype)), batch)
            # Spread like the weights: what only several devices together can hold is not put on one of them.
            spread = [list(map(keras.distribution.distribute_tensor, part, layouts)) for part in (values, vectors)]
            with _scoring(model, own_loss, dtype, products), jax.default_matmul_precision("highest"):
                return [to_numpy(d) for d in function(*spread, [v.value for v in others], batch)]

        return call

    return run(first), run(second)


def _tf_keras_derivatives(
    context: Context, training: bool, heat: Callable[[Any], Any]
) -> tuple[Derivative, Derivative]:
    from .gradients_tf_keras import derivatives

    return derivatives(context, training, heat, _no_loss)


_DERIVATIVES = {"tensorflow": _tensorflow_derivatives, "jax": _jax_derivatives, "tf_keras": _tf_keras_derivatives}


def _heat(model: Any, temperature: float) -> Callable[[Any], Any]:
    """Return a function that applies the temperature to outputs, as if the logits had been divided by it."""
    if temperature == 1:
        return lambda outputs: outputs
    ops = library_of(model).ops

    def heated(output: Any, loss: Any) -> Any:
        kind = _probabilities(loss)
        # Below this a float32 has no reciprocal; no gradient comes from there.
        safe = lambda p: ops.log(ops.maximum(p, 1e-37))  # noqa: E731
        if kind == "softmax":
            return ops.softmax(safe(output) / temperature)
        if kind == "sigmoid":
            return ops.sigmoid((safe(output) - safe(1 - output)) / temperature)
        return output / temperature

    def heat(outputs: Any) -> Any:
        flat = keras.tree.flatten(outputs)
        losses = keras.tree.flatten(model.loss)
        losses = losses if len(losses) == len(flat) else losses[:1] * len(flat)
        return keras.tree.pack_sequence_as(outputs, [heated(o, loss) for o, loss in zip(flat, losses, strict=True)])

    return heat


def _probabilities(loss: Any) -> str:
    """Return the activation, "softmax" or "sigmoid", whose probabilities the loss expects, or "" if it expects none."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name.lower().replace("_", "")
    if "crossentropy" not in name or (hasattr(loss, "get_config") and loss.get_config().get("from_logits")):
        return ""
    return "sigmoid" if "binary" in name else "softmax"
