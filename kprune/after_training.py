"""Prune a trained model without retraining: the remaining weights compensate for the removed ones (SparseGPT)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .criteria import Context
from .criteria.engines.calls import calls_of
from .criteria.engines.features import features
from .data.batches import Batch, check_batches, take_batches
from .masks import MaskedWeight, Masks, library_of, masked, masked_weights, set_masks
from .masks.layout import layout_of
from .patterns import PATTERNS, n_of_m, unstructured
from .runtime.distribution import outside_strategies
from .sparsities import by_group, check_sparsities
from .util.checks import check_integer, check_number
from .util.progress import check_verbose, progress
from .util.ranking import alive, zeros_for
from .util.registry import trait

Choose = Callable[[int, np.ndarray], np.ndarray]


def prune_after_training(
    model: Any,
    sparsity: float | dict[str, float],
    *,
    data: Any,
    batches: int | None = None,
    pattern: str | Callable[..., Any] = "unstructured",
    block: int = 128,
    damping: float = 0.01,
    optimizer: Any = None,
    verbose: Any = "auto",
) -> Masks:
    """Prune a trained model in one shot, without retraining, by SparseGPT (arXiv:2301.00774).

    Layer by layer, in the order in which the model calls them, each reading what the pruned ones before it make. Of a
    layer with inputs X (examples and positions, inputs) and weights W, H = X^T X + damping * mean(diag X^T X) * I.
    Inputs are taken one after the other; with U the upper Cholesky factor of H^-1 (H^-1 = U^T U), where w_io is pruned,

        error = w_io / U_ii,    w_jo <- w_jo - error * U_ij  for all later inputs j

    keeps the outputs as close to what they were as later inputs can. Of each block of inputs, when its turn comes, the
    weights of the lowest w^2 / U_ii^2 are pruned; with n:m those of each group of m inputs of an output.

    Args:
        model: a built model, masked by `kprune.mask(model)` first if it has no masks. All masked weights must be of
            Dense or EinsumDense layers (those of attention among them) or convolutions of one group.
        sparsity: fraction of zeros of each weight, or a dict of regular expression -> fraction for some of the weights,
            as in `kprune.prune`. With n:m it must be 1 - n/m.
        data: calibration data as in `kprune.prune`, of which only the inputs are read: a few hundred examples.
        batches: how many batches of them to use; None for all.
        pattern: "unstructured", or "2:4" and the like.
        block: how many inputs share a choice, at least 1. Fewer of them know more of the errors before them.
        damping: what H's diagonal is raised by, as a fraction of its mean; > 0.
        optimizer, verbose: as in `kprune.prune`; one step of the bar for each weight.

    Returns:
        path -> bool array of the weight's shape: the masks that the model has now. Each weight has exactly
        floor(sparsity * size) zeros, more where more are pruned already; with n:m, n of each m inputs of an output are
        kept. Kept weights have changed; biases and all else have not.

    Raises:
        ValueError: an argument is wrong, or the inputs of a weight are not known or not finite. The model is as it was
            then.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0], [2.0]])])
    >>> x = np.array([[1.0, 1.0], [2.0, 2.0]])  # the second input is the first
    >>> _ = kprune.prune_after_training(model, 0.5, data=(x,), damping=1e-9)
    >>> dense.kernel.numpy().round(3).tolist()
    [[0.0], [3.0]]
    """
    check_sparsities(sparsity)
    check_batches(batches)
    check_integer("block", block, 1)
    check_number("damping", damping, "> 0", lambda value: value > 0)
    check_verbose(verbose)
    groups = _groups_of(pattern, sparsity)
    taken = take_batches(data, batches)
    with masked(model, optimizer):
        weights = {weight.path: weight for weight in masked_weights(model)}
        trained = [path for path, weight in weights.items() if weight.trainable]
        goals = {path: goal for paths, goal in by_group(trained, sparsity) for path in paths}
        ordered = outside_strategies(lambda: _in_order(model, [weights[path] for path in goals], taken[0]))
        with progress("SparseGPT", len(ordered), verbose, unit="weights", delay=1) as bar:
            for weight in ordered:
                hessian = outside_strategies(functools.partial(_hessian, model, weight, taken))
                layout, value = (
                    layout_of(weight),
                    np.where(weight.kept(), weight.value(), 0).astype(weight.value().dtype),
                )
                matrix = layout.canonical(value).astype(np.float64).reshape(-1, layout.shape[-1])
                living = layout.canonical(weight.kept()).reshape(matrix.shape)
                hessian[np.diag_indices_from(hessian)] += damping * (np.diag(hessian).mean() or 1.0)
                if groups is None:
                    edges, choose = _blocks(living, block, goals[weight.path])
                else:
                    edges, choose = _groups(layout.shape, *groups)
                new, kept = compensated(matrix, hessian, living, choose, edges)
                weight.variable.assign(layout.original(new.reshape(layout.shape)).astype(value.dtype))
                set_masks(model, {weight.path: layout.original(kept.reshape(layout.shape))}, optimizer)
                bar.update()
    return {weight.path: weight.kept() for weight in masked_weights(model)}


def compensated(
    weights: np.ndarray, hessian: np.ndarray, alive: np.ndarray, choose: Choose, edges: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pruned weights and their mask; adjust kept weights so that outputs change least (SparseGPT's solver).

    Args:
        weights: float64 array (inputs, outputs).
        hessian: (inputs, inputs), positive definite.
        alive: bool array of the weights' shape; what is False is pruned already.
        choose: (i, scores) -> bool array of the scores' shape, what is kept of the inputs i, i + 1 ..., as many as the
            scores have rows: those from an edge up to the next one. What is pruned already scores -inf.
        edges: the inputs at which a choice is made, rising, the first one 0.

    Raises:
        ValueError: the Hessian is not positive definite.

    >>> hessian = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> keep_last = lambda i, scores: np.array([[False], [True]])
    >>> compensated(np.array([[2.0], [1.0]]), hessian, np.ones((2, 1), bool), keep_last, [0])[0].round(6).tolist()
    [[0.0], [2.0]]
    """
    try:
        factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "The inputs of a layer are nearly linearly dependent, so its Hessian cannot be inverted: raise "
            f"`damping`, or pass more data. Cause: {error}"
        ) from error
    weights, kept = weights.copy(), np.zeros(weights.shape, bool)
    scale = np.diag(factor)[:, None]
    for start, stop in zip(edges, [*edges[1:], len(weights)], strict=True):
        inside = slice(start, stop)
        kept[inside] = choose(start, np.where(alive[inside], (weights[inside] / scale[inside]) ** 2, -np.inf))
        errors = np.zeros((stop - start, weights.shape[1]))
        for i in range(start, stop):
            errors[i - start] = np.where(kept[i], 0.0, weights[i]) / factor[i, i]
            weights[i + 1 : stop] -= np.outer(factor[i, i + 1 : stop], errors[i - start])
        weights[stop:] -= factor[inside, stop:].T @ errors
    return np.where(kept, weights, 0.0), kept


def _groups_of(pattern: Any, sparsity: float | dict[str, float]) -> tuple[int, int] | None:
    """Return (n, m) for an n:m pattern, None for "unstructured"; raise ValueError if pattern or sparsity is wrong."""
    found = PATTERNS.get(pattern)
    groups: tuple[int, int] | None = trait(found, "n_of_m", None)
    if groups is None and found is not unstructured:
        raise ValueError(
            f'`pattern` must be "unstructured" or an n:m pattern such as "2:4". Received: pattern={pattern!r}'
        )
    if groups is not None:
        n, m = groups
        if any(
            abs(one - (1 - n / m)) > 1e-9 for one in (sparsity.values() if isinstance(sparsity, dict) else [sparsity])
        ):
            raise ValueError(
                f"`sparsity` must be {1 - n / m:.4g} for the pattern {n}:{m}. Received: sparsity={sparsity!r}"
            )
    return groups


def _blocks(living: np.ndarray, block: int, sparsity: float) -> tuple[list[int], Choose]:
    """Return the first input of each block, and a function that chooses what a block keeps to reach the sparsity.

    It prunes fewer where later blocks have so many pruned already that all together would come out sparser.
    """
    inputs, outputs = living.shape
    total, zeros = zeros_for(living.size, sparsity), 0

    def choose(start: int, scores: np.ndarray) -> np.ndarray:
        nonlocal zeros
        stop = start + len(scores)
        pruned_later = int(np.count_nonzero(~living[stop:]))
        due = max(min(zeros_for(stop * outputs, sparsity), total - pruned_later) - zeros, 0)
        kept = unstructured(scores, min(scores.size - due, alive(scores)))
        zeros += scores.size - int(np.count_nonzero(kept))
        return kept

    return list(range(0, inputs, block)), choose


def _groups(shape: tuple[int, ...], n: int, m: int) -> tuple[list[int], Choose]:
    """Return the first input of each group of m at every kernel position, and a function that keeps n per group."""
    *positions, inputs, _ = shape
    pattern = n_of_m(n, m)

    def choose(start: int, scores: np.ndarray) -> np.ndarray:
        winners = int(np.minimum(np.count_nonzero(scores > -np.inf, axis=0), n).sum())
        return pattern(scores, winners)

    starts = [at * inputs + first for at in range(math.prod(positions)) for first in range(0, inputs, m)]
    return starts, choose


def _in_order(model: Any, weights: list[MaskedWeight], batch: Batch) -> list[MaskedWeight]:
    """Return the weights in the order their layers are called; raise ValueError if a weight's inputs are unknown."""
    calls = calls_of(_context(model), {"": batch[0]})
    for weight in weights:
        next(features(calls, weight))
    first = {id(call.layer): number for number, call in reversed(list(enumerate(calls)))}
    return sorted(weights, key=lambda weight: first[id(library_of(weight.layer).owner(weight.layer, weight.variable))])


def _hessian(model: Any, weight: MaskedWeight, data: list[Batch]) -> np.ndarray:
    """Return X^T X in float64 for a weight's inputs X over all batches; raise ValueError if it is not finite."""
    context, total = _context(model), np.zeros(())
    for x, _, _ in data:
        for inputs in features(calls_of(context, {"": x}), weight):
            wide = inputs.astype(np.float64)
            total = total + wide.T @ wide
    if not np.isfinite(total).all():
        raise ValueError(
            f"The inputs of {weight.path} contain infinite or NaN values: check the data and the weights of the "
            f"preceding layers. Received: model={model.name!r}"
        )
    return total


def _context(model: Any) -> Context:
    weights = masked_weights(model)
    return Context(model, weights, {weight.path: weight.kept() for weight in weights})


__all__ = ["compensated", "prune_after_training"]
