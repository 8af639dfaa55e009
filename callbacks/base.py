"""What the pruning callbacks share: the masks are there before the first step, and the optimizer leaves zeros alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kprune.masks import moved_weights, strip
from kprune.pruning import mask_for_pruning
from kprune.runtime.distribution import warn_of_keras_fit
from kprune.runtime.optimizers import check_optimizer

from ._carrier import Carrier, carry, release


class Callback(keras.callbacks.Callback):
    """A Keras 3 callback that tf_keras's `fit` takes too.

    tf_keras asks its callbacks a few questions by private names (checked with tf_keras 2.21): which batch hooks they
    have, and whether they want logs as tensors.
    """

    _supports_tf_logs = False
    _chief_worker_only = False

    def _implements_train_batch_hooks(self) -> bool:
        return not getattr(self.on_train_batch_end, "_is_default", False)

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False


class MaskingCallback(Callback):
    """A callback that prunes the model it is given: masks it first if it has no masks.

    `set_model` runs before the trainer makes its compiled functions, so the masks cost no retracing.
    """

    _restored = False
    _carrier: Carrier

    def __init__(self) -> None:
        super().__init__()
        warn_of_keras_fit()

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if getattr(model, "optimizer", None) is not None:
            check_optimizer(model.optimizer)
        self._fresh = mask_for_pruning(model)
        self._carrier = Carrier(model, None)  # of a loop that gives its callbacks no params

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self._restored = False
        self._carrier = carry(self.model, self, params)

    def get_state(self) -> dict[str, np.ndarray]:
        """What the callback knows that is in neither weights nor masks, for a backup."""
        return {}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `get_state` gave to a backup. It comes before or after `on_train_begin`."""
        self._restored = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._carrier.begin(epoch)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """An exception inside leaves the model without the masks that this callback gave it."""
        try:
            yield
        except BaseException:
            if self._fresh:
                strip(self.model)
            raise

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        check_zeros(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        release(self.model)


def check_zeros(model: Any) -> None:
    """Raises RuntimeError, naming the weights, if a pruned entry is not exactly 0."""
    moved = moved_weights(model)
    if moved:
        raise RuntimeError(
            f"Pruned entries of {', '.join(moved[:4])} are no longer 0. Something besides the masked layers' call used "
            "or changed them: a layer that reads another layer's kernel, a constraint that moves zeros, weights loaded "
            "in mid-training, or an optimizer that updates weights without a gradient. "
            f"Received: optimizer={type(model.optimizer).__name__}"
        )
