"""A lottery: the levels of iterative pruning with rewinding (arXiv:1803.03635, 1903.01611, 2003.02389).

Level 0 is the training of the network as it is given. At the end of each level the share `rate` of the surviving
weights is pruned, the network is rewound, and the next level begins: density after l prunings = (1 - rate) ** l of the
density at the start.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import keras

from .._version import __version__
from ..channels import add_followers
from ..masks import MaskedWeight, current_masks, masked_weights, set_masks
from ..patterns import PATTERNS
from ..pruning import Pruner
from ..runtime.files import joined, pack, read, split, understanding, unpack, write
from ..scopes import SCOPES
from ..sparsities import check_no_budget
from ..util.checks import check_integer
from .rewind import RewindPoint, Snapshot, check_rewind, restore, rewind, snapshot
from .ticket import Ticket

STATE = "state.npz"
_POINT = "rewind-point.npz"


@dataclasses.dataclass(frozen=True)
class Level:
    """One training run of a lottery, as `find_ticket` passes it to the user's function.

    Attributes:
        number: 0 for the network as it is given, then 1, 2 ...
        sparsity: fraction of zeros over all masked weights.
        initial_epoch: the epoch at which its training begins, for `fit(initial_epoch=...)`: 0, or after a rewind the
            one in which the rewind point lies.
        callbacks: must be among those of `fit`.
        folder: a folder of its own for what the training writes (backups, logs), None without
            `folder=`.
    """

    number: int
    sparsity: float
    initial_epoch: int
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    folder: Path | None = None


@dataclasses.dataclass(frozen=True)
class Lottery:
    """The settings shared by a lottery's levels, validated once.

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
        """Build the lottery that the user's arguments describe; raise ValueError if any argument is invalid."""
        check_integer("levels", levels, 1)
        if not isinstance(rate, Real) or not 0 < rate < 1:  # True is 1, and False is 0
            raise ValueError(
                "`rate` must be a number above 0 and below 1, the fraction of the remaining weights to prune per level."
                f" Received: rate={rate!r}"
            )
        check_rewind("rewind", rewind)
        check_no_budget("A lottery", pruner.config.budget)
        return cls(levels, float(rate), RewindPoint.of(rewind_to), rewind, pruner)

    def run(self, model: Any, state: State, optimizer: Any = None) -> Iterator[Level]:
        """Yield the unfinished levels; the model is pruned and rewound when the next level is requested.

            for level in lottery.run(model, state):
                ...  # train; level 0 sets `state.to` where it comes to the rewind point
                state.results.append({"level": level.number})

        Doing the beginning of a level again, as a process does that was killed in it, changes nothing.

        Args:
            model: masked; trained as it was when the last level in `state.results` ended.
            state: what is known between two levels.
            optimizer: with which the snapshot was taken, if not the compiled one.
        """
        for number in range(len(state.results), self.levels + 1):
            if number:
                sparsity = 1 - state.density * (1 - self.rate) ** number
                if self.pruner.config.channels:
                    add_followers(model)
                set_masks(model, self.pruner.masks(model, sparsity), optimizer)
                rewind(model, state.taken(), self.rewind, optimizer)
                if self.rewind == "weights":
                    self.pruner.begin(model)
            yield Level(number, 1 - density(masked_weights(model)), state.initial_epoch if number else 0)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that identify a lottery."""
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


@dataclasses.dataclass
class State:
    """The state of a lottery between two levels.

    Attributes:
        density: fraction of nonzeros with which level 0 began.
        to: the snapshot of the rewind point, once level 0 has come to it.
        initial_epoch: at which the later levels begin.
        results: a dict for each level that has ended.
    """

    density: float
    to: Snapshot | None = None
    initial_epoch: int = 0
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _kept: bool = False  # whether the folder has the rewind point

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None, lottery: Lottery, model: Any) -> State:
        """Restore and return the state after the last finished level, or return the initial state if there is none."""
        data = None if folder is None else read(Path(folder, STATE))
        if folder is None or data is None:
            begin = cls(density(masked_weights(model)), snapshot(model) if lottery.point.steps == 0 else None)
            begin.save(folder, lottery, model)
            return begin
        arrays, about = unpack(data, str(Path(folder, STATE)))
        if about.get("settings") != lottery.settings:
            raise ValueError(
                f"The folder belongs to a lottery with different settings: {about.get('settings')!s:.1000}. Choose "
                f"another folder, or delete this one. Received: folder={os.fspath(folder)!r}, "
                f"settings={lottery.settings}"
            )
        own = not any(name.startswith("to/") for name in arrays)  # kprune 0.1 kept the rewind point in this file
        to = rewind_point(folder) if own and (about.get("results") or lottery.point.steps == 0) else None
        with understanding(str(Path(folder, STATE))):
            parts = split(arrays, "mask", "now", "to", "tracker")
            to = to if own else Snapshot.from_arrays(parts["to"])
            state = cls(about["density"], to, about["initial_epoch"], about["results"], own and to is not None)
            state._check()
            for then in (to, Snapshot.from_arrays(parts["now"])):
                if then is not None:
                    restore(model, parts["mask"], then)
            lottery.pruner.set_state(model, parts["tracker"])
        return state

    def _check(self) -> None:
        """Raise ValueError unless the state is one that `save` could have written."""
        right = type(self.density) is float and 0 <= self.density <= 1
        right = right and type(self.initial_epoch) is int and self.initial_epoch >= 0 and type(self.results) is list
        if not right or [result["level"] for result in self.results] != list(range(len(self.results))):
            raise ValueError(
                f"the stored progress is invalid (density={self.density!r}, initial_epoch={self.initial_epoch!r}, "
                f"results={self.results!r:.100})"
            )

    def taken(self) -> Snapshot:
        """Return the snapshot taken at the rewind point; raise RuntimeError if level 0 did not reach it."""
        if self.to is None:
            raise RuntimeError(
                "Training did not reach the rewind point: train at least to that point, and pass `level.callbacks` to "
                "fit()."
            )
        return self.to

    def ticket(self, lottery: Lottery, model: Any) -> Ticket:
        """Return the ticket: the model's masks and the weights at the rewind point."""
        versions = {"keras": keras.__version__, "kprune": __version__}
        about = {"settings": lottery.settings, "results": self.results, **versions}
        return Ticket(current_masks(model), self.taken().weights, about)

    def end(
        self, level: Level, result: dict[str, Any], folder: str | os.PathLike[str] | None, lottery: Lottery, model: Any
    ) -> None:
        """Record the result of a finished level, and save it along with its ticket if there is a folder."""
        self.taken()
        self.results.append({**result, "level": level.number, "sparsity": level.sparsity})
        if folder is not None:
            self.ticket(lottery, model).save(Path(folder, f"level-{level.number}.npz"))
            self.save(folder, lottery, model)

    def save(self, folder: str | os.PathLike[str] | None, lottery: Lottery, model: Any) -> None:
        """Store the state in the folder, if there is one; store the rewind point only once, when it is first known."""
        if folder is None:
            return
        if self.to is not None and not self._kept:
            write(Path(folder, _POINT), pack(self.to.to_arrays(), {}))
            self._kept = True
        tracked = lottery.pruner.get_state()
        arrays = joined(mask=current_masks(model), now=snapshot(model).to_arrays(), tracker=tracked)
        known = {"density": self.density, "initial_epoch": self.initial_epoch, "results": self.results}
        write(Path(folder, STATE), pack(arrays, {"settings": lottery.settings, **known}))


def rewind_point(folder: str | os.PathLike[str]) -> Snapshot:
    """Read the rewind point from a lottery's folder; raise ValueError if it is damaged or missing."""
    file = Path(folder, _POINT)
    data = read(file)
    if data is None:
        raise ValueError(
            "The lottery's rewind point is missing: restore this file, or start over in another folder. Received: "
            f"file={str(file)!r}"
        )
    arrays, _ = unpack(data, str(file))
    with understanding(str(file)):
        return Snapshot.from_arrays(arrays)


def density(weights: list[MaskedWeight]) -> float:
    """Return the fraction of these weights' entries that the masks keep."""
    return sum(int(weight.kept().sum()) for weight in weights) / max(1, sum(weight.size for weight in weights))
