"""The definition of a scope, the registry of scopes, and checks of a scope's result.

Where scores lie on an accelerator, the scopes of this folder are given `Counted` in their place (the trait `counts`);
a function of the user's own always gets arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..util.checks import check_expression
from ..util.ranking import Counted
from ..util.registry import Registry, own_trait

Scores = dict[str, np.ndarray]
Scope = Callable[[Scores, float], dict[str, int]]

SCOPES = Registry("scope")


def shares_of(scope: Scope, scores: Scores, sparsity: float) -> dict[str, int]:
    """Map each path to the number of entries that the scope keeps; raise ValueError if its result is invalid."""
    shares, name = scope(scores, sparsity), SCOPES.name_of(scope)
    if not isinstance(shares, dict):
        raise ValueError(
            f"A scope must return a dict that maps paths to numbers of entries to keep. Received: scope={name!r}, "
            f"result={shares!r:.100}"
        )
    for path, score in scores.items():
        n_keep = shares.get(path)
        if not isinstance(n_keep, Integral) or isinstance(n_keep, bool) or not 0 <= n_keep <= score.size:
            raise ValueError(
                f"A scope must return an integer from 0 to {score.size} for {path}. Received: scope={name!r}, "
                f"result={n_keep!r:.100}"
            )
    return {path: int(shares[path]) for path in scores}


def check_request(scores: Any, sparsity: Any) -> None:
    """Raise ValueError unless there are scores for at least one weight and the sparsity is valid.

    >>> check_request({"a": np.ones(4)}, 0.5)
    """
    found = list(scores.values()) if isinstance(scores, dict) else []
    if not found or not all(isinstance(score, np.ndarray | Counted) for score in found):
        raise ValueError(
            f"`scores` must be a non-empty dict that maps paths to float arrays. Received: scores={scores!r:.200}"
        )
    if not isinstance(sparsity, Real) or isinstance(sparsity, bool) or not 0 <= sparsity <= 1:  # type: ignore[operator]
        raise ValueError(
            "`sparsity` must be a number in [0, 1], the fraction of weights that are zero. Received: "
            f"sparsity={sparsity!r:.200}"
        )


def like(base: Scope, scope: Scope) -> Scope:
    """Return the scope, marked as needing no more information about the scores than `base` does."""
    scope.counts = own_trait(base, "counts")  # type: ignore[attr-defined]
    return scope


def by_expression(values: dict[str, Any], paths: Iterable[str], default: Any, received: str) -> dict[str, Any]:
    """Map each path to the value of the first expression that matches it, or to the default."""
    paths = list(paths)
    for expression in values:
        check_expression(expression)
        if not any(re.search(expression, path) for path in paths):
            raise ValueError(
                f"The regular expression {expression!r} matches none of these weights: {', '.join(paths)}. Received: "
                f"{received}"
            )
    return {path: next((v for e, v in values.items() if re.search(e, path)), default) for path in paths}
