"""Callback state other than weights and masks, stored in the model's own checkpoints during a fit.

A callback that keeps state (`get_state`, `set_state`) registers here when a fit begins. From then on the state is in
whatever is saved of the model: with its masks in the `.weights.h5` of Keras 3, as a Python state in the checkpoints of
tf_keras. So a backup holds weights, masks and state of one moment, and Keras's BackupAndRestore brings back all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from absl import logging

from kprune.masks import (
    Undo,
    begin_fit,
    changes,
    current_masks,
    end_fit,
    library_of,
    masked_weights,
    moved_weights,
    set_masks,
)
from kprune.masks.keras3 import unpull
from kprune.masks.matching import matched
from kprune.runtime.distribution import to_numpy
from kprune.runtime.files import pack, understanding, unpack

from ._beside import warn_of_denser_best
from ._waiting import Waits


class Zeros:
    """Decide when to check that pruned entries are still 0: 1, 2, 4, 8, ... steps after entries are first pruned."""

    def __init__(self, model: Any):
        self.model, self.steps, self.seen = model, 0, -1
        self.some = False

    def due(self) -> bool:
        """Count a step that is about to begin and return whether to check the pruned entries first."""
        if not self.some and self.seen != changes(self.model):
            self.seen, self.steps, self.some = changes(self.model), -1, True
        self.steps += 1
        return self.some and self.steps > 0 and self.steps & (self.steps - 1) == 0

    def checked(self) -> None:
        """Record that pruned entries are 0; if nothing is pruned yet, restart the count when the masks next change."""
        self.some = self.steps > 1 or any(not weight.kept().all() for weight in masked_weights(self.model))


class Carrier:
    """The states of one fit's callbacks, and the state of the model before that fit.

    Attributes:
        fit: the `params` of the fit; Keras gives all its callbacks the same object.
        undo: what the model was, until the last callback has begun the first epoch.
        callbacks: of this fit, in their order.
        zeros: when to look at the pruned entries.
        waits: which steps Keras must wait for.
        runs: whether the fit has begun and not ended; not in `evaluate` or `predict`.
        starts: whether the fit has begun no epoch yet. Weights that are loaded then are a backup's; later, also after
            a fit that was interrupted, they are a checkpoint's, whose state is not taken over.
        epoch: the epoch that runs, from 0.
        loaded_epoch: the epoch in which the state that was loaded had been saved; None if none was.
    """

    def __init__(self, model: Any, fit: Any, undo: Undo | None):
        self.model, self.fit, self.undo = model, fit, undo
        self.callbacks: list[Any] = []
        self.zeros = Zeros(model)
        self.waits = Waits()
        self.runs = False
        self.holders: dict[str, Any] = {}
        self.starts = True
        self.epoch = 0
        self.loaded_epoch: int | None = None
        self._said: set[str] = set()

    def say_once(self, what: str, cure: str) -> None:
        """Log a warning only once, even if several callbacks of the fit have reason to log it."""
        if what not in self._said:
            self._said.add(what)
            logging.warning("kprune: %s. %s", what, cure)

    def add(self, holder: Any) -> None:
        """Carry a callback's state under the name of its class."""
        name, number = type(holder).__name__, 1 + len(self.holders)
        if not any(known is holder for known in self.callbacks):
            self.callbacks.append(holder)
            self.holders[f"{number} {name}"] = holder

    @contextmanager
    def undone(self, callback: Any) -> Iterator[None]:
        """Cancel the fit if an exception occurs while a callback starts, unless the first epoch has already begun."""
        try:
            self._start(callback)
            yield
        except BaseException:
            self._cancel()
            raise

    def _start(self, starting: Any) -> None:
        """Ask each callback once whether the fit is possible, before any of them changes the model."""
        if self.runs:
            return
        self.runs = True
        self.waits = Waits(starting, self.callbacks)
        self.undo = self.undo or Undo(self.model)
        if library_of(self.model).IN_PLACE:
            unpull(self.model)  # what ADMM or SynFlowPenalty left in a fit that was interrupted
        for callback in self.callbacks:
            others = [one for one in self.callbacks if (one.prunes or one.alone) and one is not callback]
            if callback.alone and others:
                raise ValueError(
                    f"{type(callback).__name__} {callback.alone}, so no other callback can prune in the same call to "
                    f"fit(). Received: other={type(others[0]).__name__}"
                )
            callback.check_fit()
        pruning = [callback for callback in self.callbacks if callback.prunes == "during"]
        if pruning:
            warn_of_denser_best(pruning[0])
        begin_fit(self.model)
        self.undo.hold()
        # `set_weights`, between folds or from another network, may have brought values for pruned entries.
        if moved_weights(self.model):
            set_masks(self.model, current_masks(self.model))

    def _cancel(self) -> None:
        undo, self.undo = self.undo, None
        if undo is not None:
            for callback in self.callbacks:
                callback.cancel_fit()
            self.end()
            undo.back()

    def end(self) -> None:
        """Record that the fit has ended."""
        self.runs, self.undo = False, None
        self.waits.end()
        end_fit(self.model)
        release(self.model)

    def leave(self) -> None:
        """If the model is only used in `evaluate` or `predict`, remove the masks that were added to it."""
        if not self.runs:
            undo, self.undo = self.undo, None
            release(self.model)
            if undo is not None:
                undo.unmask()

    def states(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the states of callbacks and seed generators, which Keras does not save, as arrays and JSON."""
        arrays = {f"seeds/{i}": to_numpy(v) for i, v in enumerate(library_of(self.model).seed_states(self.model))}
        for name, holder in self.holders.items():
            arrays.update({f"{name}/{key}": np.asarray(value) for key, value in holder.get_state().items()})
        return arrays, {"epoch": self.epoch, "holders": list(self.holders)}

    def dump(self) -> bytes:
        """Serialize the states to bytes."""
        return pack(*self.states())

    def load(self, data: bytes) -> None:
        """If the fit is starting, restore the states that `dump` wrote; raise the same errors as `restore`."""
        if self.starts:
            name = "the callbacks' state in a backup"
            arrays, about = unpack(data, name)
            with understanding(name):
                self.restore(arrays, about)

    def restore(self, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        """Restore the states of the callbacks; raise ValueError if they belong to a different list of callbacks."""
        self.check(about)
        seeds = {f"seeds/{i}": v for i, v in enumerate(library_of(self.model).seed_states(self.model))}
        then = matched(seeds, {name: array for name, array in arrays.items() if name.startswith("seeds/")}, "model")
        for name, v in seeds.items():
            v.assign(then[name])
        for name, holder in self.holders.items():
            holder.set_state({key[len(name) + 1 :]: a for key, a in arrays.items() if key.startswith(f"{name}/")})
        self.loaded_epoch = about["epoch"]

    def check(self, about: dict[str, Any]) -> None:
        """Raise ValueError if the states belong to a different list of callbacks or the epoch is invalid."""
        if about["holders"] != list(self.holders):
            raise ValueError(
                f"The backup was written with different callbacks: {about['holders']}. Pass the same callbacks in the "
                f"same order. Received: callbacks={list(self.holders)}"
            )
        if type(about["epoch"]) is not int or about["epoch"] < 0:
            raise ValueError(
                f"The epoch stored in the backup must be an integer >= 0. Received: epoch={about['epoch']!r:.100}"
            )

    def begin(self, epoch: int, callback: Any) -> None:
        """Record that a callback begins an epoch; warn once if that epoch does not follow the one in the backup."""
        self.starts, self.epoch, self.runs = False, epoch, True
        if callback is self.callbacks[-1]:
            self.undo = None
        if self.loaded_epoch is not None and epoch != self.loaded_epoch + 1:
            logging.warning(
                "kprune: the backup contains the weights of epoch %d, but training continues at epoch %d, so the "
                "result will differ from that of an uninterrupted run. Possible causes: the backup was saved in "
                "the middle of an epoch, or the process was killed while keras.callbacks.BackupAndRestore was "
                "writing its two files. Use kprune.callbacks.BackupAndRestore, which writes a single file "
                "atomically.",
                self.loaded_epoch,
                epoch,
            )
        self.loaded_epoch = None


def carry(model: Any, holder: Any, fit: Any, undo: Undo | None) -> Carrier:
    """Carry a callback's state in the model's checkpoints until `release` is called.

    Args:
        model, holder: the masked model, and the callback.
        fit: the params of its fit.
        undo: what the model was when the callback was given it; that of the first callback counts.
    """
    carrier = carrier_of(model)
    if carrier is None or carrier.fit is not fit:
        carrier = Carrier(model, fit, undo)
        library_of(model).carry(model, carrier)
    carrier.add(holder)
    return carrier


def carrier_of(model: Any) -> Carrier | None:
    """Return the object that carries the callbacks' states in the current fit, or None."""
    found: Carrier | None = library_of(model).carried(model)
    return found


def release(model: Any) -> None:
    """Stop carrying callback state in the model's checkpoints."""
    if carrier_of(model) is not None:
        library_of(model).carry(model, None)
