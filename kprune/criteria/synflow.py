"""SynFlow: iterative synaptic flow pruning, which needs no data and avoids layer collapse."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from absl import logging

from ..masks import MaskedWeight, Masks, library_of
from ..masks.below import all_layers
from ..masks.masked_layers import is_masked
from ..runtime.distribution import to_numpy, undistributed
from ..runtime.inputs import call_with, input_like
from .base import CRITERIA, Context, Scores
from .engines import synflow_host, synflow_loop
from .engines.linearize import linearized
from .engines.precision import float64_on, host_of_jax
from .engines.synflow_loop import SMALLEST

# Takes bool masks in the order of the weights; returns R and one array of scores per weight.
Scorer = Callable[[list[np.ndarray]], tuple[float, list[np.ndarray]]]


def _rounds(power: int, context: Context, n_keep: list[int], advance: Callable[[int], Any]) -> Masks | None:
    """Run all rounds in one loop for a Keras 3 model; return None for other models, or if `_flow` must check scores."""
    if library_of(context.model).backend() not in ("tensorflow", "jax"):
        return None
    context.once("synflow's warning", lambda: _warn_of_biases(context.model))
    flow = _make_flow(context, power, _inputs(context, "ones"))
    device = synflow_loop.accelerator(context)
    if device is None:
        return synflow_host.run_rounds(flow, context, n_keep, advance)
    return synflow_loop.run_rounds(flow, context, n_keep, device, advance)


@CRITERIA.register("synflow", default_rounds=100, loop=functools.partial(_rounds, 1))
def synflow(context: Context, inputs: str = "ones") -> Scores:
    """Synaptic flow: score = |w * dR/dw|, where R is the sum of the outputs at an all-ones input (arXiv:2006.05467).

    R is the output of the network in which every weight, bias and normalization parameter (gamma, beta, moving mean
    and variance) is replaced by its absolute value and pruned weights by 0, at a batch of 1; normalization in
    inference mode, dropout off, activations that are not positively homogeneous made identity. Everything is computed
    in float64 on the host CPU (R reaches 1e66 on ResNet-50), the scorer is traced once for all rounds, and the model
    itself is not touched.

    The paper's algorithm is 100 rounds of it, each pruning to density final ** (r / 100) over all layers together:
    that is the default of `kprune.prune(model, "synflow", ...)`, with `scope="global"`.

    Args:
        context: needs no data, unless `inputs` is "mean".
        inputs: "ones", or "mean": the absolute value of the mean of `data`, as
            `kprune.prune(model, functools.partial(kprune.criteria.synflow, inputs="mean"), 0.9, data=(x, y))`.

    Returns:
        path -> float64 array of the weight's shape, >= 0, in units of R; 0 for weights that are pruned already.

    Raises:
        ValueError: a layer cannot be linearized (named), an input's shape is not fixed, a score is infinite or NaN,
            the gain falls below float64, or before any pruning all scores of a weight are zero (a zero-initialized
            gamma on its path, for example).

    >>> import keras, kprune, numpy as np
    >>> first, second = keras.layers.Dense(2, use_bias=False), keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), first, second])
    >>> first.set_weights([np.array([[1.0, -2.0]])]); second.set_weights([np.array([[3.0], [1.0]])])
    >>> _ = kprune.prune(model, "synflow", sparsity=0.5)
    >>> first.kernel.numpy().tolist(), second.kernel.numpy().tolist()
    ([[1.0, 0.0]], [[3.0], [0.0]])
    """
    return _flow(context, 1, inputs)


@CRITERIA.register("synflow_l2", default_rounds=100, loop=functools.partial(_rounds, 2))
def synflow_l2(context: Context, inputs: str = "ones") -> Scores:
    """SynFlow with squares: score = w^2 * dR/d(w^2), where R sums the product of squared weights over all paths.

    As `synflow`, but every parameter enters by its square, so that R is the path norm, the trace of the path kernel
    (arXiv:2108.10589); a moving variance v becomes v^2, which is exact but for the normalization's epsilon.

    Args:
        context, inputs: as of `synflow`.

    Returns:
        As `synflow`.

    >>> import keras, kprune, numpy as np
    >>> first, second = keras.layers.Dense(2, use_bias=False), keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), first, second])
    >>> first.set_weights([np.array([[1.0, -2.0]])]); second.set_weights([np.array([[3.0], [1.0]])])
    >>> _ = kprune.prune(model, "synflow_l2", sparsity=0.5)  # paths of 9 and 4
    >>> first.kernel.numpy().tolist(), second.kernel.numpy().tolist()
    ([[1.0, 0.0]], [[3.0], [0.0]])
    """
    return _flow(context, 2, inputs)


def _flow(context: Context, power: int, inputs: str) -> Scores:
    if inputs not in ("ones", "mean") or (inputs == "mean" and not context.data):
        raise ValueError(f"`inputs` must be 'ones' or 'mean', and 'mean' requires `data`. Received: inputs={inputs!r}")
    context.once("synflow's warning", lambda: _warn_of_biases(context.model))
    scorer = context.once(f"synflow {power} {inputs}", lambda: _make_scorer(context, power, inputs))
    total, scores = scorer([context.masks[weight.path] for weight in context.weights])
    untouched = all(mask.all() for mask in context.masks.values())
    for i, (weight, score) in enumerate(zip(context.weights, scores, strict=True)):
        if not (np.isfinite(total) or np.isfinite(score).all()):
            raise ValueError(
                f"SynFlow's scores for {weight.path} are infinite or NaN: the network's gain ({total}) overflows "
                f"float64. Scale the weights down, or use another criterion. Received: model={context.model.name!r}"
            )
        if 0 < total < SMALLEST or (untouched and not score.any() and _vanishes(context, power, inputs, i)):
            raise ValueError(
                f"SynFlow's scores for {weight.path} are all 0: the network's gain ({total}) underflows float64. "
                f"Scale the weights up, or use another criterion. Received: model={context.model.name!r}"
            )
        if untouched and not score.any():
            raise ValueError(
                f"All SynFlow scores of {weight.path} are zero: no path through it reaches the output, often because "
                "a normalization layer's gamma was initialized to zero. Exclude the layer with `filters`, or set "
                f"that gamma to another value. Received: model={context.model.name!r}"
            )
    return dict(zip((weight.path for weight in context.weights), scores, strict=True))


def log_flow(context: Context) -> tuple[float, Scores]:
    """Return log R, and d(log R)/dw = sign(w) * dR/d|w| / R of each weight, which is 0 where w is pruned or 0.

    Raises:
        ValueError: R is 0, or beyond float64.
    """
    total, scores = _make_scorer(context, 1, "ones")([context.masks[weight.path] for weight in context.weights])
    if not (np.isfinite(total) and total >= SMALLEST and all(np.isfinite(score).all() for score in scores)):
        raise ValueError(
            f"The network's synaptic flow ({total}) is 0 or outside the range of float64, so its logarithm has no "
            "gradient: make sure that no layer is pruned completely, or rescale the weights. Received: "
            f"model={context.model.name!r}"
        )
    values = [weight.value().astype(np.float64) for weight in context.weights]
    slopes = [
        np.divide(s, value * total, where=value != 0, out=np.zeros_like(s))
        for s, value in zip(scores, values, strict=True)
    ]
    return math.log(total), dict(zip((weight.path for weight in context.weights), slopes, strict=True))


def _vanishes(context: Context, power: int, inputs: str, i: int) -> bool:
    """Return whether a weight's scores are zero only because float64 underflows, not because no path exists.

    A root of every parameter brings the gain closer to 1, and leaves zero what is zero.
    """
    for root in (2, 4, 8, 16, 64):
        total, scores = _make_scorer(context, power / root, inputs)([np.ones(w.shape, bool) for w in context.weights])
        if np.isfinite(total) and scores[i].any():
            return True
    return False


def _make_scorer(context: Context, power: float = 1, inputs: str = "ones") -> Scorer:
    backend = library_of(context.model).backend()
    if backend not in _SCORERS:
        raise ValueError(
            "SynFlow requires the tensorflow or jax backend: set KERAS_BACKEND before importing keras. Received: "
            f"keras.backend.backend()={backend!r}"
        )
    return _SCORERS[backend](context, power, _inputs(context, inputs))


def _make_flow(context: Context, power: float, given: dict[str, Any]) -> _Flow:
    absolute = [np.abs(weight.value().astype(np.float64)) ** power for weight in context.weights]
    constants = _constants(context.model, context.weights, power)
    return _Flow(context.model, context.weights, absolute, constants, given)


def _inputs(context: Context, inputs: str) -> dict[str, Any]:
    """Return the arguments of the model's call, as NumPy arrays with a batch size of 1."""
    if inputs == "ones":
        return input_like(context.model, lambda shape, dtype: np.ones(shape, "float64" if "float" in dtype else dtype))

    def mean(*parts: np.ndarray) -> np.ndarray:
        return np.abs(np.concatenate(parts).astype(np.float64).mean(0, keepdims=True))

    return {"": keras.tree.map_structure(mean, *(x for x, _, _ in context.data))}


def _constants(model: Any, weights: list[MaskedWeight], power: float) -> list[tuple[Any, np.ndarray]]:
    """Return the model's unscored variables and their values: |v| ** power for floats, True for all masks."""
    scored = {id(weight.variable) for weight in weights}
    masks = {id(m) for layer in all_layers(model) if is_masked(layer) for m in layer.mask_store.masks}
    values = []
    for v in model.variables:
        if id(v) not in scored:
            value = to_numpy(v)
            if id(v) in masks:
                value = np.ones_like(value)
            values.append((v, np.abs(value.astype(np.float64)) ** power if "float" in v.dtype else value))
    return values


@dataclass(frozen=True)
class _Flow:
    """Everything that R depends on, for a linearized Keras 3 model.

    Attributes:
        absolute: |w| ** power of each weight that is scored.
        constants: every other variable with its value.
        given: the arguments of the model's call.
    """

    model: Any
    weights: list[MaskedWeight]
    absolute: list[np.ndarray]
    constants: list[tuple[Any, np.ndarray]]
    given: dict[str, Any]

    def output(self, kernels: list[Any], constants: list[Any]) -> Any:
        """Return R, the sum of all outputs, with the given backend tensors in place of the variables."""
        scope = keras.StatelessScope()
        # `add_update` sets a value as it is; the constructor of the scope would cast it back to the variable's dtype.
        for weight, kernel in zip(self.weights, kernels, strict=True):
            scope.add_update((weight.variable, kernel))
        for (variable, _), value in zip(self.constants, constants, strict=True):
            scope.add_update((variable, value))
        with scope:
            tensors = keras.tree.map_structure(lambda x: keras.ops.convert_to_tensor(x, str(x.dtype)), self.given)
            outputs = call_with(self.model, tensors, training=False)
        return sum(keras.ops.sum(output) for output in keras.tree.flatten(outputs))


def _tensorflow_scorer(flow: _Flow) -> Scorer:
    import tensorflow as tf

    with tf.device("CPU:0"):
        kernels = [tf.constant(value) for value in flow.absolute]
        constants = [tf.constant(value) for _, value in flow.constants]

    @tf.function(autograph=False, input_signature=[[tf.TensorSpec(w.shape, tf.bool) for w in flow.weights]])
    def score(masks: list[Any]) -> Any:
        with tf.device("CPU:0"):
            kept = [tf.where(m, k, tf.zeros((), k.dtype)) for m, k in zip(masks, kernels, strict=True)]
            with tf.GradientTape() as tape:
                tape.watch(kept)
                total = flow.output(kept, constants)
            gradients = tape.gradient(total, kept, unconnected_gradients="zero")
            return total, [tf.abs(g * k) for g, k in zip(gradients, kept, strict=True)]

    traced = score.get_concrete_function()

    def scorer(masks: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        total, scores = traced(*[tf.constant(m) for m in masks])
        return float(total), [np.asarray(s) for s in scores]

    return scorer


def _jax_scorer(flow: _Flow) -> Scorer:
    import jax

    cpu = host_of_jax()

    def score(masks: list[Any], kernels: list[Any], constants: list[Any]) -> Any:
        kept = [jax.numpy.where(m, k, 0.0) for m, k in zip(masks, kernels, strict=True)]
        total, gradients = jax.value_and_grad(flow.output)(kept, constants)
        return total, [abs(g * k) for g, k in zip(gradients, kept, strict=True)]

    with float64_on(cpu), undistributed():
        kernels = [jax.numpy.asarray(value) for value in flow.absolute]
        constants = [jax.numpy.asarray(value) for _, value in flow.constants]
        masks = [jax.numpy.ones(value.shape, bool) for value in flow.absolute]
        compiled = jax.jit(score).lower(masks, kernels, constants).compile()

    def scorer(masks: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        with float64_on(cpu):
            total, scores = compiled([jax.numpy.asarray(m) for m in masks], kernels, constants)
            return float(total), [np.asarray(s) for s in scores]

    return scorer


def _tensorflow_scores(context: Context, power: float, given: dict[str, Any]) -> Scorer:
    flow = _make_flow(context, power, given)
    # XLA has no fast convolution of float64 on a CPU; TensorFlow has one.
    with linearized(context.model, products=False):
        return _tensorflow_scorer(flow)


def _jax_scores(context: Context, power: float, given: dict[str, Any]) -> Scorer:
    flow = _make_flow(context, power, given)
    with linearized(context.model, products=True):
        return _jax_scorer(flow)


def _tf_keras_scores(context: Context, power: float, given: dict[str, Any]) -> Scorer:
    from .engines.synflow_tf_keras import float64_scorer

    return float64_scorer(context.model, context.weights, power, given)


_SCORERS = {"tensorflow": _tensorflow_scores, "jax": _jax_scores, "tf_keras": _tf_keras_scores}


def _warn_of_biases(model: Any) -> None:
    biased = []
    for v in model.variables:
        path = getattr(v, "path", v.name).partition(":")[0]  # tf_keras names it "conv/bias:0"
        if path.split("/")[-1] in ("bias", "beta") and np.any(to_numpy(v)):
            biased.append(path)
    if biased:
        logging.warning(
            "SynFlow: %d biases are not zero (%s ...). They carry flow past pruned weights, so SynFlow no longer "
            "guarantees that every layer keeps some weights. Prune at initialization, or use a scope with a floor.",
            len(biased),
            biased[0],
        )
