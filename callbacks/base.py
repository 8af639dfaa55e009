"""What the pruning callbacks share: the masks are there before the first step, and the optimizer leaves zeros alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kprune.masks import Undo, masked_weights
from kprune.runtime.distribution import warn_of_keras_fit
from kprune.runtime.optimizers import check_optimizer

from ._carrier import Carrier, carry


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

    `set_model` runs before the trainer makes its compiled functions, so the masks cost no retracing. `evaluate` and
    `predict` call it too; they leave a model without the masks that it did not have before.

    As a fit begins, all callbacks `check_fit` before the first one changes anything. Whatever is raised inside
    `undone()` until the last of them has begun its first epoch leaves the model as it was before the fit.
    """

    prunes_in_training = False
    """Whether masks may change after the fit's first step, so that an earlier epoch's network is a denser one."""

    _restored: bool = False
    _carrier: Carrier

    def __init__(self) -> None:
        super().__init__()
        warn_of_keras_fit()

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if getattr(model, "optimizer", None) is not None:
            check_optimizer(model.optimizer)
        self._carrier = Carrier(model, None, Undo(model))  # of a loop that gives its callbacks no params
        self._carrier.callbacks.append(self)

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self._restored = False
        self._carrier = carry(self.model, self, params, self._carrier.undo)

    def get_state(self) -> dict[str, np.ndarray]:
        """What the callback knows that is in neither weights nor masks, for a backup."""
        return {}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `get_state` gave to a backup. It comes before or after `on_train_begin`."""
        self._restored = True

    def check_fit(self) -> None:
        """Raise what speaks against this fit; the model is not to be changed here."""

    def cancel_fit(self) -> None:
        """Give back what `check_fit` and `on_train_begin` took, other than the model: the fit does not take place."""

    @contextmanager
    def undone(self) -> Iterator[None]:
        """An exception inside, while the fit begins, leaves the model as it was before the fit, bit for bit."""
        with self._carrier.undone():
            yield

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            pass

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._carrier.begin(epoch, self)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        check_zeros(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        self._carrier.end()

    def on_test_begin(self, logs: Any = None) -> None:
        self._carrier.leave()

    def on_predict_begin(self, logs: Any = None) -> None:
        self._carrier.leave()


def check_zeros(model: Any) -> None:
    """Raises RuntimeError, naming the weights, if a pruned entry is not exactly 0."""
    found = {weight.path: weight.value()[~weight.kept()] for weight in masked_weights(model)}
    moved = [path for path, pruned in found.items() if np.any(pruned != 0)]
    diverged = [path for path in moved if np.any(np.isnan(found[path]))]
    if diverged:
        raise RuntimeError(
            f"{', '.join(diverged[:4])} became NaN: the training has diverged, and NaN times the zero of a pruned "
            "entry is NaN. A lower learning rate, clipped gradients or a scaled loss may help. "
            f"Received: optimizer={type(model.optimizer).__name__}"
        )
    if moved:
        raise RuntimeError(
            f"Pruned entries of {', '.join(moved[:4])} are no longer 0. Something besides the masked layers' call used "
            "or changed them: a layer that reads another layer's kernel, a constraint that moves zeros, weights loaded "
            "in mid-training, or an optimizer that updates weights without a gradient. "
            f"Received: optimizer={type(model.optimizer).__name__}"
        )
