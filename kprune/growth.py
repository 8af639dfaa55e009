"""Drop and grow: move weights to other places while the network trains, at constant density."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .config import PruningConfig
from .criteria import Context, Scores, gradient, random
from .masks import Masks, masked_weights
from .util.registry import Registry

METHODS = Registry("method")
METHODS.register("set")(random)
METHODS.register("rigl", anneals=True)(gradient)


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
) -> Masks:
    """The masks of an update: each weight drops its smallest entries and grows as many others in their place.

    Of the k entries that a weight keeps, floor(share * k) of the smallest magnitude are dropped, more where `n_keep` is
    below what is left; then entries are grown until it keeps n_keep: those with the highest scores of the method among
    all that are not kept, the dropped ones included. Ties go by index. The model is not changed.

    Args:
        model: a masked model of either Keras.
        method: "set" (arXiv:1707.04780: at random), "rigl" (arXiv:1911.11134: largest gradient of the loss), or a
            function as a criterion: of a `kprune.criteria.Context` to path -> scores, higher = grow.
        n_keep: path -> number of entries to keep.
        share: fraction of a weight's entries that are dropped, in [0, 1].
        pattern: as in `kprune.PruningConfig`.
        seed: of methods that draw random numbers.
        data, batches: as in `kprune.prune`, for methods that ask the loss.

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
    batched = PruningConfig(grow).take(data, batches) or None
    weights = masked_weights(model)
    kept = {weight.path: int(weight.kept().sum()) for weight in weights}
    left = {path: min(n_keep[path], count - math.floor(share * count)) for path, count in kept.items()}
    survivors = _cut(model, "magnitude", left, pattern)

    def scores(context: Context) -> Scores:
        grown = {path: np.asarray(score, np.float64) for path, score in grow(context).items()}
        # Above all that can be grown: a survivor stays.
        return {path: np.where(survivors[path], 2 * abs(score.max()) + 1, score) for path, score in grown.items()}

    everything = {weight.path: np.ones(weight.shape, bool) for weight in weights}
    return _cut(model, scores, n_keep, pattern, within=everything, data=batched, batches=None, seed=seed)


def _cut(model: Any, criterion: Any, n_keep: dict[str, int], pattern: Any, seed: int = 0, **options: Any) -> Masks:
    """The masks of the highest scores, by given numbers of entries."""
    config = PruningConfig(criterion, scope=lambda scores, sparsity: n_keep, pattern=pattern, rounds=1, seed=seed)
    return config.masks(model, 0.0, **options)


__all__ = ["METHODS", "drop_and_grow"]
