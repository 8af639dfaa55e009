"""Base classes of the pruning callbacks, which add masks before the first step and keep pruned weights at zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from absl import logging

import kprune.masks
from kprune.channels import add_followers
from kprune.masks import Undo, library_of, masked_weights
from kprune.report.reached import reached
from kprune.runtime.distribution import is_chief, warn_of_keras_fit
from kprune.runtime.optimizers import check_optimizer

from ._carrier import Carrier, carry
from ._config import Configured


class Callback(Configured, keras.callbacks.Callback):
    """A Keras 3 callback that the `fit` method of tf_keras also accepts.

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
    """Base class of the callbacks that prune, which first mask a model that has no masks.

    `set_model` runs before the trainer makes its compiled functions, so the masks cost no retracing. `evaluate` and
    `predict` call it too; they leave a model without the masks that it did not have before.

    As a fit begins, all callbacks `check_fit` before the first one changes anything. Whatever is raised inside
    `undone()` until the last of them has begun its first epoch leaves the model as it was before the fit.

    One that prunes puts `sparsity` (fraction of zeros over all masked weights) into Keras's logs at each epoch's end;
    at the end of a fit the last of them says what was reached.
    """

    store: str | None = None
    """What the masks must do with the values of pruned entries, as in `kprune.mask`; None leaves it to the model."""

    prunes: str = ""
    """When it prunes: never (""), "before" the first step, or "during" the fit, whose earlier networks are denser."""

    alone: str = ""
    """Why no other callback can prune in the same fit, if so: what it does, as the end of a sentence."""

    _restored: bool = False
    _carrier: Carrier

    @property
    def prunes_channels(self) -> bool:
        """Whether whole channels are pruned, in which case the parameters that follow them need masks as well."""
        pruner = getattr(self, "pruner", None)
        return pruner is not None and pruner.config.channels

    def __init__(self) -> None:
        super().__init__()
        warn_of_keras_fit()

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if getattr(model, "optimizer", None) is not None:
            check_optimizer(model.optimizer)
        other = next((weight for weight in masked_weights(model) if weight.store != (self.store or weight.store)), None)
        if other is not None and not library_of(model).IN_PLACE:
            raise ValueError(
                f"{type(self).__name__} supports Keras 3 models only, because it needs the values of pruned "
                f"weights, which tfmot's wrappers set to 0. Received: model={model.name!r}, library='tf_keras'"
            )
        if other is not None:
            raise ValueError(
                f"{type(self).__name__} requires masks with store={self.store!r}: call kprune.strip(model), then "
                f"kprune.mask(model, store={self.store!r}). Received: weight={other.path!r}, store={other.store!r}"
            )
        undo = Undo(model, store=self.store)
        try:
            if self.prunes_channels:
                add_followers(model)
        except BaseException:
            undo.back()
            raise
        self._carrier = Carrier(model, None, undo)  # of a loop that gives its callbacks no params
        self._carrier.callbacks.append(self)

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self._restored = False
        self._carrier = carry(self.model, self, params, self._carrier.undo)

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the callback's state other than weights and masks, for a backup."""
        return {}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `get_state` returned for a backup, either before or after `on_train_begin`."""
        self._restored = True

    def check_fit(self) -> None:
        """Raise an error if this fit is not possible, without changing the model."""

    def prunes_after(self, epoch: int) -> bool:
        """Return whether the fit is known to change masks after this epoch."""
        return False

    def cancel_fit(self) -> None:
        """Undo what `check_fit` and `on_train_begin` did outside the model, because the fit will not take place."""

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Restore the model bit for bit if an exception occurs while the fit begins."""
        with self._carrier.undone(self):
            yield

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            pass

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._carrier.begin(epoch, self)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        zeros = self._carrier.zeros
        if self._carrier.callbacks[0] is self and zeros.due():
            check_zeros(self.model)
            zeros.checked()
        self._carrier.waits.before_step(self, batch)

    def _works_after(self, batch: int) -> bool:
        """Return whether `on_train_batch_end` has work to do on the model after the step that begins with this batch.

        If not, it may run in another thread, while the next step has begun.
        """
        return False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        sparsity = check_zeros(self.model)
        if self.prunes and logs is not None:
            logs["sparsity"] = sparsity

    def on_train_end(self, logs: Any = None) -> None:
        if self.prunes and self is [one for one in self._carrier.callbacks if one.prunes][-1]:
            text = reached(self.model)  # by all processes: they gather together what lies in parts
            if is_chief():
                (print if (self.params or {}).get("verbose") else logging.info)(text)
        self._carrier.end()

    def say_once(self, what: str, cure: str) -> None:
        """Log a warning only once, even if other callbacks of the fit have reason to log it, too."""
        self._carrier.say_once(what, cure)

    def on_test_begin(self, logs: Any = None) -> None:
        self._carrier.leave()

    def on_predict_begin(self, logs: Any = None) -> None:
        self._carrier.leave()


def check_zeros(model: Any) -> float:
    """Return the sparsity; raise RuntimeError, naming the weights, if a pruned entry is not exactly 0."""
    return kprune.masks.check_zeros(masked_weights(model), getattr(model, "optimizer", None))
