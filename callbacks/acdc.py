"""ACDC: alternate dense and sparse training to give pruned weights another chance, and end with a sparse network."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.growth import open_masks
from kprune.masks import masked_weights, set_masks
from kprune.pruning import Pruner
from kprune.runtime.files import joined, split
from kprune.schedules.planned import check_share, steps_of
from kprune.sparsities import check_one_goal
from kprune.util.checks import check_integer

from ._updating import UpdatingCallback


class ACDC(UpdatingCallback):
    """Alternate compressed and decompressed training (AC/DC, arXiv:2106.12379).

    The fit starts dense. At `begin` the network is pruned to the sparsity and trains on under its masks; then all masks
    open, the pruned weights train again from 0, and so on: 2 * cycles + 1 switches, evenly spaced, of which the first
    and the last, at `end`, prune. The optimizer's slots of what a switch prunes or opens are reset.

    Args:
        sparsity: fraction of zeros in the sparse phases, in (0, 1), 0.9 by default; or a dict of regular expression ->
            sparsity, as in `kprune.prune`.
        criterion: a name or function, as in `kprune.PruningConfig`; or a `PruningConfig`.
        begin, end: the first and the last switch, counted from where the fit starts: a float in [0, 1] is a share of
            the steps that the fit plans, an int a number of steps.
        cycles: how often all masks open, at least 1. With the defaults a phase is about a twentieth of the fit, as in
            the paper.
        optimizer: the one whose steps count, where a `train_step` has its own; the compiled one by default.
        data, batches: as in `kprune.prune`.
        config_fields: scope, pattern, groups, rounds (here 1 by default) and seed, as in `kprune.PruningConfig`.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or another one prunes in
            the same fit, or there are fewer steps from `begin` to `end` than phases.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = kprune.callbacks.ACDC(0.75, cycles=2)
    >>> history = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, epochs=6, verbose=0, callbacks=[callback])
    >>> history.history["sparsity"], callback.switches
    ([0.75, 0.0, 0.75, 0.0, 0.75, 0.75], (4, 13, 22, 31, 40))
    """

    store, alone = "zero", "brings pruned weights back"

    def __init__(
        self,
        sparsity: float | dict[str, float] = 0.9,
        criterion: str | Callable[..., Any] | PruningConfig = "magnitude",
        *,
        begin: float | int = 0.1,
        end: float | int = 0.85,
        cycles: int = 8,
        optimizer: Any = None,
        data: Any = None,
        batches: int | None = 1,
        **config_fields: Any,
    ):
        super().__init__(optimizer)
        if not isinstance(criterion, PruningConfig):
            config_fields = {"rounds": 1, **config_fields}
        self.pruner = Pruner(PruningConfig.of(criterion, **config_fields), data, batches)
        check_one_goal(sparsity, self.pruner.config.budget)
        for name, value in (("begin", begin), ("end", end)):
            check_share(name, value)
        check_integer("cycles", cycles, 1)
        self.sparsity, self.begin, self.end, self.cycles = sparsity, begin, end, cycles
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._counter.forget()
        self.switches: tuple[int, ...] = ()
        self._passed, self._taken = 0, 0

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()
                self.pruner.forget()
                self.pruner.begin(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch)
        self.pruner.resume(self.model)

    def plan(self, taken: int, epoch: int) -> None:
        if self.switches:
            return
        planned, phases = self._counter.planned(epoch), 2 * self.cycles
        first, last = (taken + steps_of(name, getattr(self, name), planned) for name in ("begin", "end"))
        if last - first < phases:
            raise ValueError(
                f"There must be at least {phases} steps, one for each phase, between `begin` (step {first}) and `end` "
                f"(step {last}). Received: begin={self.begin!r}, end={self.end!r}, "
                f"cycles={self.cycles}"
            )
        self.switches = tuple(first + (last - first) * i // phases for i in range(phases + 1))

    def next_due(self) -> int | None:
        return self.switches[self._passed] if self._passed < len(self.switches) else None

    def prunes_after(self, epoch: int) -> bool:
        due, left = self.next_due(), self._counter.planned(epoch + 1)
        return due is not None and left is not None and due <= self._taken + left

    def update(self, taken: int) -> None:
        """Make the network sparse or dense if a switch is due; if several are overdue, perform only the last one."""
        passed, self._taken = bisect_right(self.switches, taken), taken
        if passed == self._passed:
            return
        self._passed = passed
        if passed % 2:
            self.pruner.update(self.model, self.sparsity, self.optimizer)
        else:
            set_masks(self.model, open_masks(masked_weights(self.model)), self.optimizer)

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        self.pruner.end()
        if self._passed < len(self.switches):
            logging.warning(
                "ACDC: training ended at step %d, before the last switch at step %d, so %s. Lower `end`, or train "
                "longer.",
                self._taken,
                self.switches[-1],
                "the network is dense" if self._passed % 2 == 0 else "the final phases never ran",
            )

    def get_state(self) -> dict[str, np.ndarray]:
        return joined(
            tracker=self.pruner.get_state(),
            counter={"0": np.array(self._counter.get_state(), "float64")},
            switches={"0": np.array([self._passed, *self.switches], "int64")},
        )

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        held = split(state, "tracker", "counter", "switches")
        self._counter.set_state(held["counter"]["0"].tolist())
        self._passed, *switches = held["switches"]["0"].tolist()
        self.switches = tuple(switches)
        self.pruner.set_state(self.model, held["tracker"])
