"""Prune a model outside of `fit`: score, share the budget, cut; in one round or many."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from .criteria import CRITERIA, Context, Scores
from .data.batches import check_batches, take_batches
from .masks import MaskedWeight, Masks, masked, masked_weights, set_masks
from .masks.layout import Layout, layout_of
from .patterns import PATTERNS, pooled, unstructured
from .runtime.distribution import outside_strategies
from .schedules import check_sparsity
from .scopes import SCOPES, global_scope, shares_of
from .selection import keep_highest
from .util.checks import check_arrays, check_expression
from .util.ranking import alive, zeros_for
from .util.registry import trait
from .util.threads import side_by_side


def prune(
    model: Any,
    criterion: str | Callable[..., Any],
    sparsity: float | dict[str, float],
    *,
    scope: str | Callable[..., Any] | None = None,
    pattern: str | Callable[..., Any] = "unstructured",
    rounds: int | None = None,
    seed: int = 0,
    data: Any = None,
    batches: int | None = 1,
    initial: dict[str, np.ndarray] | None = None,
    movement: dict[str, np.ndarray] | None = None,
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
            `kprune.criteria.Context` that returns path -> scores, higher = keep. A criterion's own options go through
            `functools.partial(kprune.criteria.snip, training=True)` (here: batch normalization in training mode).
        sparsity: fraction of zeros over all masked weights, in [0, 1). Exactly floor(sparsity * size) zeros. Or a
            dict of regular expression, searched in the weights' paths (the first that is found counts) -> sparsity:
            each group is pruned to its own, the scope shares it within the group, other weights are left alone.
        scope: how it is shared among the weights: a name from `kprune.scopes.SCOPES` ("global", "layerwise", "uniform",
            "uniform_plus", "erk") or a function such as `kprune.scopes.with_floor(...)`, `per_layer(...)`. By default
            the pattern's own: "layerwise" for n:m, "global" for all others.
        pattern: the shape of the zeros: "unstructured"; "2:4", "1:4" ... (of each 4 inputs of an output, 2 are kept);
            "4x4", "1x8" ... (whole tiles, inputs x outputs); "channel" (whole filters); or a function of scores of
            shape (..., in, out) and a count that returns the mask. Tiles and filters are kept whole, so there may be
            fewer zeros than asked for, by less than one of them per weight: see `kprune.patterns`.
        rounds: number of rounds; the criterion's own number by default (100 for "synflow", else 1).
        seed: of criteria that draw random numbers.
        data: for criteria that ask the loss ("snip", "force", "grasp", "taylor", "fisher" ...): arrays (x, y) or
            (x, y, sample_weight), cut into batches of 256; or what yields batches, such as a tf.data.Dataset. The
            model must be compiled with its loss.
        batches: how many batches of `data` to use; None for all.
        initial: for criteria that compare with the weights before training ("large_init", "magnitude_increase",
            "init_final_sign"): path -> array, taken then as
            `{w.path: w.value() for w in kprune.masked_weights(model)}`.
        movement: for the criterion "movement": path -> array, the scores of a `kprune.criteria.Movement`.
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
    plan = Plan(criterion, scope, pattern, rounds, seed, data, batches, initial, movement)
    check_sparsities(sparsity)
    with masked(model, optimizer):
        masks = plan.masks(model, sparsity, verbose)
        set_masks(model, masks, optimizer)
    return masks


class Plan:
    """What to prune by, checked once: criterion, scope, pattern, rounds and seed, as in `kprune.prune`."""

    def __init__(
        self,
        criterion: str | Callable[..., Any],
        scope: str | Callable[..., Any] | None = None,
        pattern: str | Callable[..., Any] = "unstructured",
        rounds: int | None = None,
        seed: int = 0,
        data: Any = None,
        batches: int | None = 1,
        initial: dict[str, np.ndarray] | None = None,
        movement: dict[str, np.ndarray] | None = None,
    ):
        self.criterion = CRITERIA.get(criterion)
        self.pattern = PATTERNS.get(pattern)
        self.scope = SCOPES.get(trait(self.pattern, "default_scope", "global") if scope is None else scope)
        self.rounds = trait(self.criterion, "default_rounds", 1) if rounds is None else rounds
        self.name = CRITERIA.name_of(criterion)
        self.seed = seed
        if not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 1:
            raise ValueError(f"`rounds` must be an integer >= 1. Received: rounds={rounds!r}")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"`seed` must be an integer >= 0. Received: seed={seed!r}")
        check_batches(batches)
        self.needs = trait(self.criterion, "needs", ())
        if "data" in self.needs and data is None:
            raise ValueError(f"The criterion {self.name!r} needs the loss: pass data=(x, y). Received: data=None")
        # Taken once: a generator gives each batch only once, and all updates of a fit are to see the same data.
        self.data = [] if data is None else take_batches(data, batches)
        for name, arrays in (("initial", initial), ("movement", movement)):
            if arrays is not None:
                check_arrays(name, arrays)
        self.initial = initial
        self.movement = movement
        self.warned = False  # of weights that are pruned to nothing; a fit says so once

    def masks(self, model: Any, sparsity: float | dict[str, float], verbose: bool = False) -> Masks:
        """The masks to which the model would be pruned; the model is not changed."""
        # So that they are those of one device, bit for bit, for the weights that the model has.
        return outside_strategies(lambda: self._masks(model, sparsity, verbose))

    def _masks(self, model: Any, sparsity: float | dict[str, float], verbose: bool) -> Masks:
        weights = masked_weights(model)
        groups = _groups([weight.path for weight in weights], sparsity)
        current = {weight.path: weight.kept() for weight in weights}
        arrays = [self._arrays(name, weights) for name in ("initial", "movement")]
        context = Context(model, weights, current, self.seed, self.data, *arrays)
        revives = trait(self.criterion, "revives", False)
        # `delay` keeps a bar that would flash by off the screen.
        goal = "its sparsities" if isinstance(sparsity, dict) else f"{sparsity:.2%} sparsity"
        with tqdm(total=self.rounds, desc=f"{self.name} to {goal}", disable=not verbose, delay=1) as bar:
            looped = self._loop(context, groups, bar.update)
            if looped is not None:
                context.masks = looped
            else:
                if bar.n:  # a loop that gave up; a bar that is reset shows at once
                    bar.reset()
                for r in range(1, self.rounds + 1):
                    due = [(paths, 1 - (1 - final) ** (r / self.rounds)) for paths, final in groups]
                    context.masks = self._cut(context, due, current if revives else context.masks)
                    bar.update()
        self.warned = self.warned or _warn_of_collapse(weights, context.masks)
        return context.masks

    def _arrays(self, name: str, weights: list[MaskedWeight]) -> Scores:
        """What was given as `initial` or `movement`, checked if the criterion needs it."""
        given = getattr(self, name) or {}
        if name in self.needs:
            for weight in weights:
                shape = np.shape(given[weight.path]) if weight.path in given else None
                if shape != weight.shape:
                    raise ValueError(
                        f"The criterion {self.name!r} needs `{name}`, with an array of shape {weight.shape} for "
                        f"{weight.path}; GradualPruning takes it by itself. Received: shape={shape}"
                    )
        return given

    def _together(self, groups: list[tuple[list[str], float]], weights: list[MaskedWeight]) -> bool:
        """Whether all weights are cut at one score, so that only how many entries are kept in all has to be known."""
        return self.scope is global_scope and self.pattern is unstructured and len(groups[0][0]) == len(weights)

    def _loop(
        self, context: Context, groups: list[tuple[list[str], float]], advance: Callable[[int], Any]
    ) -> Masks | None:
        """The masks after all rounds, where the criterion can run them in one loop on a device; else None."""
        loop = getattr(self.criterion, "loop", None)  # not of a `functools.partial`, whose options it would not see
        if loop is None or not self._together(groups, context.weights):
            return None
        size = sum(weight.size for weight in context.weights)
        final = 1 - groups[0][1]
        n_keep = [size - zeros_for(size, 1 - final ** (r / self.rounds)) for r in range(1, self.rounds + 1)]
        return loop(context, n_keep, advance)

    def _cut(self, context: Context, groups: list[tuple[list[str], float]], masks: Masks) -> Masks:
        """The masks of a round, which keep nothing that `masks` does not."""
        scores = self.criterion(context)
        if not isinstance(scores, dict):
            raise ValueError(f"A criterion must return a dict of path -> scores. Received: criterion={self.name!r}")

        def finite(weight: MaskedWeight) -> np.ndarray:
            score, kept = np.asarray(scores.get(weight.path, ())), masks[weight.path]
            if score.shape != weight.shape:
                raise ValueError(
                    f"A criterion must return an array of shape {weight.shape} for {weight.path}. "
                    f"Received: criterion={self.name!r}, shape={score.shape}"
                )
            # The extremes show any NaN or infinity without a copy; only then does it matter whose they are.
            if not (np.isfinite(score.min()) and np.isfinite(score.max())) and not np.isfinite(score[kept]).all():
                raise ValueError(
                    f"The scores of {weight.path} are infinite or NaN; check whether its weights are. "
                    f"Received: criterion={self.name!r}"
                )
            return score

        paths = [weight.path for weight in context.weights]
        checked = side_by_side(finite, context.weights)
        if self._together(groups, context.weights):
            size = sum(score.size for score in checked)
            n_keep_all = size - zeros_for(size, groups[0][1])
            return dict(zip(paths, keep_highest(checked, [masks[path] for path in paths], n_keep_all), strict=True))

        def survivor(pair: tuple[str, np.ndarray]) -> np.ndarray:
            path, score = pair
            return score if masks[path].all() else np.where(masks[path], score, -np.inf)

        survivors = dict(zip(paths, side_by_side(survivor, zip(paths, checked, strict=True)), strict=True))
        layouts = context.once("layouts", lambda: {weight.path: layout_of(weight) for weight in context.weights})
        n_keep = {path: survivors[path].size for path in paths}
        for group, sparsity in groups:
            n_keep.update(self._share({path: survivors[path] for path in group}, layouts, sparsity))

        def cut(path: str) -> np.ndarray:
            score = layouts[path].canonical(survivors[path])
            kept = np.asarray(self.pattern(score, min(n_keep[path], int(np.count_nonzero(masks[path])))))
            if kept.shape != score.shape or kept.dtype != np.bool_:
                raise ValueError(
                    f"A pattern must return a bool array of the scores' shape {score.shape}. "
                    f"Received: shape={kept.shape}, dtype={kept.dtype}"
                )
            return layouts[path].original(kept)

        return dict(zip(paths, side_by_side(cut, paths), strict=True))

    def _share(self, survivors: Scores, layouts: dict[str, Layout], sparsity: float) -> dict[str, int]:
        """path -> number of entries to keep of a group's weights."""
        blocks = trait(self.pattern, "blocks", None)
        if blocks is None:
            return shares_of(self.scope, survivors, sparsity)
        paths = list(survivors)
        pools = side_by_side(lambda path: pooled(layouts[path].canonical(survivors[path]), blocks), paths)
        ranked = {path: layouts[path].original(score) for path, (score, _) in zip(paths, pools, strict=True)}
        shares = shares_of(self.scope, ranked, sparsity)
        # Blocks rarely come out even, so some entries stay that were to go. Were they taken in the next update, then
        # a fit that is resumed, where the same update comes once more, would end with other masks.
        over = sum(max(alive(ranked[path]) - shares[path], 0) for path in paths)
        if over < max(largest for _, largest in pools):
            return {path: ranked[path].size for path in paths}
        return shares


def check_sparsities(sparsity: float | dict[str, float]) -> None:
    """Raises ValueError unless it is a sparsity, or a dict of some."""
    if isinstance(sparsity, dict):
        if not sparsity:
            raise ValueError("A dict of sparsities must hold at least one entry. Received: sparsity={}")
        for expression, value in sparsity.items():
            check_expression(expression)
            check_sparsity(f"sparsity[{expression!r}]", value)
    else:
        check_sparsity("sparsity", sparsity)


def _groups(paths: list[str], sparsity: float | dict[str, float]) -> list[tuple[list[str], float]]:
    """(paths of a group, its sparsity): all paths, or those whose first expression found is that of the dict."""
    if not isinstance(sparsity, dict):
        return [(paths, sparsity)]
    found: dict[str, list[str]] = {expression: [] for expression in sparsity}
    for path in paths:
        first = next((expression for expression in sparsity if re.search(expression, path)), None)
        if first is not None:
            found[first].append(path)
    for expression, group in found.items():
        if not group:
            raise ValueError(
                f"The regular expression matches no masked weight that an earlier one has not taken. Masked weights: "
                f"{', '.join(paths)}. Received: sparsity={expression!r}"
            )
    return [(group, sparsity[expression]) for expression, group in found.items()]


def _warn_of_collapse(weights: list[MaskedWeight], masks: Masks) -> bool:
    """Whether weights are pruned to nothing, which a warning says."""
    empty = [weight.path for weight in weights if not masks[weight.path].any()]
    if empty:
        logging.warning(
            "kprune: %d of %d weights were pruned to nothing (%s): unless a shortcut leads past them, nothing flows "
            "through any more. A floor helps: scope=kprune.scopes.with_floor('global', 0.01).",
            len(empty),
            len(weights),
            ", ".join(empty[:4]) + (" ..." if len(empty) > 4 else ""),
        )
    return bool(empty)
