"""Scopes that divide a budget among weights: by a common ranking, equal densities, shapes, or given densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from ..util.ranking import Counted, in_proportion, nth_highest, zeros_for
from .base import SCOPES, Scope, Scores, by_expression, check_request, like


@SCOPES.register("global", counts=True)
def global_scope(scores: Scores, sparsity: float) -> dict[str, int]:
    """Rank the entries of all weights together; each weight keeps its entries above the common threshold.

    sum(n_keep) = N - floor(sparsity * N), N = number of entries of all weights; ties go to the earlier weight.

    Args:
        scores: path -> float array; higher = keep; -inf = pruned already.
        sparsity: fraction of zeros over all weights, in [0, 1).

    Returns:
        path -> number of entries to keep.

    >>> import numpy as np
    >>> global_scope({"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}, 0.5)
    {'a': 2, 'b': 0}
    """
    check_request(scores, sparsity)
    size = sum(score.size for score in scores.values())
    n_keep = size - zeros_for(size, sparsity)
    if n_keep == 0:
        return dict.fromkeys(scores, 0)
    first = next(iter(scores.values()))
    if isinstance(first, Counted):
        counts = first.counts(n_keep)
    else:
        _, counts = nth_highest([score.reshape(-1) for score in scores.values()], n_keep)
    ties = n_keep - sum(above for above, _ in counts)
    shares = {}
    for path, (above, equal) in zip(scores, counts, strict=True):
        shares[path] = above + min(ties, equal)
        ties -= min(ties, equal)
    return shares


@SCOPES.register("layerwise", counts=True)
def layerwise(scores: Scores, sparsity: float) -> dict[str, int]:
    """Prune each weight to the same sparsity: n_keep = size - floor(sparsity * size).

    >>> import numpy as np
    >>> layerwise({"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}, 0.5)
    {'a': 1, 'b': 1}
    """
    check_request(scores, sparsity)
    return {path: score.size - zeros_for(score.size, sparsity) for path, score in scores.items()}


@SCOPES.register("uniform", counts=True)
def uniform(scores: Scores, sparsity: float) -> dict[str, int]:
    """Keep the same density in each weight, with the exact total sum(n_keep) = N - floor(sparsity * N).

    "layerwise" rounds each weight up, so it keeps up to an entry per weight more. See `in_proportion`.

    >>> import numpy as np
    >>> scores = {"a": np.ones(5), "b": np.ones(5)}
    >>> uniform(scores, 0.5), layerwise(scores, 0.5)
    ({'a': 3, 'b': 2}, {'a': 3, 'b': 3})
    """
    check_request(scores, sparsity)
    return in_proportion(scores, sparsity, dict.fromkeys(scores, 1.0))


@SCOPES.register("erk", counts=True)
def erk(scores: Scores, sparsity: float) -> dict[str, int]:
    """Use Erdos-Renyi-Kernel densities (arXiv:1911.11134): small weights stay denser than large ones.

    density[p] = min(1, c * sum(shape[p]) / prod(shape[p])), with the c of the exact total N - floor(sparsity * N). See
    `in_proportion`.

    >>> import numpy as np
    >>> erk({"a": np.ones((2, 2)), "b": np.ones((8, 8))}, 0.75)  # densities min(1, 1.0 c) and 0.25 c, c = 0.85
    {'a': 3, 'b': 14}
    """
    check_request(scores, sparsity)
    return in_proportion(scores, sparsity, {path: sum(s.shape) / max(s.size, 1) for path, s in scores.items()})


@SCOPES.maker
def per_layer(densities: dict[str, float] | Callable[[str, tuple[int, ...]], float]) -> Scope:
    """Return a scope with given densities, scaled by one factor so that the total matches the sparsity exactly.

    n_keep[p] = min(size[p], round(c * density[p] * size[p])), c = 1 where the sparsity asked for is the one that the
    densities imply; see `in_proportion`. With criterion="random" it is the control of arXiv:2009.08576 and 2009.11094:
    does a method find good weights, or just good densities?

    Args:
        densities: regular expression, searched in a weight's path, the first that matches counts -> density; or a
            function of path and shape. Finite, >= 0; only their ratios count, so one may be above 1.

    Raises:
        ValueError: a density is none; or, when called, no expression matches a weight, or one matches no weight.

    >>> import numpy as np
    >>> scope = per_layer({"logits": 0.5, "dense": 0.1})
    >>> scope({"dense_1/kernel": np.ones(90), "logits/kernel": np.ones(10)}, 0.86)
    {'dense_1/kernel': 9, 'logits/kernel': 5}
    """
    if not isinstance(densities, dict) and not callable(densities):
        raise ValueError(
            "`densities` must be a function, or a dict that maps regular expressions to densities. Received: "
            f"densities={densities!r}"
        )

    def check(values: Iterable[Any]) -> None:
        for value in values:
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
                raise ValueError(f"A density must be a finite number >= 0, not {value!r}. Received: {received}")

    received = f"densities={densities}"
    check(densities.values() if isinstance(densities, dict) else ())

    def scope(scores: Scores, sparsity: float) -> dict[str, int]:
        check_request(scores, sparsity)
        if isinstance(densities, dict):
            relative = by_expression(densities, scores, None, received)
            unmatched = [path for path, density in relative.items() if density is None]
            if unmatched:
                raise ValueError(
                    f"No expression matches {', '.join(unmatched)}: add a density for each weight. Received: {received}"
                )
        else:
            relative = {path: densities(path, score.shape) for path, score in scores.items()}
            check(relative.values())
        return in_proportion(scores, sparsity, relative)

    return like(global_scope, scope)
