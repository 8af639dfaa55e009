"""Criteria that use the loss, and therefore need data: SNIP, its iterative forms, GraSP, Taylor and Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..data.batches import examples
from ..util.threads import side_by_side
from .base import CRITERIA, Context, Scores
from .engines.derivatives import gradients_of


@CRITERIA.register("snip", needs=("data", "loss"))
def snip(context: Context, training: bool = False) -> Scores:
    """Connection sensitivity: score = |w * dL/dw|, divided by its sum over all weights (arXiv:1810.02340).

    L is the compiled loss, its gradient summed over the batches; the weights are those under the current masks. In
    several rounds it is iterative SNIP, see `iterative_snip`.

    Args:
        context: needs data; the authors use one batch, 10 examples per class in the SynFlow paper
            (`kprune.balanced_sample`).
        training: True for batch normalization and dropout in training mode.

    Returns:
        path -> float64 array of the weight's shape, >= 0, without unit; they sum to 1. Weights that are pruned have
        the score that they would have if they returned (FORCE).

    Raises:
        ValueError: the model is not compiled with a loss.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0], [2.0]])]); model.compile("sgd", "mse")
    >>> _ = kprune.prune(model, "snip", 0.5, data=(np.array([[3.0, 1.0]]), np.array([[0.0]])))  # |w dL/dw| = 30, 20
    >>> dense.kernel.numpy().tolist()
    [[1.0], [0.0]]
    """
    values = [value for _, value in context.values()]
    scores = _each(context, _times, _summed(context, training, 1.0), values)
    _each(context, lambda score: np.abs(score, out=score), scores)
    return _normalized(context, scores, sum(_each(context, _total, scores)))


@CRITERIA.register("iterative_snip", needs=("data", "loss"), default_rounds=100)
def iterative_snip(context: Context, training: bool = False) -> Scores:
    """SNIP in rounds, each of which scores and prunes the survivors of the previous one (arXiv:2006.09081).

    score = |w * dL/dw| at the masked weights, as `snip`, with 100 rounds by default.

    Returns:
        As `snip`.

    >>> import kprune
    >>> kprune.criteria.iterative_snip.default_rounds
    100
    """
    return snip(context, training)


@CRITERIA.register("force", needs=("data", "loss"), default_rounds=100, revives=True)
def force(context: Context, training: bool = False) -> Scores:
    """Foresight connection sensitivity (FORCE): iterative SNIP in which pruned weights may return (arXiv:2006.09081).

    score = |w * dL/dw|, where the gradient is taken at the masked weights and w is the weight itself, so that a weight
    which an earlier round cut is scored, too, and returns if it would matter now. 100 rounds by default. What the
    model itself had pruned before stays pruned.

    Returns:
        As `snip`.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> masks = kprune.prune(model, "force", 0.5, rounds=5, data=(np.ones((4, 8)), np.ones((4, 1))))
    >>> sum(int(mask.sum()) for mask in masks.values())
    18
    """
    return snip(context, training)


@CRITERIA.register("gradient", needs=("data", "loss"))
def gradient(context: Context, training: bool = False) -> Scores:
    """The gradient's magnitude: score = |dL/dw| (used by RigL, arXiv:1911.11134).

    L is the compiled loss, its gradient summed over the batches, at the weights under the current masks; a pruned
    weight has the gradient that it would have if it returned, as 0.

    Args:
        context: needs data.
        training: True for batch normalization and dropout in training mode.

    Returns:
        path -> float64 array of the weight's shape, >= 0, in units of the loss over those of the weight.

    Raises:
        ValueError: the model is not compiled with a loss.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0], [2.0]])]); model.compile("sgd", "mse")
    >>> _ = kprune.prune(model, "gradient", 0.5, data=(np.array([[3.0, 1.0]]), np.array([[0.0]])))  # |dL/dw| = 30, 10
    >>> dense.kernel.numpy().tolist()
    [[1.0], [0.0]]
    """
    return {path: np.abs(g) for path, g in signed_gradient(context, training).items()}


def signed_gradient(context: Context, training: bool = False) -> Scores:
    """Return dL/dw with its sign; everything else is as in `gradient`."""
    return _by_path(context, _summed(context, training, 1.0))


@CRITERIA.register("grasp", needs=("data", "loss"))
def grasp(context: Context, training: bool = False, temperature: float = 200.0) -> Scores:
    """Gradient signal preservation: score = w * (H g) / |sum of w * (H g)|, which is signed (arXiv:2002.07376).

    g is the gradient of the loss, summed over the batches, and H its Hessian, both at logits divided by the
    temperature; the Hessian-gradient product is exact. The highest scores are kept: removing a weight of low score
    lowers the gradient's norm least, or raises it. Computed in float32, or in float64 where the model's weights are.

    Args:
        context: needs data, 10 examples per class in the paper (`kprune.balanced_sample`).
        training: True for batch normalization and dropout in training mode.
        temperature: 200 in the paper. Where the loss takes probabilities (softmax or sigmoid outputs), they are what
            the divided logits would have made them.

    Returns:
        path -> float64 array of the weight's shape, any sign, without unit.

    Raises:
        ValueError: the model is not compiled with a loss.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(3)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> masks = kprune.prune(model, "grasp", 0.5, data=(np.eye(6, 8), np.array([0, 1, 2, 0, 1, 2])))
    >>> sum(int(mask.sum()) for mask in masks.values())
    22
    """
    values = context.kept_values()
    # A pruned weight has no gradient: what would flow to it is not part of the network's.
    kept = [context.masks[weight.path] for weight in context.weights]
    gradients = _summed(context, training, temperature)
    total = _each(context, lambda g, value, mask: g.astype(value.dtype) * mask, gradients, values, kept)
    derivatives = gradients_of(context, training, temperature)
    products = _sum(context, (derivatives.curvature(values, total, batch) for batch in context.data))
    scores = _each(context, _times, products, values)
    return _normalized(context, scores, abs(sum(_each(context, _total, scores))))


@CRITERIA.register("taylor", needs=("data", "loss"))
def taylor(context: Context, training: bool = False) -> Scores:
    """First-order Taylor expansion: score = mean over batches of |w * dL/dw| (arXiv:1611.06440).

    The loss's change to first order if the weight were removed; absolute before the mean, so that batches do not
    cancel as in SNIP. With `pattern="channel"` it ranks whole filters, as the paper does.

    Args:
        context: needs data.
        training: True for batch normalization and dropout in training mode.

    Returns:
        path -> float64 array of the weight's shape, >= 0, in units of the loss.

    Raises:
        ValueError: the model is not compiled with a loss.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0], [2.0]])]); model.compile("sgd", "mse")
    >>> _ = kprune.prune(model, "taylor", 0.5, data=(np.array([[3.0, 1.0]]), np.array([[0.0]])))
    >>> dense.kernel.numpy().tolist()
    [[1.0], [0.0]]
    """
    values, derivatives = context.kept_values(), gradients_of(context, training)
    parts = (
        [np.abs(v * g) for v, g in zip(values, derivatives.gradient(values, b), strict=True)] for b in context.data
    )
    return _by_path(context, [part / len(context.data) for part in _sum(context, parts)])


@CRITERIA.register("fisher", needs=("data", "loss"))
def fisher(context: Context) -> Scores:
    """Optimal brain damage with the empirical Fisher diagonal: score = w^2 * mean of (dL_i/dw)^2 / 2.

    The loss's change to second order if the weight were removed, where the Hessian's diagonal is taken to be that of
    the Fisher information, from the gradient of each example's own loss L_i (LeCun et al., Optimal Brain Damage, 1989;
    arXiv:1801.05787). Batch normalization is in inference mode. One backward pass per example.

    Returns:
        path -> float64 array of the weight's shape, >= 0, in squared units of the loss.

    Raises:
        ValueError: the model is not compiled with a loss.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0], [2.0]])]); model.compile("sgd", "mse")
    >>> _ = kprune.prune(model, "fisher", 0.5, data=(np.array([[3.0, 1.0]]), np.array([[0.0]])))
    >>> dense.kernel.numpy().tolist()
    [[1.0], [0.0]]
    """
    values, derivatives = context.kept_values(), gradients_of(context)
    singles = [example for batch in context.data for example in examples(batch)]
    parts = ([g.astype(np.float64) ** 2 for g in derivatives.gradient(values, one)] for one in singles)
    squares = _sum(context, parts)
    return _by_path(context, [v**2 * square / len(singles) / 2 for v, square in zip(values, squares, strict=True)])


def _summed(context: Context, training: bool, temperature: float) -> list[np.ndarray]:
    """The gradient with respect to the masked weights, summed over the batches."""
    values, derivatives = context.kept_values(), gradients_of(context, training, temperature)
    return _sum(context, (derivatives.gradient(values, batch) for batch in context.data))


def _sum(context: Context, parts: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    """Return the sum of lists of arrays, entry by entry, in float64."""
    total: list[np.ndarray] = []
    for part in parts:
        if not total:
            total = _each(context, lambda array: array.astype(np.float64), part)
        else:
            _each(context, lambda array, more: np.add(array, more, out=array), total, part)
    return total


def _each(context: Context, function: Callable[..., Any], *lists: list[np.ndarray]) -> list[Any]:
    """Return the function's results for the arrays of each weight, computed side by side."""
    return side_by_side(lambda arrays: function(*arrays), zip(*lists, strict=True), context.size)


def _times(array: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.multiply(array, value, out=array)


def _total(score: np.ndarray) -> float:
    return float(score.sum())


def _normalized(context: Context, scores: list[np.ndarray], total: float) -> Scores:
    """Divide the scores by a total, in place, and return them by path."""
    if total > 0:  # otherwise all scores are zero, or they cancel: they are left as they are
        _each(context, lambda score: np.divide(score, total, out=score), scores)
    return _by_path(context, scores)


def _by_path(context: Context, scores: list[np.ndarray]) -> Scores:
    return dict(zip((weight.path for weight in context.weights), scores, strict=True))
