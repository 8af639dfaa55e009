"""The best epoch of a fit that prunes, on tf_keras."""

import pytest
import tf_keras
from helpers import data
from kprune.callbacks import GradualPruning
from tfk_helpers import mlp

import kprune
from kprune import AfterPruning


class Worsening(tf_keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["rising"] = float(epoch)


@pytest.mark.private_api
def test_the_best_epoch_is_counted_from_the_last_pruning_on_or_warned_of(caplog, tmp_path):
    found = []
    for around in (lambda callback: callback, AfterPruning):
        model = kprune.mask(mlp()).model
        model.compile("sgd", "mse")
        stop = tf_keras.callbacks.EarlyStopping("rising", patience=9, mode="min", restore_best_weights=True)
        checkpoint = tf_keras.callbacks.ModelCheckpoint(
            str(tmp_path / "best.h5"), "rising", mode="min", save_best_only=True, save_weights_only=True
        )
        pruning = GradualPruning(kprune.schedules.Constant(0.5, begin_step=3))
        callbacks = [Worsening(), pruning, around(stop), around(checkpoint)]
        caplog.clear()
        with caplog.at_level("WARNING", logger="absl"):
            model.fit(*data(), batch_size=64, epochs=6, callbacks=callbacks, verbose=0)
        found.append((stop.best_epoch, checkpoint.best, caplog.text.count("keeps the best epoch")))
    assert found == [(0, 0.0, 2), (2, 2.0, 0)]
