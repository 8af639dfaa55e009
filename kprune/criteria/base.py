"""What a criterion is given, and the registry of criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..masks import MaskedWeight, Masks
from ..registry import Registry

Scores = dict[str, np.ndarray]
CRITERIA = Registry("criterion")


@dataclass
class Context:
    """What a criterion may look at. It changes nothing in the model.

    Attributes:
        model: the masked model.
        weights: its masked weights, in model order.
        masks: path -> bool array; the masks of this round, which the model itself need not carry yet.
        seed: for criteria that draw random numbers.
    """

    model: Any
    weights: list[MaskedWeight]
    masks: Masks
    seed: int = 0
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make()` returned in the first round: a compiled scorer serves all rounds."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]
