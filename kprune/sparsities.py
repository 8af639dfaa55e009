"""The requested sparsity: one for all weights together, or one for each group of weights."""

from __future__ import annotations

import re

from .schedules import check_sparsity
from .util.checks import check_expression


def check_sparsities(sparsity: float | dict[str, float]) -> None:
    """Raise ValueError unless it is a sparsity or a dict of sparsities."""
    if isinstance(sparsity, dict):
        if not sparsity:
            raise ValueError("A dict of sparsities must hold at least one entry. Received: sparsity={}")
        for expression, value in sparsity.items():
            check_expression(expression)
            check_sparsity(f"sparsity[{expression!r}]", value)
    else:
        check_sparsity("sparsity", sparsity)


def by_group(paths: list[str], sparsity: float | dict[str, float]) -> list[tuple[list[str], float]]:
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
                f"The regular expression matches no masked weight that no earlier one matches. Masked weights: "
                f"{', '.join(paths)}. Received: sparsity={expression!r}"
            )
    return [(group, sparsity[expression]) for expression, group in found.items()]
