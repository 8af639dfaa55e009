"""DynamicSparseTraining: train a network that is sparse from the start, with connections that move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.criteria import Compiled
from kprune.growth import METHODS, GradientMomentum, drop_and_grow, share_at
from kprune.masks import masked_weights, set_masks
from kprune.runtime.files import joined, split
from kprune.schedules import Constant, Schedule, as_schedule, check_sparsity
from kprune.schedules.planned import check_share, steps_of
from kprune.scopes import SCOPES
from kprune.scopes.base import shares_of
from kprune.util.checks import check_integer, check_number
from kprune.util.ranking import zeros_for
from kprune.util.registry import trait

from ._updating import UpdatingCallback


class DynamicSparseTraining(UpdatingCallback):
    """Train a sparse network whose connections move: the smallest weights are dropped and others grow instead.

    Before the first step the network is made sparse at random, unless it is so already. Every `frequency` steps, until
    `stop`, each weight drops the share of its entries that are smallest, and grows as many elsewhere, from 0: its
    density stays as it is, and the optimizer's slots of what changed are zeroed. What is drawn at random depends on the
    seed and the step only.

    Args:
        method: what to grow: "set" at random (arXiv:1707.04780); "rigl" where the loss's gradient is largest
            (arXiv:1911.11134; needs data, and its share falls along half a cosine to 0 at `stop`); "snfs" as "rigl",
            but where a running mean of gradients is largest: an estimate of sparse momentum (arXiv:1907.04840),
            without its moves between weights, see `kprune.growth.GradientMomentum`; or a function as a criterion,
            higher = grow.
        sparsity: fraction of zeros over all masked weights, in [0, 1); or a schedule, by which it may rise (GraNet,
            arXiv:2106.10404) as the weights move.
        initial_sparsity: that before the first step, in [0, 1), from where it goes linearly to `sparsity`, a number, at
            the last update: from above, the network starts very sparse and grows denser, by the connections that score
            highest. None: it is `sparsity` from the start.
        scope: how the sparsity is shared among the weights, as in `kprune.PruningConfig`.
        share: fraction of each weight's entries that an update drops, above 0 and below 1.
        frequency: steps between two updates, at least 1.
        stop: the last step with an update: an int counts steps, a float is a share of the fit's planned steps.
        pattern: as in `kprune.PruningConfig`.
        data, batches: as in `kprune.prune`, for methods that ask the loss.
        gradient_frequency: steps between two gradients of "snfs", at least 1; there is one at each update, too.
        seed: of the random network, and of methods that draw.
        optimizer: the one that trains, where a `train_step` has its own; the compiled one by default.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or `stop` is a share of
            steps that are not known.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = DynamicSparseTraining("set", 0.75, frequency=2)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity, callback.updates
    (0.75, 3)
    """

    store = "zero"

    def __init__(
        self,
        method: str | Callable[..., Any] = "set",
        sparsity: float | Schedule = 0.9,
        *,
        initial_sparsity: float | None = None,
        scope: str | Callable[..., Any] = "erk",
        share: float = 0.3,
        frequency: int = 100,
        stop: float | int = 0.75,
        pattern: str | Callable[..., Any] = "unstructured",
        data: Any = None,
        batches: int | None = 1,
        gradient_frequency: int = 10,
        seed: int = 0,
        optimizer: Any = None,
    ):
        super().__init__(optimizer)
        if not callable(sparsity):
            check_sparsity("sparsity", sparsity)
        if initial_sparsity is not None:
            check_sparsity("initial_sparsity", initial_sparsity)
            if callable(sparsity):
                raise ValueError(
                    "`initial_sparsity` cannot be combined with a schedule, which sets its own initial sparsity. "
                    "Received: "
                    f"initial_sparsity={initial_sparsity!r}, sparsity={sparsity!r:.200}"
                )
        check_number("share", share, "above 0 and below 1", lambda value: 0 < value < 1)
        check_integer("frequency", frequency, 1)
        check_integer("gradient_frequency", gradient_frequency, 1)
        check_share("stop", stop)
        self.schedule = as_schedule(sparsity if callable(sparsity) else Constant(sparsity))
        self.initial_sparsity = initial_sparsity
        self.start = PruningConfig("random", scope=scope, pattern=pattern, seed=seed)
        self.method, self.share, self.frequency, self.stop = METHODS.get(method), share, frequency, stop
        self.data, self.gradient_frequency = PruningConfig(self.method).take(data, batches) or None, gradient_frequency
        tracker = trait(self.method, "tracker", None)
        if tracker not in (None, GradientMomentum):
            raise ValueError(
                f"DynamicSparseTraining does not support methods that need the tracker {tracker.__name__}: the only "
                f"tracker that it supports is GradientMomentum. Received: method={method!r:.200}"
            )
        self.momentum = None if tracker is None else GradientMomentum(self.data, None)
        self._begin()

    @property
    def prunes_channels(self) -> bool:
        return self.start.channels

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._counter.forget()
        self.updates, self._gradients, self._compiled = 0, 0, Compiled()
        if self.momentum is not None:
            self.momentum.arrays = []
        self._end: int | None = None  # the last step with an update, counted from where the fit starts

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if self._restored:
                return
            self._begin()
            weights, sparsity = masked_weights(self.model), self._sparsity(self._counter.now())
            size, kept = sum(w.size for w in weights), sum(int(w.kept().sum()) for w in weights)
            if size - kept < zeros_for(size, sparsity):
                set_masks(self.model, self.start.masks(self.model, sparsity), self.optimizer)

    def plan(self, taken: int, epoch: int) -> None:
        if self._end is None:
            self._end = steps_of("stop", self.stop, self._counter.planned(epoch))

    def next_due(self) -> int | None:
        moves = (self.updates + 1) * self.frequency
        observes = moves if self.momentum is None else (self._gradients + 1) * self.gradient_frequency
        due = min(moves, observes)
        return None if self._end is not None and due > self._end else (self._counter.begun or 0) + due

    def update(self, taken: int) -> None:
        """Move connections if an update is due; if several are overdue, perform only the last one."""
        begun, end = self._counter.begun or 0, self._end or 0
        last, noted = (min(taken - begun, end) // every for every in (self.frequency, self.gradient_frequency))
        if self.momentum is not None and (noted > self._gradients or last > self.updates):
            self._gradients = noted
            self.momentum.after_step(self.model)
        if last > self.updates:
            self.updates, step = last, begun + last * self.frequency
            share = share_at(self.method, self.share, last * self.frequency / max(1, end))
            asked: dict[str, Any] = {"seed": self.start.seed + step, "data": self.data, "batches": None}
            asked |= {"trackers": self.momentum, "compiled": self._compiled}
            n_keep, pattern = self._n_keep(step), self.start.pattern
            masks = drop_and_grow(self.model, self.method, n_keep, share, pattern=pattern, **asked)
            set_masks(self.model, masks, self.optimizer)

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        self._compiled = Compiled()
        if self.momentum is not None:
            self.momentum.forget_programs()
        if self.updates == 0:
            what = f"the first update was due at step {self.frequency}, but updates ended at step {self._end}"
            cure = "Lower `frequency`, raise `stop`, or train longer."
            logging.warning("DynamicSparseTraining: the masks never changed, because %s. %s", what, cure)

    def get_state(self) -> dict[str, np.ndarray]:
        own = np.array([self.updates, -1 if self._end is None else self._end], "int64")
        parts = {"counter": {"0": np.array(self._counter.get_state(), "float64")}, "updates": {"0": own}}
        if self.momentum is not None:
            parts |= {"gradients": {"0": np.array(self._gradients)}, "momentum": self.momentum.get_state()}
        return joined(**parts)

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        held = split(state, "counter", "updates", *(() if self.momentum is None else ("gradients", "momentum")))
        self._counter.set_state(held["counter"]["0"].tolist())
        self.updates, end = held["updates"]["0"].tolist()
        self._end = None if end < 0 else end
        if self.momentum is not None:
            self._gradients = int(held["gradients"]["0"])
            self.momentum.set_state(held["momentum"])

    def _n_keep(self, step: int) -> dict[str, int]:
        """Map the path of each weight to the number of entries that it keeps from this step onward."""
        weights = masked_weights(self.model)
        if isinstance(self.schedule, Constant) and self.initial_sparsity is None:
            return {weight.path: int(weight.kept().sum()) for weight in weights}
        scores = {weight.path: np.abs(weight.value()) for weight in weights}
        return shares_of(SCOPES.get(self.start.scope), scores, self._sparsity(step))

    def _sparsity(self, step: int) -> float:
        if self.initial_sparsity is None:
            return self.schedule(step)
        last = (self._end or 0) // self.frequency * self.frequency  # the step of the last update
        begun = step if self._counter.begun is None else self._counter.begun
        progress = min(1.0, (step - begun) / last) if last else 0.0
        return self.initial_sparsity + (self.schedule(step) - self.initial_sparsity) * progress
