"""Budgets: limits on a model's cost, which are met by removing whole groups of channels."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np

from ..flops import kernel_uses
from ..masks import Masks, library_of, masked_weights
from ..util.checks import check_number, received_with
from ..util.ranking import zeros_for
from .groups import ChannelGroups, divisor_of

UNITS = ("flops", "parameters")
_USES: weakref.WeakKeyDictionary[Any, tuple[dict[int, int | None], str]] = weakref.WeakKeyDictionary()


def check_budget(budget: Any) -> tuple[str, float]:
    """Check a budget such as {"flops": 0.5}, and return its unit and its fraction.

    Raises:
        ValueError: it is no such dict.

    >>> check_budget({"flops": 0.5})
    ('flops', 0.5)
    """
    if not isinstance(budget, dict) or len(budget) != 1 or not {*budget} <= {*UNITS, "latency"}:
        raise ValueError(
            '`budget` must be a dict with one entry, such as {"flops": 0.5} or {"parameters": 0.5}, whose value is the '
            f"fraction of the dense model's cost to keep. Received: budget={budget!r:.200}"
        )
    [(unit, fraction)] = budget.items()
    if unit == "latency":
        raise ValueError(
            "`budget` cannot be a latency, because latency depends on the machine. To use the budget in flops that "
            f"reaches this latency on this machine, pass budget=kprune.latency_budget(model, {fraction!r}). "
            f"Received: budget={budget!r}"
        )
    check_number(
        f"budget[{unit!r}]",
        fraction,
        "above 0 and below 1 (the fraction of the cost to keep)",
        lambda value: 0 < value < 1,
    )
    return unit, float(fraction)


class Costs:
    """The cost of a model, as a function of the channel groups that stay.

    cost = sum over the weights of factor x (entries whose channels all stay). In "parameters" the factor is 1 and the
    sum goes over all weights, those that do not train included: what `count_params()` is after `kprune.shrink`. In
    "flops" the sum goes over kernels, and the factor is how often an entry is multiplied for one example: see
    `kprune.flops`. Additions of biases, normalization and activations are not counted.

    Args:
        model: the model of the groups.
        groups: its channel groups.
        unit: "flops" or "parameters".

    Attributes:
        total: the cost of the dense model.

    Raises:
        ValueError: the multiply-adds of a kernel are not known.
    """

    def __init__(self, model: Any, groups: ChannelGroups, unit: str):
        uses: dict[int, int | None] = {}
        if unit == "flops":
            if model not in _USES:
                _USES[model] = kernel_uses(model)
            uses, reason = _USES[model]
        self._parts: list[tuple[int, list[np.ndarray]]] = []
        for _, v in {id(v): (layer, v) for layer, v in library_of(model).owned_weights(model)}.values():
            if unit == "flops" and len(v.shape) < 2:
                continue
            factor = uses.get(id(v), 0) if unit == "flops" else 1
            if factor is None:
                cause = received_with(reason or "the shape of a layer's output is not fixed", f"budget={unit!r}")
                raise ValueError(
                    "This model's multiply-adds cannot be counted: fix the cause, or use a budget for "
                    f'"parameters". Cause: {cause}'
                )
            labeled = groups.axes.get(id(v), [])
            rest = math.prod(int(size) for axis, size in enumerate(v.shape) if axis not in {a for a, _ in labeled})
            self._parts.append((factor * rest, [found for _, found in labeled]))
        self.total = self.of(np.ones(groups.n, bool))

    def of(self, stays: np.ndarray) -> int:
        """Return the cost if these groups stay (a bool array with one entry per group)."""
        stays = np.append(stays, True)  # the last one is number -1: what is in no group
        return sum(factor * math.prod(int(stays[found].sum()) for found in axes) for factor, axes in self._parts)


class ChannelCut:
    """The pruning of a model's channel groups, to a sparsity or to a budget.

    Args:
        model: a masked model.
        groups: as in `kprune.PruningConfig`.
        budget: None, or what `check_budget` takes.

    Raises:
        ValueError: the model has no groups, or what it costs is not known.
    """

    def __init__(self, model: Any, groups: str | None, budget: dict[str, float] | None = None):
        self.groups, self.divisor, self.budget = ChannelGroups(model), divisor_of(groups) or 1, budget
        self.costs = None if budget is None else Costs(model, self.groups, check_budget(budget)[0])
        self._trained = [weight.path for weight in masked_weights(model) if weight.trainable]

    def __call__(self, scores: dict[str, np.ndarray], masks: Masks, goals: list[tuple[list[str], float]]) -> Masks:
        """Return the masks after pruning whole groups.

        Args:
            scores, masks: as in `ChannelGroups.cut`.
            goals: (paths, sparsity of the weights of these paths); under a budget the fraction of the cost that goes.
        """
        for paths, goal in goals:
            if self.costs is None:
                zeros = zeros_for(sum(masks[path].size for path in paths), goal)
                masks = self.groups.cut(scores, masks, paths, zeros, self.divisor)
            else:
                most = zeros_for(self.costs.total, 1 - goal)
                masks = self.groups.cut_to(scores, masks, paths, self.costs.of, most, self.divisor)
        return masks

    def least(self, costs: Costs) -> int:
        """Return the lowest cost that pruning can reach."""
        return costs.of(self.groups.least(self._trained, self.divisor))

    def check(self) -> None:
        """Raise ValueError if the budget cannot be met."""
        if self.costs is None:
            return
        unit, fraction = check_budget(self.budget)
        least = self.least(self.costs)
        if least > zeros_for(self.costs.total, fraction):
            raise ValueError(
                f"The budget cannot be met: with only {self.divisor} channel{'s' * (self.divisor > 1)} left in each "
                f"layer, {least:,} of {self.costs.total:,} {unit} remain, a fraction of "
                f"{least / self.costs.total:.4g}. Channels that lead to the outputs, or to layers without a pruning "
                f"rule, are never pruned. Raise the budget. Received: budget={self.budget!r}"
            )


__all__ = ["ChannelCut", "Costs", "check_budget"]
