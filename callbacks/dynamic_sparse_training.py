"""DynamicSparseTraining: sparse from the start, with weights that move to better places during training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.growth import METHODS, drop_and_grow
from kprune.masks import masked_weights, set_masks
from kprune.masks.optimizers import check_is_optimizer
from kprune.runtime.files import joined, split
from kprune.schedules import Schedule, as_schedule, check_sparsity
from kprune.scopes import SCOPES, shares_of
from kprune.util.checks import check_integer, check_number
from kprune.util.ranking import zeros_for
from kprune.util.registry import trait

from ._counter import Counter
from .base import MaskingCallback


class DynamicSparseTraining(MaskingCallback):
    """Train a sparse network whose weights move: the smallest are dropped, others are grown in their place.

    Before the first step the network is made sparse at random, unless it is so already. Every `frequency` steps, until
    `stop`, each weight drops the share of its entries that are smallest, and grows as many elsewhere, from 0: its
    density stays as it is, and the optimizer's slots of what changed are zeroed. What is drawn at random depends on the
    seed and the step only.

    Args:
        method: what to grow: "set" at random (arXiv:1707.04780); "rigl" where the loss's gradient is largest
            (arXiv:1911.11134; needs data, and its share falls along half a cosine to 0 at `stop`); or a function as a
            criterion, higher = grow.
        sparsity: fraction of zeros over all masked weights, in [0, 1); or a schedule, by which it may rise (GraNet,
            arXiv:2106.10404) as the weights move.
        scope: how the sparsity is shared among the weights, as in `kprune.PruningConfig`.
        share: fraction of each weight's entries that an update drops, above 0 and below 1.
        frequency: steps between two updates, at least 1.
        stop: the last step with an update: an int counts steps, a float is a share of the fit's planned steps.
        pattern: as in `kprune.PruningConfig`.
        data, batches: as in `kprune.prune`, for methods that ask the loss.
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

    prunes = True
    prunes_in_training = True

    def __init__(
        self,
        method: str | Callable[..., Any] = "set",
        sparsity: float | Schedule = 0.9,
        *,
        scope: str | Callable[..., Any] = "erk",
        share: float = 0.3,
        frequency: int = 100,
        stop: float | int = 0.75,
        pattern: str | Callable[..., Any] = "unstructured",
        data: Any = None,
        batches: int | None = 1,
        seed: int = 0,
        optimizer: Any = None,
    ):
        super().__init__()
        if not callable(sparsity):
            check_sparsity("sparsity", sparsity)
        check_number("share", share, "above 0 and below 1", lambda value: 0 < value < 1)
        check_integer("frequency", frequency, 1)
        if isinstance(stop, float):
            check_number("stop", stop, "in [0, 1], a share of the fit's steps, or an integer", lambda v: 0 <= v <= 1)
        else:
            check_integer("stop", stop, 0)
        check_is_optimizer("optimizer", optimizer)
        self.method = METHODS.get(method)
        self.schedule = as_schedule(sparsity) if callable(sparsity) else None
        self.sparsity = sparsity
        self.start = PruningConfig("random", scope=scope, pattern=pattern, seed=seed)
        self.share, self.frequency, self.stop = share, frequency, stop
        self.data = PruningConfig(self.method).take(data, batches) or None
        self.optimizer = optimizer
        self._counter = Counter(self, optimizer)
        self._begin()

    @property
    def prunes_channels(self) -> bool:
        return self.start.channels

    def _begin(self) -> None:
        """Forget an earlier fit."""
        self._counter.forget()
        self.updates = 0
        self._end: int | None = None  # the last step with an update

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if self._restored:
                return
            self._begin()
            weights, sparsity = masked_weights(self.model), self._sparsity(self._counter.now())
            size, kept = sum(w.size for w in weights), sum(int(w.kept().sum()) for w in weights)
            if size - kept < zeros_for(size, sparsity):
                set_masks(self.model, self.start.masks(self.model, sparsity), self.optimizer)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        with self.undone():
            taken = self._counter.begin_epoch()
            if self._end is None:
                self._end = (self._counter.begun or 0) + self._steps(epoch)
            self._update(taken)
        super().on_epoch_begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        taken = self._counter.after_batch(batch, self._due(self.updates + 1))
        if taken is not None:
            self._update(taken)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._update(self._counter.end_epoch())
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        if self.updates == 0:
            logging.warning(
                "DynamicSparseTraining: no weight has moved, because the first update is due at step %d and the last "
                "at step %s. Lower `frequency`, raise `stop`, or train longer.",
                self.frequency,
                None if self._end is None else self._end - (self._counter.begun or 0),
            )

    def get_state(self) -> dict[str, np.ndarray]:
        state = {"0": np.array(self._counter.get_state(), "float64")}
        end = -1 if self._end is None else self._end
        return joined(counter=state, updates={"0": np.array([self.updates, end], "int64")})

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        held = split(state, "counter", "updates")
        self._counter.set_state(held["counter"]["0"].tolist())
        self.updates, end = held["updates"]["0"].tolist()
        self._end = None if end < 0 else end

    def _due(self, update: int) -> int:
        return (self._counter.begun or 0) + update * self.frequency

    def _update(self, taken: int) -> None:
        """Move weights if an update is due; of several that passed at once, only the last."""
        last = (min(taken, self._end or 0) - (self._counter.begun or 0)) // self.frequency
        if last <= self.updates:
            return
        self.updates, step = last, self._due(last)
        masks = drop_and_grow(
            self.model,
            self.method,
            self._n_keep(step),
            self._share(step),
            pattern=self.start.pattern,
            seed=self.start.seed + step,
            data=self.data,
            batches=None,
        )
        set_masks(self.model, masks, self.optimizer)

    def _share(self, step: int) -> float:
        if not trait(self.method, "anneals", False):
            return self.share
        begun = self._counter.begun or 0
        return self.share * (1 + math.cos(math.pi * (step - begun) / max(1, (self._end or 0) - begun))) / 2

    def _sparsity(self, step: int) -> float:
        return float(self.sparsity) if self.schedule is None else self.schedule(step)  # type: ignore[arg-type]

    def _n_keep(self, step: int) -> dict[str, int]:
        """path -> number of entries that each weight keeps from this step on."""
        weights = masked_weights(self.model)
        if self.schedule is None:
            return {weight.path: int(weight.kept().sum()) for weight in weights}
        scores = {weight.path: np.abs(weight.value()) for weight in weights}
        return shares_of(SCOPES.get(self.start.scope), scores, self._sparsity(step))

    def _steps(self, epoch: int) -> int:
        """The number of steps, from where the fit starts, until which weights move."""
        if not isinstance(self.stop, float):
            return self.stop
        planned = self._counter.planned(epoch)
        if planned is None:
            raise ValueError(
                "`stop` is a share of the fit's steps, which are unknown: pass steps_per_epoch to fit, or `stop` as a "
                f"number of steps. Received: stop={self.stop!r}"
            )
        return math.floor(round(self.stop * planned, 6))
