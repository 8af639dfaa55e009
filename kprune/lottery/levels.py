"""A lottery: the levels of iterative pruning with rewinding (arXiv:1803.03635, 1903.01611, 2003.02389).

Level 0 is the training of the network as it is given. At the end of each level the share `rate` of the surviving
weights is pruned, the network is rewound, and the next level begins: density after l prunings = (1 - rate) ** l of the
density at the start.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from .._version import __version__
from ..channels import add_followers
from ..masks import MaskedWeight, current_masks, set_masks
from ..patterns import PATTERNS
from ..pruning import Pruner
from ..scopes import SCOPES
from ..sparsities import check_no_budget
from .rewind import REWINDS, RewindPoint, Snapshot, rewind
from .ticket import Ticket


@dataclasses.dataclass(frozen=True)
class Lottery:
    """What a lottery's levels have in common; checked once.

    Attributes:
        levels: number of prunings; trainings are one more.
        rate: fraction of the surviving weights that each pruning takes.
        point: where to rewind to.
        rewind: "weights", "learning_rate" or "none".
        pruner: what prunes between the levels. What it watches begins at the rewind point, and anew whenever the
            weights are rewound to it.
    """

    levels: int
    rate: float
    point: RewindPoint
    rewind: str
    pruner: Pruner

    @classmethod
    def of(cls, levels: int, rate: float, rewind_to: Any, rewind: str, pruner: Pruner) -> Lottery:
        """The lottery of a user's words; ValueError if one makes no sense."""
        if not isinstance(levels, int) or isinstance(levels, bool) or levels < 1:
            raise ValueError(f"`levels` must be an integer >= 1. Received: levels={levels!r}")
        if not isinstance(rate, float) or not 0 < rate < 1:
            raise ValueError(f"`rate` must be above 0 and below 1. Received: rate={rate!r}")
        if not isinstance(rewind, str) or rewind not in REWINDS:
            raise ValueError(f"`rewind` must be one of {', '.join(REWINDS)}. Received: rewind={rewind!r}")
        check_no_budget("A lottery", pruner.config.budget)
        return cls(levels, rate, RewindPoint.of(rewind_to), rewind, pruner)

    def begin_level(self, model: Any, level: int, density: float, to: Snapshot, optimizer: Any = None) -> None:
        """Prune what level - 1 has trained, and rewind; doing it again changes nothing.

        Args:
            model: the trained model.
            level: that begins, from 1.
            density: fraction of nonzeros with which level 0 began.
            to: the snapshot to rewind to.
            optimizer: with which it was taken, if not the compiled one.
        """
        sparsity = 1 - density * (1 - self.rate) ** level
        if self.pruner.config.channels:
            add_followers(model)
        set_masks(model, self.pruner.masks(model, sparsity), optimizer)
        rewind(model, to, self.rewind, optimizer)
        if self.rewind == "weights":
            self.pruner.begin(model)

    def ticket(self, model: Any, to: Snapshot, results: list[dict[str, Any]]) -> Ticket:
        """The ticket of a model's masks and the weights of the rewind point."""
        versions = {"keras": keras.__version__, "kprune": __version__}
        return Ticket(current_masks(model), to.weights, {"settings": self.settings, "results": results, **versions})

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two lotteries the same."""
        config = self.pruner.config
        return {
            "levels": self.levels,
            "rate": self.rate,
            "rewind_to": dataclasses.asdict(self.point),
            "rewind": self.rewind,
            "criterion": config.name,
            "scope": SCOPES.name_of(config.scope),
            "pattern": PATTERNS.name_of(config.pattern),
            "rounds": config.rounds,
            "seed": config.seed,
        }


def density(weights: list[MaskedWeight]) -> float:
    """Fraction of True over the masks of these weights."""
    return sum(int(weight.kept().sum()) for weight in weights) / max(1, sum(weight.size for weight in weights))
