"""GradualPruning: prune during training, as a schedule says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.masks import masked_weights, set_masks
from kprune.pruning import Pruner
from kprune.runtime.files import joined, split
from kprune.runtime.optimizers import batches_per_step, iterations
from kprune.schedules import Schedule, as_schedule

from .base import MaskingCallback


class GradualPruning(MaskingCallback):
    """Raise the sparsity step by step while the model trains (arXiv:1710.01878).

    Masks are updated when `optimizer.iterations` reaches an update step of the schedule, at the first batch end from
    then on (with `steps_per_execution` = n, at most n - 1 steps late). The last update lands exactly on the final
    sparsity. Before training starts the schedule is held against the planned number of steps, and a warning is logged
    if the fit ends before the schedule does.

    Args:
        schedule: from `kprune.schedules`, or a tfmot `PruningSchedule` (on either Keras). With
            `kprune.schedules.PerLayer` each group of weights has a schedule, and the scope shares each group's
            sparsity within it.
        criterion: a name or function, as in `kprune.PruningConfig`; or a `PruningConfig`. What goes by how training
            went ("movement", "large_init" ...) is watched from the start of the fit on.
        data, batches: as in `kprune.prune`.
        config_fields: scope, pattern, rounds (here 1 by default) and seed, as in `kprune.PruningConfig`.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: the model has nothing to mask, or its optimizer cannot
            keep weights at zero (Muon), or an expression of a `PerLayer` is found in no masked weight's path; at an
            update: a score is not finite, or weights would be pruned by their "movement" before any has moved.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> schedule = kprune.schedules.PolynomialDecay(0.0, 0.75, begin_step=2, end_step=8, frequency=2)
    >>> callback = kprune.callbacks.GradualPruning(schedule)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity
    0.75
    """

    def __init__(
        self,
        schedule: Schedule | Any,
        criterion: str | Callable[..., Any] = "magnitude",
        *,
        data: Any = None,
        batches: int | None = 1,
        **config_fields: Any,
    ):
        super().__init__()
        self.schedule = as_schedule(schedule)
        if not isinstance(criterion, PruningConfig):
            config_fields = {"rounds": 1, **config_fields}
        self.pruner = Pruner(PruningConfig.of(criterion, **config_fields), data, batches)
        self._updated_at: int | None = None

    def check_fit(self) -> None:
        self.schedule.check(weight.path for weight in masked_weights(self.model))

    def on_train_begin(self, logs: Any = None) -> None:
        self._updated_at = None
        with self.undone():
            self._warn_of_a_short_fit()
            if not self._restored:
                self.pruner.forget()
                self.pruner.begin(self.model)
            self._update(iterations(self.model))

    def get_state(self) -> dict[str, np.ndarray]:
        return joined(tracker=self.pruner.get_state())

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        # Backups of kprune 0.1 name the tracker by its criterion.
        held = split(state, "tracker", "initial", "movement")
        self.pruner.set_state(self.model, next(filter(None, held.values()), {}))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch)
        self.pruner.resume(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        taken = iterations(self.model)
        if self.pruner.watches:
            self.pruner.after_step(self.model)
        self._update(taken)

    def _update(self, taken: int) -> None:
        # Also right after a resumed start: pruning again to a sparsity that the masks have already changes nothing.
        step = self.schedule.last_due(taken)
        if step is not None and step != self._updated_at:
            set_masks(self.model, self.pruner.masks(self.model, self.schedule.applied(step)))
            self._updated_at = step

    def _warn_of_a_short_fit(self) -> None:
        params = self.params or {}
        if not params.get("steps") or not params.get("epochs"):
            logging.warning(
                "GradualPruning: the number of steps of this fit is not known, so it cannot be checked that it reaches "
                "step %d, where the schedule ends; pass steps_per_epoch.",
                self.schedule.end_step,
            )
            return
        planned = params["steps"] * params["epochs"] // batches_per_step(self.model)
        # Of a PerLayer each member answers for itself.
        for expression, schedule in self.schedule.members().items():
            if planned < schedule.end_step:
                logging.warning(
                    "GradualPruning%s: this fit ends at step %d (%d steps x %d epochs), before the schedule's "
                    "end_step=%d: it reaches sparsity %.4g, not the final %.4g. Set end_step to at most %d, or train "
                    "longer.",
                    "" if expression is None else f" of {expression!r}",
                    planned,
                    params["steps"],
                    params["epochs"],
                    schedule.end_step,
                    schedule.applied(planned),
                    schedule.final_sparsity,
                    planned,
                )
