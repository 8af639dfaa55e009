"""EarlyBird: prune as soon as training no longer changes which weights to keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.lottery.levels import density
from kprune.lottery.rewind import Snapshot, rewind, snapshot
from kprune.masks import Masks, masked_weights, set_masks
from kprune.masks.matching import mask_distance
from kprune.pruning import Pruner
from kprune.runtime.files import joined, split
from kprune.schedules import check_sparsity
from kprune.sparsities import check_no_budget

from .base import MaskingCallback


class EarlyBird(MaskingCallback):
    """After each epoch, compute the masks that pruning would produce; prune once they settle (arXiv:1909.11957).

    Of the last `patience` masks, the newest is compared with each other one: when there are so many and the largest
    distance (`kprune.analysis.mask_distance`: the fraction of entries that differ) is below `threshold`, the newest
    are set. The paper trains with large learning rates until then, and trains the ticket on from there:
    `fit` once more, on the model that is now sparse.

    Keras's logs get `mask_distance`, the largest of an epoch: NaN in the first, which has nothing to compare with, and
    0 once the masks are set. To watch it, list this callback before CSVLogger and the like.

    Args:
        criterion: a name or function, as in `kprune.PruningConfig`; or a `PruningConfig`. The paper keeps the channels
            with the largest scales of normalization; here the nearest is pattern="channel".
        sparsity: fraction of zeros over all masked weights, in [0, 1).
        threshold: above 0, at most 1; 0.1 in the paper. Two masks of sparsity s differ in at most 2 * min(s, 1 - s) of
            their entries, so high sparsities need a smaller one; a warning is logged where any masks would settle.
        patience: how many masks are kept, at least 2; 5 in the paper.
        stop: whether the fit ends when the masks have settled; otherwise it trains the sparse network on.
        data, batches: as in `kprune.prune`.
        config_fields: scope, pattern, rounds and seed, as in `kprune.PruningConfig`.

    Attributes:
        settled_at: the epoch, from 0, at whose end the masks were set; None if they have not settled.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: the model has nothing to mask, or its optimizer cannot
            keep weights at zero (Muon); at an epoch's end: a score is not finite.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> bird = kprune.callbacks.EarlyBird("magnitude", 0.5, patience=3)
    >>> fitted = model.fit(np.ones((32, 8)), np.ones((32, 1)), epochs=20, verbose=0, callbacks=[bird])
    >>> bird.settled_at, len(fitted.epoch), kprune.summary(model).sparsity
    (2, 3, 0.5)
    """

    prunes = "during"

    def __init__(
        self,
        criterion: str | Callable[..., Any] | PruningConfig = "magnitude",
        sparsity: float = 0.9,
        *,
        threshold: float = 0.1,
        patience: int = 5,
        stop: bool = True,
        data: Any = None,
        batches: int | None = 1,
        **config_fields: Any,
    ):
        super().__init__()
        check_sparsity("sparsity", sparsity)
        self.pruner = Pruner(PruningConfig.of(criterion, **config_fields), data, batches)
        check_no_budget("EarlyBird", self.pruner.config.budget)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
            raise ValueError(f"`threshold` must be a number above 0 and at most 1. Received: threshold={threshold!r}")
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 2:
            raise ValueError(f"`patience` must be an integer >= 2. Received: patience={patience!r}")
        self.sparsity, self.threshold, self.patience, self.stop = sparsity, threshold, patience, stop
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self.settled_at: int | None = None
        self._masks: list[Masks] = []
        self._drawn = -1  # the last epoch at whose end masks were drawn
        self._distance = math.nan  # the largest of that epoch
        self._end: Snapshot | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if not self._restored:
            self._begin()
            self.pruner.forget()
            self.pruner.begin(self.model)
        largest = 2 * min(self.sparsity, 1 - self.sparsity)
        if largest < self.threshold:
            logging.warning(
                "EarlyBird: two masks of sparsity %.4g can differ in at most a fraction of %.4g of their entries, "
                "which is below threshold=%.4g, so any masks count as settled. Set a lower threshold.",
                self.sparsity,
                largest,
                self.threshold,
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        with self.undone():
            # A backup that is listed before this callback is written before the masks of its epoch are drawn.
            if self._restored and self._drawn < epoch - 1:
                self._draw(epoch - 1)
        super().on_epoch_begin(epoch)
        self.pruner.resume(self.model)
        self._drawn = epoch - 1
        if self.settled_at is not None and self.stop:
            # Killed after its last epoch. A fit that has begun an epoch takes a step before it stops.
            self._end = snapshot(self.model)
            self.model.stop_training = True

    def _works_after(self, batch: int) -> bool:
        return self._end is not None or self.pruner.watches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._end is not None:
            rewind(self.model, self._end)
        elif self.pruner.watches:
            self.pruner.after_step(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self._drawn < epoch:  # once, also where the callback is listed twice
            self._draw(epoch)
        if logs is not None:
            logs["mask_distance"] = self._distance
            logs["sparsity"] = 1 - density(masked_weights(self.model))  # with the masks that were set just now
        if self.settled_at is not None and self.stop:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        self.pruner.end()

    def _draw(self, epoch: int) -> None:
        """Compute the masks after an epoch, and apply them if they have settled."""
        self._drawn = epoch
        if self.settled_at is not None:
            self._distance = 0.0
            return
        newest, others = self.pruner.masks(self.model, self.sparsity), self._masks[-self.patience + 1 :]
        self._masks = [*others, newest]
        self._distance = max((mask_distance(newest, masks) for masks in others), default=math.nan)
        if len(self._masks) == self.patience and self._distance < self.threshold:
            set_masks(self.model, newest)
            self.settled_at, self._masks = epoch, []
            logging.info("EarlyBird: the masks settled in epoch %d, at a distance of %.4f.", epoch + 1, self._distance)

    def get_state(self) -> dict[str, np.ndarray]:
        settled_at = -1 if self.settled_at is None else self.settled_at
        masks = {f"{i}/{j}": m for i, masks in enumerate(self._masks) for j, m in enumerate(masks.values())}
        epochs = {"epochs": np.array([self._drawn, settled_at])}
        return {**epochs, **masks, **joined(tracker=self.pruner.get_state())}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        self._drawn, settled_at = map(int, state["epochs"])
        self.settled_at = None if settled_at < 0 else settled_at
        tracked = {key: array for key, array in state.items() if key.startswith("tracker/")}
        self.pruner.set_state(self.model, split(tracked, "tracker")["tracker"])
        # By order: Keras may have given the layers other names since.
        paths = [weight.path for weight in masked_weights(self.model)]
        masks = [mask for key, mask in state.items() if key[0].isdigit()]
        self._masks = [
            dict(zip(paths, masks[i : i + len(paths)], strict=True)) for i in range(0, len(masks), len(paths))
        ]
