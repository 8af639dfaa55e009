"""A one-line summary of the sparsity that training has reached."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..masks import DEFAULT_WEIGHTS, followers, library_of, masked_weights
from .summary import percentage, size_of


def reached(model: Any) -> str:
    """Describe the sparsity of a model's masked weights and of all its parameters, and what is not masked.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.75, verbose=0)
    >>> reached(model)
    'kprune: sparsity 75.00% of 2 masked weights, 65.85% of all 41 parameters; not masked: 2 bias'
    """
    masked = masked_weights(model)
    zeros, size = sum(int((~weight.kept()).sum()) for weight in masked), sum(weight.size for weight in masked)
    inside = {id(weight.variable) for weight in masked}
    library = library_of(model)
    others = {id(v): (layer, v) for layer, v in library.owned_weights(model) if id(v) not in inside}
    total = size + sum(size_of(v) for _, v in others.values())

    def reason(layer: Any, v: Any) -> str:
        name = library.weight_name(layer, v)
        if name not in DEFAULT_WEIGHTS:
            return name
        return f"{'unfit' if not library.holds_kernel(layer, v) else 'left out' if v.trainable else 'frozen'} {name}"

    following = {id(weight.variable) for weight in followers(model)}
    skipped = Counter(reason(layer, v) for key, (layer, v) in others.items() if key not in following)
    return (
        f"kprune: sparsity {percentage(zeros, size)} of {len(masked)} masked weight{'s' * (len(masked) != 1)}, "
        f"{percentage(zeros, total)} of all {total:,} parameters; not masked: "
        + (", ".join(f"{number} {reason}" for reason, number in skipped.items()) or "none")
    )
