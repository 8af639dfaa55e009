"""Pruning goals: one sparsity for all weights, one per group of weights, or a budget."""

from __future__ import annotations

import re
from typing import Any

from .channels import check_budget
from .schedules import check_sparsity
from .util.checks import check_expression


def check_sparsities(sparsity: float | dict[str, float]) -> None:
    """Raise ValueError unless the value is a sparsity or a dict of sparsities."""
    if isinstance(sparsity, dict):
        if not sparsity:
            raise ValueError("A dict of sparsities must contain at least one entry. Received: sparsity={}")
        for expression, value in sparsity.items():
            check_expression(expression)
            check_sparsity(f"sparsity[{expression!r}]", value)
    else:
        check_sparsity("sparsity", sparsity)


def goal_of(sparsity: Any, budget: dict[str, float] | None) -> float | dict[str, float]:
    """Return the sparsity or, for a budget without a sparsity, the fraction of the cost to remove.

    Raises:
        ValueError: the sparsity is none, or there is neither of both.

    >>> goal_of(None, {"flops": 0.25}), goal_of(0.1, {"flops": 0.25}), goal_of(0.9, None)
    (0.75, 0.1, 0.9)
    """
    if sparsity is None:
        if budget is None:
            raise ValueError("Pass either a sparsity or a budget. Received: sparsity=None, budget=None")
        return 1 - check_budget(budget)[1]
    if budget is not None and isinstance(sparsity, dict):
        raise ValueError(
            "A budget applies to the whole model, so it cannot be combined with a dict of sparsities. "
            f"Received: sparsity={sparsity!r}, budget={budget!r}"
        )
    check_sparsities(sparsity)
    return sparsity


def check_one_goal(sparsity: Any, budget: dict[str, float] | None) -> None:
    """Raise ValueError unless the user has given either a sparsity or a budget."""
    if budget is not None and sparsity is not None:
        raise ValueError(
            f"Pass either a sparsity or a budget, not both. Received: sparsity={sparsity!r}, budget={budget!r}"
        )
    goal_of(sparsity, budget)


def check_no_budget(who: str, budget: dict[str, float] | None) -> None:
    """Raise ValueError if a budget is given."""
    if budget is not None:
        raise ValueError(
            f"{who} takes a sparsity, not a budget; PruneAtInit, GradualPruning and kprune.prune accept a budget. "
            f"Received: budget={budget!r}"
        )


def by_group(paths: list[str], sparsity: float | dict[str, float]) -> list[tuple[list[str], float]]:
    """Return (paths, sparsity) pairs: one pair for all paths, or one per expression; a path goes to its first match."""
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
                "This regular expression matches no masked weight, or only weights that an earlier expression "
                f"matches. Masked weights: {', '.join(paths)}. Received: sparsity={expression!r}"
            )
    return [(group, sparsity[expression]) for expression, group in found.items()]
