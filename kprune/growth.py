"""Masks that may grow: drop-and-grow moves weights at constant density, and splicing lets pruned weights return."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from .config import PruningConfig
from .criteria import CRITERIA, Compiled, Context, Scores, gradient, random
from .criteria.loss import signed_gradient
from .criteria.trackers import ArrayTracker
from .masks import MaskedWeight, Masks, masked_weights
from .runtime.distribution import outside_strategies
from .util.checks import check_number
from .util.registry import Registry, trait

METHODS = Registry("method")
METHODS.register("set")(random)
METHODS.register("rigl", anneals=True)(gradient)


class GradientMomentum(ArrayTracker):
    """Running means of the loss gradients, for the method "snfs": M <- 0.9 M + 0.1 dL/dw, starting from 0.

    An estimate of the momentum of arXiv:1907.04840: of gradients on these data, taken when `after_step` is called, not
    of those of all training batches, which no callback sees. A pruned weight has the gradient that it would have if it
    returned, as 0.

    Args:
        data, batches: as in `kprune.prune`; each gradient is summed over all that is taken here.

    Attributes:
        arrays: M, float64 arrays of the weights' shapes, in model order.

    Raises:
        ValueError: there are no data.

    >>> import keras, kprune
    >>> dense = keras.layers.Dense(1, use_bias=False, name="dense")
    >>> model = keras.Sequential([keras.Input((3,)), dense], name="net")
    >>> dense.set_weights([np.array([[1.0], [0.0], [0.0]])]); model.compile("sgd", "mse")
    >>> _ = kprune.prune(model, "magnitude", 0.6)
    >>> momentum = GradientMomentum((np.array([[1.0, 2.0, 4.0]]), np.array([[0.0]])))
    >>> momentum.after_step(model)  # dL/dw = 2, 4, 8
    >>> [[round(m, 6) for m in array.ravel().tolist()] for array in momentum.arrays]
    [[0.2, 0.4, 0.8]]
    >>> masks = drop_and_grow(model, "snfs", {"net/dense/kernel": 1}, 1.0, trackers=momentum)
    >>> masks["net/dense/kernel"].ravel().tolist()
    [False, False, True]
    """

    decay = 0.9

    def __init__(self, data: Any, batches: int | None = 1):
        super().__init__()
        self._data, self._compiled = PruningConfig(gradient).take(data, batches), Compiled()

    def after_step(self, model: Any) -> None:
        """Compute the gradients of the model in its current state and add them to the running means."""
        weights = masked_weights(model)
        arrays = self.of(weights) if self.arrays else {weight.path: np.zeros(weight.shape) for weight in weights}
        masks = {weight.path: weight.kept() for weight in weights}
        context = Context(model, weights, masks, data=self._data, compiled=self._compiled.of(model))
        gradients = outside_strategies(lambda: signed_gradient(context))
        # An overflow in float16 must not stay in the mean.
        self.arrays = [
            self.decay * arrays[w.path] + (1 - self.decay) * np.nan_to_num(gradients[w.path], posinf=0.0, neginf=0.0)
            for w in weights
        ]

    def forget_programs(self) -> None:
        """Drop the compiled programs, which cannot be pickled."""
        self._compiled = Compiled()


@METHODS.register("snfs", anneals=True, tracker=GradientMomentum)
def snfs(context: Context) -> Scores:
    """Sparse momentum: score = |M|, the running mean of gradients from `GradientMomentum` (arXiv:1907.04840)."""
    return {path: np.abs(momentum) for path, momentum in context.tracker.of(context.weights).items()}


def drop_and_grow(
    model: Any,
    method: str | Callable[[Context], Scores],
    n_keep: dict[str, int],
    share: float,
    *,
    pattern: str | Callable[..., Any] = "unstructured",
    seed: int = 0,
    data: Any = None,
    batches: int | None = 1,
    trackers: Any = None,
    compiled: Compiled | None = None,
) -> Masks:
    """Return the masks after an update in which each weight drops its smallest entries and grows others.

    Of the k entries that a weight keeps, floor(share * k) of the smallest magnitude are dropped, more where `n_keep` is
    below what is left; then entries are grown until it keeps n_keep: those with the highest scores of the method among
    all that are not kept, the dropped ones included. Ties go by index. The model is not changed.

    Args:
        model: a masked model of either Keras.
        method: "set" (arXiv:1707.04780: at random), "rigl" (arXiv:1911.11134: largest gradient of the loss), "snfs"
            (arXiv:1907.04840: largest running mean of gradients), or a function as a criterion: of a
            `kprune.criteria.Context` to path -> scores, higher = grow.
        n_keep: path -> number of entries to keep.
        share: fraction of a weight's entries that are dropped, in [0, 1].
        pattern: as in `kprune.PruningConfig`.
        seed: of methods that draw random numbers.
        data, batches: as in `kprune.prune`, for methods that ask the loss.
        trackers: as in `kprune.prune`; for "snfs" a `GradientMomentum`.
        compiled: as in `PruningConfig.masks`.

    Returns:
        path -> bool array of the weight's shape, True = kept.

    Raises:
        ValueError: an argument is wrong, or a score is NaN or infinite.

    >>> import keras, kprune
    >>> dense = keras.layers.Dense(1, use_bias=False, name="dense")
    >>> model = keras.Sequential([keras.Input((4,)), dense], name="net")
    >>> dense.set_weights([np.array([[1.0], [2.0], [0.0], [0.0]])])
    >>> masks = kprune.prune(model, "magnitude", 0.5)
    >>> moved = drop_and_grow(model, lambda context: {"net/dense/kernel": np.array([[1.0], [9.0], [2.0], [3.0]])},
    ...     {"net/dense/kernel": 2}, share=0.5)
    >>> moved["net/dense/kernel"].ravel().tolist()  # 1.0 goes; of the others the last scores highest
    [False, True, False, True]
    """
    grow = METHODS.get(method)
    check_number("share", share, "from 0 to 1", lambda value: 0 <= value <= 1)
    weights = masked_weights(model)
    for weight in weights:
        n = n_keep.get(weight.path) if isinstance(n_keep, dict) else None
        if not isinstance(n, Integral) or isinstance(n, bool) or not 0 <= n <= weight.size:
            raise ValueError(
                f"`n_keep` must be a dict with an integer from 0 to {weight.size} for {weight.path}. Received: "
                f"n_keep={n_keep!r:.200}"
            )
    batched = PruningConfig(grow).take(data, batches) or None
    kept = {weight.path: int(weight.kept().sum()) for weight in weights}
    left = {path: min(n_keep[path], count - math.floor(share * count)) for path, count in kept.items()}
    survivors = _cut(model, "magnitude", left, pattern)

    @functools.wraps(grow)  # its tracker, and its name in messages
    def scores(context: Context) -> Scores:
        grown = {path: np.asarray(score, np.float64) for path, score in grow(context).items()}
        # Above all that can be grown: a survivor stays.
        return {path: np.where(survivors[path], 2 * abs(score.max()) + 1, score) for path, score in grown.items()}

    options: dict[str, Any] = {"within": open_masks(weights), "data": batched, "batches": None}
    options |= {"trackers": trackers, "compiled": compiled}
    return _cut(model, scores, n_keep, pattern, seed, **options)


def share_at(method: Callable[..., Any], share: float, progress: float) -> float:
    """Return the fraction to drop at a progress from 0 to 1; annealing methods reduce it to 0 along a half cosine.

    >>> round(share_at(METHODS.get("rigl"), 0.3, 0.5), 6), share_at(METHODS.get("set"), 0.3, 0.5)
    (0.15, 0.3)
    """
    check_number("share", share, "from 0 to 1", lambda value: 0 <= value <= 1)
    check_number("progress", progress, "from 0 to 1", lambda value: 0 <= value <= 1)
    return share * (1 + math.cos(math.pi * progress)) / 2 if trait(method, "anneals", False) else share


def splice(
    config: PruningConfig, model: Any, sparsity: float | dict[str, float] | None, margin: float, **options: Any
) -> Masks:
    """Return the masks to which a config prunes a model if pruned weights are allowed to return (arXiv:1608.04493).

    score = the criterion's, raised by the margin where the entry is kept now (s * margin if s > 0, else s / margin). So
    there are two thresholds, in the ratio of the margin: below the lower one a kept entry goes, above the higher one a
    pruned entry returns. They lie where as many are kept as the sparsity says. A model that is sparser keeps its masks.

    Args:
        config: what to prune by; its criterion scores pruned entries, too, by the values that they have.
        model: a masked model; with `kprune.mask(model, store="latent")` pruned entries have values.
        sparsity: as in `kprune.prune`.
        margin: at least 1.
        options: of `PruningConfig.masks`.

    >>> import keras, kprune
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((4,)), dense])
    >>> _ = kprune.mask(model, store="latent")
    >>> dense.set_weights([np.array([[4.0], [3.0], [2.0], [1.0]])])
    >>> _ = kprune.prune(model, "magnitude", 0.5)
    >>> dense.set_weights([np.array([[4.0], [3.0], [3.3], [3.9]])])
    >>> masks = splice(kprune.PruningConfig(), model, 0.5, margin=1.2)
    >>> [mask.ravel().tolist() for mask in masks.values()]  # 3.9 is above 3.0 * 1.2
    [[True, False, False, True]]
    """
    if not isinstance(config, PruningConfig):
        raise ValueError(f"`config` must be a kprune.PruningConfig. Received: config={config!r:.200}")
    check_number("margin", margin, ">= 1", lambda value: value >= 1)
    criterion, weights = CRITERIA.get(config.criterion), masked_weights(model)
    current = {weight.path: weight.kept() for weight in weights}

    def raised(context: Context) -> Scores:
        scores = {path: np.asarray(score) for path, score in criterion(context).items()}
        return {p: np.where(current[p], np.maximum(s * margin, s / margin), s) for p, s in scores.items()}

    raised.__name__ = config.name
    for name, default in (("needs", ()), ("tracker", None), ("revives", False)):
        setattr(raised, name, trait(criterion, name, default))
    masks = replace(config, criterion=raised).masks(model, sparsity, within=open_masks(weights), **options)
    denser = sum(int(masks[path].sum()) - int(mask.sum()) for path, mask in current.items()) > 0
    return current if denser else masks


def open_masks(weights: list[MaskedWeight]) -> Masks:
    """Return masks of the entries that may be kept: all in trainable weights, only those kept now in frozen weights."""
    return {weight.path: weight.kept() | weight.trainable for weight in weights}


def _cut(model: Any, criterion: Any, n_keep: dict[str, int], pattern: Any, seed: int = 0, **options: Any) -> Masks:
    """Return masks that keep the given number of highest-scoring entries in each weight."""
    config = PruningConfig(criterion, scope=lambda scores, sparsity: n_keep, pattern=pattern, rounds=1, seed=seed)
    return config.masks(model, 0.0, **options)


__all__ = ["METHODS", "GradientMomentum", "drop_and_grow", "open_masks", "share_at", "splice"]
