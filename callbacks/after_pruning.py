"""AfterPruning: limit EarlyStopping and ModelCheckpoint to the epochs that have the final masks."""

from __future__ import annotations

from typing import Any

from absl import logging

from kprune.masks import masked_weights

from ._carrier import carrier_of
from .base import Callback


class AfterPruning(Callback):
    """Limit a callback that tracks the best epoch to the epochs from the last pruning step onward.

    The best of a fit that prunes is often an epoch from before, with a denser network: that is what
    `ModelCheckpoint(save_best_only=True)` saves and `EarlyStopping(restore_best_weights=True)` brings back. Inside of
    this, the callback sees no epoch while nothing is pruned, or while the fit is to reach another update of
    GradualPruning's schedule; and it starts anew in each epoch that changed the masks. Of a fit that does not know its
    steps, the end of the schedule is not known: EarlyStopping's `patience` must be longer than its rests then.

    Args:
        callback: of Keras 3 or tf_keras as the model is; `keras.callbacks.EarlyStopping`, `ModelCheckpoint`,
            `ReduceLROnPlateau`, or one of your own that keeps its best value in `best`.

    Raises:
        ValueError: the callback keeps no best value, or saves by batches.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> schedule = kprune.schedules.Constant(0.5, begin_step=4)
    >>> stop = keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)
    >>> callbacks = [kprune.callbacks.GradualPruning(schedule), kprune.AfterPruning(stop)]
    >>> _ = model.fit(np.ones((8, 8)), np.ones((8, 1)), epochs=6, callbacks=callbacks, verbose=0)
    >>> stop.best_epoch >= 3
    True
    """

    def __init__(self, callback: Any):
        super().__init__()
        if not (hasattr(callback, "best") or hasattr(callback, "restore_best_weights")) or not hasattr(
            callback, "on_epoch_end"
        ):
            raise ValueError(
                "`callback` must track the best epoch, as EarlyStopping and ModelCheckpoint do. "
                f"Received: callback={callback!r}"
            )
        if getattr(callback, "save_freq", "epoch") != "epoch":
            raise ValueError(
                "`callback` must save at the end of each epoch: set its save_freq to 'epoch'. Received: "
                f"save_freq={callback.save_freq!r}"
            )
        self.callback = callback
        self._first = getattr(callback, "best", None)
        self._zeros = 0

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self.callback.set_model(model)

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.callback.set_params(params)

    def on_train_begin(self, logs: Any = None) -> None:
        self._zeros = 0
        self.callback.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        zeros = sum(int((~weight.kept()).sum()) for weight in masked_weights(self.model))
        if zeros != self._zeros:
            self.callback.best = self._first
            self.callback.on_train_begin(logs)
            self._zeros = zeros
        carrier = carrier_of(self.model)
        if zeros and not any(one.prunes_after(epoch) for one in (carrier.callbacks if carrier else ())):
            self.callback.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        if not self._zeros:
            logging.warning(
                "kprune: nothing was pruned during training, so AfterPruning never activated %s. Add a pruning "
                "callback.",
                type(self.callback).__name__,
            )
        self.callback.on_train_end(logs)
