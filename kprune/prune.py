"""Prune a model outside of `fit`: score, share the budget, cut; in one round or many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from .criteria import CRITERIA, Context
from .masks import MaskedWeight, Masks, is_tf_keras, mask, masked_weights, set_masks, strip
from .patterns import PATTERNS
from .registry import Registry
from .schedules import check_sparsity
from .scopes import SCOPES
from .threads import side_by_side


def prune(
    model: Any,
    criterion: str | Callable[..., Any],
    sparsity: float,
    *,
    scope: str | Callable[..., Any] = "global",
    pattern: str | Callable[..., Any] = "unstructured",
    rounds: int | None = None,
    seed: int = 0,
    optimizer: Any = None,
    verbose: bool = True,
) -> Masks:
    """Prune a model to a sparsity: its masks are set, its pruned weights become exactly 0.

    Round r = 1 .. rounds prunes the survivors of the round before to density (1 - sparsity) ** (r / rounds). A weight
    that is pruned does not return: on a model that is sparser than asked already, nothing happens.

    Args:
        model: a built Keras 3 model, masked first by `kprune.mask(model)` if it has no masks; or a tf_keras model
            that `kprune.mask` returned.
        criterion: a name from `kprune.criteria.CRITERIA` ("magnitude", "random", "synflow") or a function of a
            `kprune.criteria.Context` that returns path -> scores, higher = keep.
        sparsity: fraction of zeros over all masked weights, in [0, 1). Exactly floor(sparsity * size) zeros.
        scope: how it is shared among the weights: "global", "layerwise", or `kprune.scopes.with_floor(...)`.
        pattern: the shape of the zeros: "unstructured".
        rounds: number of rounds; the criterion's own number by default (100 for "synflow", else 1).
        seed: of criteria that draw random numbers.
        optimizer: of a custom training loop; its slots are reset where masks change. By default the compiled one.
        verbose: show a progress bar over the rounds.

    Returns:
        path -> bool array of the weight's shape, True = kept: the masks that the model has now.

    Raises:
        ValueError: an argument is wrong, the model has nothing to mask, or a score is NaN or infinite. The model is
            as it was then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> masks = kprune.prune(model, "magnitude", sparsity=0.9)
    >>> sum(int((~mask).sum()) for mask in masks.values())  # floor(0.9 * (8 * 16 + 16 * 4))
    172
    """
    plan = Plan(criterion, scope, pattern, rounds, seed)
    check_sparsity("sparsity", sparsity)
    fresh = mask_for_pruning(model)
    try:
        masks = plan.masks(model, sparsity, verbose)
    except BaseException:
        if fresh:
            strip(model)
        raise
    set_masks(model, masks, optimizer)
    return masks


class Plan:
    """What to prune by, checked once: criterion, scope, pattern, rounds and seed, as in `kprune.prune`."""

    def __init__(
        self,
        criterion: str | Callable[..., Any],
        scope: str | Callable[..., Any] = "global",
        pattern: str | Callable[..., Any] = "unstructured",
        rounds: int | None = None,
        seed: int = 0,
    ):
        self.criterion = _resolve(CRITERIA, criterion)
        self.scope = _resolve(SCOPES, scope)
        self.pattern = _resolve(PATTERNS, pattern)
        self.rounds = getattr(self.criterion, "default_rounds", 1) if rounds is None else rounds
        self.name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "criterion")
        self.seed = seed
        if not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 1:
            raise ValueError(f"`rounds` is a whole number, at least 1. Received: rounds={rounds!r}")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"`seed` is a whole number, at least 0. Received: seed={seed!r}")

    def masks(self, model: Any, sparsity: float, verbose: bool = False) -> Masks:
        """The masks to which the model would be pruned; the model is not changed."""
        weights = masked_weights(model)
        context = Context(model, weights, {weight.path: weight.kept() for weight in weights}, self.seed)
        steps = range(1, self.rounds + 1)
        # `delay` keeps a bar that would flash by off the screen.
        for r in tqdm(steps, desc=f"{self.name} to {sparsity:.2%} sparsity", disable=not verbose, delay=1):
            context.masks = self._cut(context, 1 - (1 - sparsity) ** (r / self.rounds))
        _warn_of_collapse(weights, context.masks)
        return context.masks

    def _cut(self, context: Context, sparsity: float) -> Masks:
        masks, scores = context.masks, self.criterion(context)
        if not isinstance(scores, dict):
            raise ValueError(f"A criterion returns a dict, path -> scores. Received: criterion={self.name!r}")

        def survivor(weight: MaskedWeight) -> np.ndarray:
            score, kept = np.asarray(scores.get(weight.path, ())), masks[weight.path]
            if score.shape != weight.shape:
                raise ValueError(
                    f"A criterion returns an array of shape {weight.shape} for {weight.path}. "
                    f"Received: criterion={self.name!r}, shape={score.shape}"
                )
            # The extremes show any NaN or infinity without a copy; only then does it matter whose they are.
            if not (np.isfinite(score.min()) and np.isfinite(score.max())) and not np.isfinite(score[kept]).all():
                raise ValueError(
                    f"The scores of {weight.path} are infinite or NaN; are the weights? "
                    f"Received: criterion={self.name!r}"
                )
            return score if kept.all() else np.where(kept, score, -np.inf)

        paths = [weight.path for weight in context.weights]
        survivors = dict(zip(paths, side_by_side(survivor, context.weights), strict=True))
        n_keep = self.scope(survivors, sparsity)

        def cut(path: str) -> np.ndarray:
            kept = self.pattern(survivors[path], min(n_keep[path], int(np.count_nonzero(masks[path]))))
            if kept.shape != masks[path].shape or kept.dtype != np.bool_:
                raise ValueError(
                    f"A pattern returns a bool array of the scores' shape {masks[path].shape}. "
                    f"Received: shape={kept.shape}, dtype={kept.dtype}"
                )
            return kept

        return dict(zip(paths, side_by_side(cut, paths), strict=True))


def mask_for_pruning(model: Any) -> bool:
    """Mask an unmasked Keras 3 model in place (True), or adopt one that tfmot wrapped; ValueError if neither can be."""
    if masked_weights(model):
        if is_tf_keras(model):
            mask(model)
        return False
    if is_tf_keras(model):
        raise ValueError(
            "A tf_keras model cannot be masked in place: use `model = kprune.mask(model).model`, then compile it. "
            f"Received: model={model.name!r}, which has no masks"
        )
    report = mask(model)
    if not report.masked:
        raise ValueError(
            f"The model has no weight that can be masked: {report.skipped}. Received: model={model.name!r}"
        )
    return True


def _resolve(registry: Registry, entry: Any) -> Callable[..., Any]:
    if not isinstance(entry, str) and not callable(entry):
        raise ValueError(f"Expected a name or a function. Received: {registry.kind}={entry!r}")
    return registry.get(entry)


def _warn_of_collapse(weights: list[MaskedWeight], masks: Masks) -> None:
    empty = [weight.path for weight in weights if not masks[weight.path].any()]
    if empty:
        logging.warning(
            "kprune: %d of %d weights were pruned to nothing (%s): unless a shortcut leads past them, nothing flows "
            "through any more. A floor helps: scope=kprune.scopes.with_floor('global', 0.01).",
            len(empty),
            len(weights),
            ", ".join(empty[:4]) + (" ..." if len(empty) > 4 else ""),
        )
