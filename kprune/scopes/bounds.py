"""Scopes with bounds: a floor or a ceiling on what each weight keeps, or weights that stay dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from ..util.checks import check_flag, check_strings
from ..util.ranking import alive, zeros_for
from .base import SCOPES, Scope, Scores, by_expression, check_request, like, shares_of
from .shares import uniform

Bound = int | float | dict[str, int | float] | Callable[[str], int | float]


@SCOPES.register("uniform_plus", counts=True)
def uniform_plus(scores: Scores, sparsity: float) -> dict[str, int]:
    """Keep the first weight dense, the last at least 20 % dense, and the rest uniform (arXiv:1902.09574, 2010.07611).

    The others make up for it, so that the total stays exact: sum(n_keep) = N - floor(sparsity * N).

    Args:
        scores: path -> float array, in the model's order; higher = keep; -inf = pruned already.
        sparsity: fraction of zeros over all weights, in [0, 1).

    Returns:
        path -> number of entries to keep.

    Raises:
        ValueError: the first weight and a fifth of the last need more entries than the sparsity leaves.

    >>> import numpy as np
    >>> uniform_plus({"a": np.ones(2), "b": np.ones(20), "c": np.ones(10)}, 0.75)
    {'a': 2, 'b': 4, 'c': 2}
    """
    check_request(scores, sparsity)
    paths = list(scores)
    low = dict.fromkeys(paths, 0)
    low[paths[-1]] = math.ceil(round(0.2 * scores[paths[-1]].size, 6))
    low[paths[0]] = scores[paths[0]].size
    low = {path: min(least, alive(scores[path])) for path, least in low.items()}
    return _bounded(
        uniform, scores, sparsity, low, None, "The first weight and 20 % of the last", "scope='uniform_plus'"
    )


@SCOPES.maker
def with_floor(scope: Scope | str, floor: Bound = 1) -> Scope:
    """Return a scope in which every weight keeps at least a floor, and `scope` distributes the rest.

    The total that is kept stays that of `scope`: what the floored weights gain, the others lose, as if `scope` had
    been asked for a higher sparsity. `with_floor(scope, 1)` never empties a weight.

    Args:
        scope: a scope or its name.
        floor: an int is a number of entries, a float from 0 to 1 a density; never more than a weight has left. Or a
            dict, regular expression -> floor (the first that matches a path counts; 0 if none does), or a function of
            the path.

    Raises:
        ValueError: a floor is negative or a density above 1; or, when called, an expression matches no weight, or the
            floors alone need more entries than the budget has.

    >>> import numpy as np
    >>> with_floor("global", 1)({"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}, 0.5)
    {'a': 1, 'b': 1}
    """
    base = SCOPES.get(scope)
    entries = _checked_bound("floor", floor, 0)

    def floored(scores: Scores, sparsity: float) -> dict[str, int]:
        check_request(scores, sparsity)
        # What is pruned already (-inf) cannot be kept, so a floor does not reserve budget for it.
        low = {path: min(alive(scores[path]), math.ceil(least)) for path, least in entries(scores).items()}
        return _bounded(base, scores, sparsity, low, None, "The floors", f"floor={floor}")

    return like(base, floored)


@SCOPES.maker
def with_ceiling(scope: Scope | str, ceiling: Bound) -> Scope:
    """Return a scope in which no weight keeps more than a ceiling; other weights keep more instead.

    The total that is kept stays that of `scope`. So a sparsity lower than the ceilings imply is refused, be it only
    the first of several rounds or of a schedule.

    Args:
        scope: a scope or its name.
        ceiling: as the floor of `with_floor`; a weight that no expression matches has none.

    Raises:
        ValueError: a ceiling is negative or a density above 1; or, when called, an expression matches no weight, or
            the ceilings do not hold as many entries as are to be kept.

    >>> import numpy as np
    >>> with_ceiling("global", 0.75)({"a": np.array([8.0, 7.0, 6.0, 5.0]), "b": np.array([4.0, 3.0, 2.0, 1.0])}, 0.5)
    {'a': 3, 'b': 1}
    """
    base = SCOPES.get(scope)
    entries = _checked_bound("ceiling", ceiling, 1.0)

    def capped(scores: Scores, sparsity: float) -> dict[str, int]:
        check_request(scores, sparsity)
        high = {path: math.floor(most) for path, most in entries(scores).items()}
        return _bounded(base, scores, sparsity, dict.fromkeys(scores, 0), high, "The ceilings", f"ceiling={ceiling}")

    return like(base, capped)


@SCOPES.maker
def kept_out(
    scope: Scope | str, first: bool = False, last: bool = False, paths: str | Sequence[str] | None = None
) -> Scope:
    """Return a scope that leaves some weights dense and prunes the others harder, to keep the same total as `scope`.

    Args:
        scope: a scope or its name.
        first: whether the model's first masked weight stays dense.
        last: whether its last one does.
        paths: a regular expression, or several, searched in the paths of others that do.

    Raises:
        ValueError: nothing is to be kept out; or, when called, an expression matches no weight, or the dense weights
            alone need more entries than the budget has.

    >>> import numpy as np
    >>> kept_out("uniform", first=True)({"a": np.ones(2), "b": np.ones(4), "c": np.ones(4)}, 0.6)
    {'a': 2, 'b': 1, 'c': 1}
    """
    base = SCOPES.get(scope)
    expressions = () if paths is None else check_strings("paths", paths)
    for name, flag in (("first", first), ("last", last)):
        check_flag(name, flag)
    received = f"first={first}, last={last}, paths={paths!r}"
    if not (first or last or expressions):
        raise ValueError(
            f"`first`, `last` or `paths` must name at least one weight to keep dense. Received: {received}"
        )

    def outside(scores: Scores, sparsity: float) -> dict[str, int]:
        check_request(scores, sparsity)
        dense = by_expression(dict.fromkeys(expressions, True), scores, False, received)
        dense[next(iter(scores))] |= first
        dense[next(reversed(scores))] |= last
        low = {path: alive(score) if dense[path] else 0 for path, score in scores.items()}
        return _bounded(base, scores, sparsity, low, None, "The weights that stay dense", received)

    return like(base, outside)


def _bounded(
    base: Scope,
    scores: Scores,
    sparsity: float,
    low: dict[str, int],
    high: dict[str, int] | None,
    what: str,
    received: str,
) -> dict[str, int]:
    """Return clip(base(scores, s), low, high), with s chosen so that the total equals that of the unbounded scope.

    The scope is always asked about all weights: it may go by their order or by their names.
    """
    n_keep = shares_of(base, scores, sparsity)
    budget, size = sum(n_keep.values()), sum(score.size for score in scores.values())
    if sum(low.values()) > budget:
        raise ValueError(
            f"{what} require {sum(low.values())} entries, but sparsity {sparsity} leaves only {budget}. "
            f"Received: {received}"
        )
    high = {path: score.size for path, score in scores.items()} if high is None else high
    if sum(high.values()) < budget:
        raise ValueError(
            f"{what} allow at most {sum(high.values())} entries, but sparsity {sparsity} keeps {budget}. "
            f"Received: {received}"
        )

    def clipped(n_keep: dict[str, int]) -> dict[str, int]:
        return {path: min(max(n, low[path]), high[path]) for path, n in n_keep.items()}

    few, many, asked, best = 0, size, size - zeros_for(size, sparsity), clipped(high)
    for trial in range(200):
        shares = clipped(n_keep)
        surplus = sum(shares.values()) - budget
        if surplus == 0:
            return shares
        if surplus > 0:
            many, best = asked, shares
        else:
            few = asked
        if many - few <= 1:
            break
        # One entry less asked for is mostly one less kept, so a few such steps do; where they are slow, halving is not.
        asked = asked - surplus if trial < 8 or trial % 2 else (few + many) // 2
        asked = asked if few < asked < many else (few + many) // 2
        try:
            n_keep = shares_of(base, scores, 1 - asked / size)
        except ValueError:  # the scope has bounds of its own, which so few entries do not meet
            n_keep = low
    # A scope that rounds each weight by itself ("layerwise") skips totals: the largest give what is too much.
    surplus = sum(best.values()) - budget
    for path in sorted(best, key=lambda p: -best[p]):
        cut = min(max(surplus, 0), best[path] - low[path])
        best[path] -= cut
        surplus -= cut
    return best


def _checked_bound(name: str, bound: Bound, default: int | float) -> Callable[[Scores], dict[str, float]]:
    """Return a function that gives each weight's unrounded bound in entries; raise ValueError if a bound is invalid."""

    def entries(value: Any, size: int) -> float:
        count = isinstance(value, Integral)
        if (
            not isinstance(value, Real)
            or isinstance(value, bool)
            or not 0 <= float(value) <= (math.inf if count else 1)
        ):
            raise ValueError(
                f"A {name} must be an integer >= 0 (a number of entries) or a float in [0, 1] (a density). "
                f"Received: {name}={bound}"
            )
        return min(size, math.floor(float(value))) if count else round(float(value) * size, 6)

    for value in bound.values() if isinstance(bound, dict) else () if callable(bound) else (bound,):
        entries(value, 0)

    def of_each(scores: Scores) -> dict[str, float]:
        if isinstance(bound, dict):
            values = by_expression(bound, scores, default, f"{name}={bound}")
        else:
            values = {path: bound(path) if callable(bound) else bound for path in scores}
        return {path: entries(values[path], score.size) for path, score in scores.items()}

    return of_each
