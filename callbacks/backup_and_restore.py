"""BackupAndRestore: backups that let a fit resume after being killed at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from kprune.lottery.rewind import Snapshot, check_restore, restore, snapshot, warn_of_nan
from kprune.masks import Masks, current_masks, is_tf_keras
from kprune.runtime.distribution import is_chief
from kprune.runtime.files import joined, pack, read, split, understanding, unpack, write
from kprune.runtime.locks import Lock
from kprune.util.checks import check_flag, check_npz, check_path, received_with

from .base import MaskingCallback


class BackupAndRestore(MaskingCallback):
    """At the end of each epoch, save everything needed to resume the fit, and resume from there after a restart.

    What `keras.callbacks.BackupAndRestore` is for Keras 3, but in one file, written whole or not at all: weights,
    optimizer, seed generators, masks, and the state of kprune's callbacks in this fit. (Keras's writes weights and
    epoch one after the other: killed between the two, the fit trains an epoch twice.) A fit that is killed at any
    moment and started again ends with the weights and masks of one that was not, bit for bit, if its data come in an
    order that the optimizer's step determines, as with `kprune.RewindableBatches`, or are not shuffled. Of several
    processes that train together (`keras.distribution`) the first writes and reads the file, so it alone has to see it.

    If a backup cannot be written (no space left), an error is logged and the training goes on; the last backup stays.

    Args:
        path: an .npz file, of this fit alone.
        delete: whether to delete it when the fit has come to its end.
        backup_dir, save_freq, delete_checkpoint: Keras's own words, so that the one takes the other's place: the file
            is backup_dir/backup.npz, delete_checkpoint is `delete`, and save_freq can only be "epoch".

    Raises:
        ValueError: `path` is no .npz file, or it and `backup_dir` are given, or neither; `save_freq` is not "epoch"; at
            the start of `fit`: the model is one of tf_keras (whose own `BackupAndRestore` is safe and holds kprune's
            state, too), the file is truncated, damaged, of another model, or of another list of callbacks. Nothing has
            been changed then.
        OSError: at the start of `fit`: another process uses the file.

    >>> import keras, kprune, numpy as np, tempfile
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     backup = kprune.callbacks.BackupAndRestore(f"{folder}/backup.npz", delete=False)
    ...     _ = model.fit(np.ones((32, 8)), np.ones((32, 1)), epochs=3, verbose=0, callbacks=[backup])
    ...     model.fit(np.ones((32, 8)), np.ones((32, 1)), epochs=5, verbose=0, callbacks=[backup]).epoch
    [3, 4]
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        delete: bool = True,
        *,
        backup_dir: str | os.PathLike[str] | None = None,
        save_freq: str = "epoch",
        delete_checkpoint: bool = True,
    ):
        super().__init__()
        if (path is None) == (backup_dir is None):
            raise ValueError(
                "Exactly one of `path` (an .npz file) and `backup_dir` (a folder) must be given. "
                f"Received: path={path!r}, backup_dir={backup_dir!r}"
            )
        if save_freq != "epoch":
            raise ValueError(
                '`save_freq` must be "epoch", because training cannot resume at a given batch within an epoch. '
                f"Received: save_freq={save_freq!r}"
            )
        if backup_dir is not None:
            check_path("backup_dir", backup_dir)
            path = Path(backup_dir, "backup.npz")
        check_npz("path", path)
        for name, flag in (("delete", delete), ("delete_checkpoint", delete_checkpoint)):
            check_flag(name, flag)
        self.path, self.delete = Path(path), delete and delete_checkpoint  # type: ignore[arg-type]
        self._lock = Lock(self.path)
        self._found: _Backup | None = None

    def set_model(self, model: Any) -> None:
        if is_tf_keras(model):
            raise ValueError(
                "For a tf_keras model, use tf_keras.callbacks.BackupAndRestore: its backup also contains the state "
                f"of kprune's callbacks. Received: model={model.name!r}"
            )
        super().set_model(model)

    def check_fit(self) -> None:
        self._lock.acquire()
        self._found = self._read()

    def cancel_fit(self) -> None:
        self._found = self.model._initial_epoch = None
        self._lock.release()

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            super().on_train_begin(logs)
            found, self._found = self._found, None
            if found is not None:
                self._restore(found)

    def _read(self) -> _Backup | None:
        """Read the backup, if there is one, and check it against the model and the callbacks."""
        data, name = read(self.path), os.fspath(self.path)
        if data is None:
            return None
        arrays, about = unpack(data, name)
        if about.get("kind") != "kprune backup 1":
            raise ValueError(f"The file is not a kprune backup. Received: path={name!r}")
        with understanding(name):
            parts = split(arrays, "mask", "now", "callbacks")
            now = Snapshot.from_arrays(parts["now"])
            found = _Backup(parts["mask"], now, about["epoch"], parts["callbacks"], about["callbacks"])
            if type(found.epoch) is not int or found.epoch < 0:
                raise ValueError(f"the saved epoch must be an integer >= 0, not {found.epoch!r}")
        with self._of_this_fit():
            check_restore(self.model, found.masks, found.now)
            self._carrier.check(found.known)
        warn_of_nan(f"The backup {name!r}", found.now.weights)
        return found

    def _restore(self, found: _Backup) -> None:
        with self._of_this_fit():
            restore(self.model, found.masks, found.now)
            self._carrier.restore(found.states, found.known)
        # Keras has no public way to begin later once `fit` has begun; its own BackupAndRestore does the same (3.15.1).
        self.model._initial_epoch = found.epoch + 1
        logging.info("BackupAndRestore: resuming at epoch %d from %s.", found.epoch + 2, self.path)

    @contextmanager
    def _of_this_fit(self) -> Iterator[None]:
        """Turn any error about the backup's contents into a ValueError that names the file."""
        try:
            yield
        except Exception as error:
            cause = received_with(f"{error!s:.1000}", f"path={os.fspath(self.path)!r}")
            raise ValueError(
                f"The backup does not match this training run: delete the backup, or pass another path. Cause: {cause}"
            ) from error

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        # Not the carrier's own bytes: with a whole zip inside, a truncated one would be read as that.
        states, known = self._carrier.states()
        arrays = joined(mask=current_masks(self.model), now=snapshot(self.model).to_arrays(), callbacks=states)
        try:
            write(self.path, pack(arrays, {"kind": "kprune backup 1", "epoch": epoch, "callbacks": known}))
        except OSError as error:
            logging.error("BackupAndRestore: could not back up epoch %d: %s. Training continues.", epoch + 1, error)

    def on_train_end(self, logs: Any = None) -> None:
        self.model._initial_epoch = None
        if self.delete and is_chief():
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                logging.error("BackupAndRestore: could not delete the backup: %s.", error)
        self._lock.release()
        super().on_train_end(logs)


class _Backup(NamedTuple):
    """The contents of a backup: masks, weights, optimizer, the last finished epoch and the callbacks' states."""

    masks: Masks
    now: Snapshot
    epoch: int
    states: dict[str, np.ndarray]
    known: dict[str, Any]
