"""SparsityLogger: report the model's sparsity after each epoch."""

from __future__ import annotations

import os
from typing import Any

from absl import logging

from kprune.flops import kernel_uses
from kprune.report.summary import summary_of
from kprune.runtime.distribution import is_chief
from kprune.util.checks import check_path

from .base import Callback


class SparsityLogger(Callback):
    """Report the model's sparsity at the end of each epoch.

    - `sparsity` (fraction of zeros over all masked weights) goes into Keras's logs, so into History, the progress bar
      of the epoch and the callbacks after this one (CSVLogger, TensorBoard: as `epoch_sparsity`).
    - `sparsity_of_all`, pruned entries as a fraction of all parameters of the model, goes there, too.
    - A table of all weights goes through absl logging, at level INFO (`absl.logging.set_verbosity("info")` shows it).
    - With `log_dir`, one TensorBoard scalar per weight, `sparsity/<path>`, against the epoch.

    Args:
        log_dir: a folder for TensorBoard; None writes nothing. Needs TensorFlow, on the JAX backend too. Of
            several processes that train together, the chief writes.
        table: False leaves out the table.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callbacks = [kprune.callbacks.PruneAtInit("random", 0.5), kprune.callbacks.SparsityLogger()]
    >>> model.fit(np.ones((32, 8)), np.ones((32, 1)), verbose=0, callbacks=callbacks).history["sparsity"]
    [0.5]
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, table: bool = True):
        super().__init__()
        if log_dir is not None:
            check_path("log_dir", log_dir)
        self.log_dir = log_dir
        self.table = table
        self._writer: Any = None
        self._uses: Any = None  # of the model's kernels; to find them, its call is traced

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._uses = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._uses = self._uses or kernel_uses(self.model)
        report = summary_of(self.model, self._uses)
        if logs is not None:
            logs.update(sparsity=report.sparsity, sparsity_of_all=report.sparsity_of_all)
        if self.table:
            logging.info("Epoch %d\n%s", epoch + 1, report)
        if self.log_dir and is_chief():
            import tensorflow as tf

            self._writer = self._writer or tf.summary.create_file_writer(os.fspath(self.log_dir))
            with self._writer.as_default():
                tf.summary.scalar("sparsity", report.sparsity, step=epoch)
                tf.summary.scalar("sparsity_of_all", report.sparsity_of_all, step=epoch)
                for row in report.rows:
                    tf.summary.scalar(f"sparsity/{row.path}", row.sparsity, step=epoch)

    def on_train_end(self, logs: Any = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
