"""The pruning configuration: how to score weights, share the sparsity and cut masks, in one round or many."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

import numpy as np

from .channels import ChannelCut, check_budget, divisor_of
from .criteria import CRITERIA, Compiled, Context
from .criteria.trackers import Tracker
from .cutting import cut_by_counts, cut_by_pattern
from .data.batches import Batch, check_batches, take_batches
from .masks import MaskedWeight, Masks, masked_weights
from .masks.layout import layout_of
from .patterns import PATTERNS, channel, unstructured
from .runtime.distribution import outside_strategies
from .scopes import SCOPES, global_scope
from .selection import keep_highest
from .sparsities import by_group, goal_of
from .util.checks import check_fields, check_integer
from .util.progress import check_verbose, progress
from .util.ranking import zeros_for
from .util.registry import own_trait, trait
from .util.threads import side_by_side


@dataclass(frozen=True)
class PruningConfig:
    """Settings for pruning, such as criterion, scope and pattern, accepted by every callback and `kprune.prune`.

    Args:
        criterion: a name from `kprune.criteria.CRITERIA` ("magnitude", "random", "synflow" ...) or a function of a
            `kprune.criteria.Context` that returns path -> scores, higher = keep. A criterion's own options go through
            `functools.partial(kprune.criteria.snip, training=True)` (here: batch normalization in training mode).
        scope: how the sparsity is shared among the weights: a name from `kprune.scopes.SCOPES` ("global", "layerwise",
            "uniform", "uniform_plus", "erk") or a function such as `kprune.scopes.with_floor(...)`, `per_layer(...)`.
            By default the pattern's own: "layerwise" for n:m, "global" for all others.
        pattern: the shape of the zeros: "unstructured"; "2:4", "1:4" ... (of each 4 inputs of an output, 2 are kept);
            "4x4", "1x8" ... (whole tiles, inputs x outputs); "channel" (whole filters); or a function of scores of
            shape (..., in, out) and a count that returns the mask. Tiles and filters are kept whole, so there may be
            fewer zeros than asked for, by less than one of them per weight: see `kprune.patterns`.
        groups: "channels" prunes whole groups of channels, for `kprune.shrink`: a filter with all that reads it and
            that additions and the like tie to it, scored by the mean. "channels:8" keeps multiples of 8 per layer.
        budget: with `groups`, in place of a sparsity: {"flops": 0.5} or {"parameters": 0.5}, the fraction of the dense
            model's multiply-adds for one example, or of all its parameters, that `kprune.shrink` may leave. Groups go
            until the model fits it, the lowest scores first: see `kprune.channels.Costs`.
        rounds: number of rounds, at least 1; by default the criterion's own (100 for "synflow", else 1). Round r = 1 ..
            rounds prunes the survivors of the round before to density (1 - sparsity) ** (r / rounds).
        seed: of criteria that draw random numbers, at least 0.

    Raises:
        ValueError: one of these is wrong.

    >>> import kprune
    >>> config = kprune.PruningConfig("synflow", pattern="2:4")
    >>> config.rounds, config.scope
    (100, 'layerwise')
    >>> kprune.PruningConfig.from_config(config.get_config()) == config
    True
    """

    criterion: str | Callable[..., Any] = "magnitude"
    _: KW_ONLY
    scope: Any = None
    pattern: str | Callable[..., Any] = "unstructured"
    groups: str | None = None
    budget: dict[str, float] | None = field(default=None, hash=False)
    rounds: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        pattern = PATTERNS.get(self.pattern)
        criterion = CRITERIA.get(self.criterion)
        scope = trait(pattern, "default_scope", "global") if self.scope is None else self.scope
        SCOPES.get(scope)
        rounds = trait(criterion, "default_rounds", 1) if self.rounds is None else self.rounds
        if divisor_of(self.groups) and not (SCOPES.get(scope) is global_scope and pattern is unstructured):
            raise ValueError(
                "`groups` requires scope='global' and pattern='unstructured', because a channel group spans several "
                f"weights. Received: groups={self.groups!r}, scope={scope!r}, pattern={self.pattern!r}"
            )
        if self.budget is not None:
            check_budget(self.budget)
            if self.groups is None:
                raise ValueError(
                    'A budget requires groups="channels", because it is met by removing whole channels. Received: '
                    f"budget={self.budget!r}, groups=None"
                )
        check_integer("rounds", rounds, 1)
        check_integer("seed", self.seed, 0)
        object.__setattr__(self, "scope", scope)
        object.__setattr__(self, "rounds", rounds)

    @classmethod
    def of(cls, criterion: str | Callable[..., Any] | PruningConfig, **given: Any) -> PruningConfig:
        """Return the criterion if it is already a config, else a config made of the criterion and the other fields."""
        if isinstance(criterion, numbers.Real):
            raise ValueError(
                "`criterion` must be a name, a function or a PruningConfig; pass the sparsity as the next argument. "
                f"Received: criterion={criterion!r}"
            )
        if not isinstance(criterion, PruningConfig):
            check_fields("PruningConfig", given, [name for name in _FIELDS if name != "criterion"])
            return cls(criterion, **given)
        if given:
            raise ValueError(
                "A PruningConfig cannot be combined with separate fields: change the config with "
                "dataclasses.replace(config, ...). Received: "
                f"{', '.join((f'{name}={value!r:.100}' for name, value in given.items()))}"
            )
        return criterion

    @property
    def name(self) -> str:
        """The criterion's name, as shown in messages."""
        return CRITERIA.name_of(self.criterion)

    @property
    def channels(self) -> bool:
        """Whether whole channels are pruned, along with the parameters that follow them."""
        return self.groups is not None or PATTERNS.get(self.pattern) is channel

    def get_config(self) -> dict[str, Any]:
        """Return the fields as JSON-serializable values; raise ValueError for an unregistered custom function."""
        return {
            "criterion": CRITERIA.serialize(self.criterion),
            "scope": SCOPES.serialize(self.scope),
            "pattern": PATTERNS.serialize(self.pattern),
            "groups": self.groups,
            "budget": self.budget,
            "rounds": self.rounds,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PruningConfig:
        """Return the config that `get_config` described; raise ValueError if it has unknown fields."""
        check_fields("PruningConfig", config, _FIELDS)
        registries = {"criterion": CRITERIA, "scope": SCOPES, "pattern": PATTERNS}
        made = {name: registry.deserialize(config[name]) for name, registry in registries.items() if name in config}
        values: dict[str, Any] = {n: one if isinstance(one, str) else made.get(n, one) for n, one in config.items()}
        return cls(**values)

    def masks(
        self,
        model: Any,
        sparsity: float | dict[str, float] | None = None,
        *,
        within: Masks | None = None,
        data: Any = None,
        batches: int | None = 1,
        trackers: Any = None,
        compiled: Compiled | None = None,
        verbose: Any = 0,
    ) -> Masks:
        """Return the masks to which the model would be pruned, without changing the model.

        Args:
            model: a masked model of either Keras.
            sparsity, data, batches, trackers, verbose: as in `kprune.prune`. Under a budget, None prunes to it, and a
                number takes that fraction of the cost away, as a schedule does.
            within: path -> bool array, what the new masks may keep; by default what the model's own keep, so that
                masks only shrink. Masks that are True throughout let pruned weights return, with their stored value.
            compiled: what criteria have compiled in earlier calls for this model.

        Returns:
            path -> bool array of the weight's shape, True = kept.

        Raises:
            ValueError: an argument is wrong, or a score is NaN or infinite.
        """
        check_verbose(verbose)
        sparsity = goal_of(sparsity, self.budget)
        taken = self.take(data, batches)
        watched, made = self._tracker(trackers), compiled or Compiled()
        # So that they are those of one device, bit for bit, for the weights that the model has.
        return outside_strategies(lambda: self._masks(model, sparsity, within, taken, watched, made, verbose))

    @property
    def data_free(self) -> bool:
        """Whether the criterion needs neither data nor a record of training."""
        score = CRITERIA.get(self.criterion)
        return not trait(score, "needs", ()) and trait(score, "tracker", None) is None

    def take(self, data: Any, batches: int | None = 1) -> list[Batch]:
        """Return the batches of data that the criterion uses; raise ValueError if it needs data and there is none."""
        check_batches(batches)
        needs = trait(CRITERIA.get(self.criterion), "needs", ())
        if data is None and "data" in needs:
            needed = "data to compute the loss: pass data=(x, y)" if "loss" in needs else "data: pass data=(x,)"
            raise ValueError(f"The criterion {self.name!r} needs {needed}. Received: data=None")
        return [] if data is None else take_batches(data, batches)

    def tracker(self) -> Tracker | None:
        """Return a new tracker, or None if the criterion does not need one."""
        cls = trait(CRITERIA.get(self.criterion), "tracker", None)
        return None if cls is None else cls()

    def _tracker(self, trackers: Any) -> Tracker | None:
        """Return the tracker that the criterion needs, if any; raise ValueError if `trackers` does not contain it."""
        cls = trait(CRITERIA.get(self.criterion), "tracker", None)
        if cls is None:
            return None
        listed = trackers if isinstance(trackers, list | tuple) else [trackers]
        found = next((one for one in listed if isinstance(one, cls)), None)
        if found is None:
            raise ValueError(
                f"The criterion {self.name!r} needs a tracker, {cls.__name__}, that records training. Callbacks such "
                f"as GradualPruning run the tracker automatically; otherwise, run the tracker yourself during "
                f"training and pass it in `trackers`. Received: trackers={trackers!r:.200}"
            )
        return found

    def _masks(
        self,
        model: Any,
        sparsity: float | dict[str, float],
        within: Masks | None,
        data: list[Batch],
        tracker: Tracker | None,
        compiled: Compiled,
        verbose: Any,
    ) -> Masks:
        weights = masked_weights(model)
        trained = [weight.path for weight in weights if weight.trainable]
        if not trained:
            raise ValueError(
                f"All masked weights are frozen, so there is nothing to prune. Received: model={model.name!r}"
            )
        groups = by_group(trained, sparsity)
        current = (
            {weight.path: weight.seen_mask() for weight in weights} if within is None else _checked(weights, within)
        )
        if tracker is not None and not tracker.ready() and not any(final for _, final in groups):
            return {path: mask.copy() for path, mask in current.items()}  # nothing is asked for, and nothing is known
        context = Context(model, weights, current, self.seed, data, tracker, compiled.of(model))
        revives = trait(CRITERIA.get(self.criterion), "revives", False)
        goal = "the given sparsities" if isinstance(sparsity, dict) else f"{sparsity:.2%} sparsity"
        with progress(f"{self.name} to {goal}", self.rounds, verbose, unit="rounds", delay=1) as bar:
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
        untouched = [path for path, mask in current.items() if path not in trained or context.masks[path] is mask]
        context.masks |= {path: current[path].copy() for path in untouched}
        if (
            tracker is not None
            and not tracker.ready()
            and any(np.any(current[path] & ~mask) for path, mask in context.masks.items())
        ):
            raise ValueError(
                f"The criterion {self.name!r} needs what its tracker, {type(tracker).__name__}, records during "
                "training, but the tracker has recorded nothing yet: train for a few hundred steps before pruning. "
                f"Received: sparsity={sparsity!r}"
            )
        return context.masks

    def _together(self, groups: list[tuple[list[str], float]], weights: list[MaskedWeight]) -> bool:
        """Return whether all weights are cut at one score, so that only the total number of kept entries matters."""
        plain = SCOPES.get(self.scope) is global_scope and PATTERNS.get(self.pattern) is unstructured
        return plain and self.groups is None and len(groups[0][0]) == len(weights)

    def _loop(
        self, context: Context, groups: list[tuple[list[str], float]], advance: Callable[[int], Any]
    ) -> Masks | None:
        """Return the masks after all rounds if the criterion can run them in one loop on a device, else None."""
        loop = own_trait(CRITERIA.get(self.criterion), "loop")
        if loop is None or not self._together(groups, context.weights):
            return None
        size = context.size
        final = 1 - groups[0][1]
        n_keep = [size - zeros_for(size, 1 - final ** (r / self.rounds)) for r in range(1, self.rounds + 1)]
        return loop(context, n_keep, advance)

    def _cut(self, context: Context, groups: list[tuple[list[str], float]], masks: Masks) -> Masks:
        """Return the masks of one round, which keep only entries that `masks` keeps."""
        scope, pattern = SCOPES.get(self.scope), PATTERNS.get(self.pattern)
        plain = self.groups is None and pattern is unstructured and own_trait(scope, "counts")
        entrywise = own_trait(CRITERIA.get(self.criterion), "entrywise") if plain else None
        if entrywise is None:
            scores = CRITERIA.get(self.criterion)(context)
        else:
            scores = {weight.path: weight.seen() for weight in context.weights}
        of = entrywise or np.positive
        if not isinstance(scores, dict):
            raise ValueError(
                f"A criterion must return a dict that maps paths to scores. Received: criterion={self.name!r}"
            )

        def finite(weight: MaskedWeight) -> np.ndarray:
            score, kept = np.asarray(scores.get(weight.path, ())), masks[weight.path]
            if score.shape != weight.shape:
                raise ValueError(
                    f"A criterion must return an array of shape {weight.shape} for {weight.path}. "
                    f"Received: criterion={self.name!r}, shape={score.shape}"
                )
            # The extremes show any NaN or infinity without a copy; only then does it matter whose they are.
            if not (np.isfinite(score.min()) and np.isfinite(score.max())) and not np.isfinite(score[kept]).all():
                if np.isfinite(weight.seen()).all():
                    cause = "although its weights are finite: check the data, the loss and the criterion"
                else:
                    cause = "because its weights are as well: training may have diverged"
                raise ValueError(
                    f"The scores of {weight.path} are infinite or NaN, {cause}. Received: criterion={self.name!r}"
                )
            return score

        paths = [weight.path for weight in context.weights]
        entries = context.size
        checked = side_by_side(finite, context.weights, entries)
        if self._together(groups, context.weights):
            n_keep_all = entries - zeros_for(entries, groups[0][1])
            kept = keep_highest(checked, [masks[path] for path in paths], n_keep_all, of, paths)
            return dict(zip(paths, kept, strict=True))

        if self.groups is not None:
            cut_channels = context.once("channels", lambda: ChannelCut(context.model, self.groups, self.budget))
            return cut_channels(dict(zip(paths, checked, strict=True)), masks, groups)

        named = dict(zip(paths, checked, strict=True))
        if plain:
            return cut_by_counts(scope, named, groups, masks, of)
        layouts = context.once("layouts", lambda: {weight.path: layout_of(weight) for weight in context.weights})
        return cut_by_pattern(scope, pattern, layouts, named, groups, masks)


_FIELDS = [one.name for one in fields(PruningConfig)]


def _checked(weights: list[MaskedWeight], within: Masks) -> Masks:
    """Return the user's `within` masks; raise ValueError unless each weight has a mask of its own shape."""
    shapes = {path: np.shape(mask) for path, mask in within.items()} if isinstance(within, dict) else None
    expected = {weight.path: weight.shape for weight in weights}
    if shapes != expected or any(np.asarray(mask).dtype != np.bool_ for mask in within.values()):
        raise ValueError(
            f"`within` must map each masked weight to a bool array of the same shape: {str(expected)[:200]}. Received: "
            f"within={shapes!s:.200}"
        )
    return {weight.path: np.asarray(within[weight.path]) for weight in weights}
