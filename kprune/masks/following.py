"""Followers, the parameters (bias, gamma and beta) that are pruned only along with their channel.

A follower has a mask as a kernel has; it is in no budget and not among `kprune.masked_weights`. What its mask is
follows from those of the kernels, by a rule that the model's graph gives (kprune/channels/followers.py, which registers
it here, as it lies above): whoever sets masks, the followers come along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..runtime.optimizers import slots
from ..runtime.writing import keep_where, put
from .types import MaskedWeight

Rule = Callable[[Any], dict[int, np.ndarray]]
_RULES: list[Rule] = []


def follow_by(rule: Rule) -> Rule:
    """Register a function that maps a masked model to its followers' bool masks (True = kept), keyed by follower id."""
    _RULES.append(rule)
    return rule


def follow(model: Any, followers: list[MaskedWeight], optimizers: list[Any]) -> None:
    """Mask the followers to match the kernels' masks; in a restored channel, gamma starts at 1, bias and beta at 0.

    Where values stay behind the masks, they return with their channel.
    """
    kept = {key: mask for rule in _RULES if followers for key, mask in rule(model).items()}
    for follower in followers:
        old = follower.kept()
        new = kept.get(id(follower.variable), np.ones(follower.shape, bool))
        returned = new & ~old
        if (new & old).all():
            continue
        follower.write(new)
        if follower.store == "latent":
            continue
        if returned.any() and follower.path.split("/")[-1].startswith("gamma"):
            value = follower.value()
            # Both the kernel and gamma at 0 would have no gradient ever again.
            put(follower.variable, np.where(returned, np.ones((), value.dtype), value))
        held = [pair for optimizer in optimizers for pair in slots(optimizer, follower.variable)]
        keep_where(new & old, held)


__all__ = ["follow", "follow_by"]
