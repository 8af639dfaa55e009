"""The best epoch of a fit that prunes: counted from the last pruning on, or warned of; on Keras 3."""

import keras
import pytest
from helpers import data, mlp
from kprune.callbacks import EarlyBird, GradualPruning, PruneAtInit

import kprune
from kprune import AfterPruning

WARNING = "keeps the best epoch, which may come before the network has reached"


class Worsening(keras.callbacks.Callback):
    """Gives the epochs losses that rise from one to the next, so that the first epoch of all is the best."""

    def on_epoch_end(self, epoch, logs=None):
        logs["rising"] = float(epoch)


def fitted(*callbacks, epochs=6, at=3):
    """A model pruned to 0.5 in its epoch `at`, of one step each."""
    keras.utils.set_random_seed(0)
    model = mlp()
    model.compile("sgd", "mse")
    pruning = GradualPruning(kprune.schedules.Constant(0.5, begin_step=at))
    model.fit(*data(), batch_size=64, epochs=epochs, callbacks=[Worsening(), pruning, *callbacks], verbose=0)
    return model


def stopping(**options):
    return keras.callbacks.EarlyStopping("rising", mode="min", restore_best_weights=True, **options)


@pytest.mark.private_api
def test_the_dense_best_epoch_is_warned_of(caplog, tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "rising", mode="min", save_best_only=True)
    with caplog.at_level("WARNING", logger="absl"):
        fitted(stopping(patience=9), checkpoint)
    assert [caplog.text.count(f"{name} {WARNING}") for name in ("EarlyStopping", "ModelCheckpoint")] == [1, 1]
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        fitted(AfterPruning(stopping(patience=9)), stopping(patience=9, start_from_epoch=4))
        fitted(keras.callbacks.ModelCheckpoint(tmp_path / "last.keras"))
        model = mlp()
        model.compile("sgd", "mse")
        callbacks = [Worsening(), PruneAtInit("magnitude", 0.5), stopping(patience=9)]
        model.fit(*data(), epochs=1, callbacks=callbacks, verbose=0)
    assert WARNING not in caplog.text
    with caplog.at_level("WARNING", logger="absl"):
        model.fit(*data(), epochs=1, callbacks=[Worsening(), EarlyBird("magnitude", 0.6), stopping()], verbose=0)
    assert WARNING in caplog.text


def test_early_stopping_brings_back_the_best_epoch_after_the_last_pruning(tmp_path):
    dense, sparse = stopping(patience=9), stopping(patience=9)
    fitted(dense)
    file = tmp_path / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(file, "rising", mode="min", save_best_only=True)
    model = fitted(AfterPruning(sparse), AfterPruning(checkpoint))
    assert (dense.best_epoch, sparse.best_epoch) == (0, 2), "step 3 is taken in epoch 2, counted from 0"
    assert kprune.summary(model).sparsity == 0.5
    assert kprune.summary(keras.models.load_model(file)).sparsity == 0.5 and checkpoint.best == 2.0


def test_patience_begins_with_the_last_pruning():
    stop = stopping(patience=2)
    model = fitted(AfterPruning(stop), epochs=20, at=6)
    assert (stop.best_epoch, stop.stopped_epoch) == (5, 7)
    assert int(model.optimizer.iterations) == 8


@pytest.mark.parametrize("first", [True, False])
def test_no_epoch_counts_while_the_schedule_rests(first):
    keras.utils.set_random_seed(0)
    model, stop = mlp(), stopping(patience=2)
    model.compile("sgd", "mse")
    pruning = GradualPruning(kprune.schedules.Linear(0.0, 0.75, begin_step=4, end_step=12, frequency=4))
    callbacks = [AfterPruning(stop), pruning] if first else [pruning, AfterPruning(stop)]
    model.fit(*data(), batch_size=64, epochs=30, callbacks=[Worsening(), *callbacks], verbose=0)
    assert stop.stopped_epoch - stop.best_epoch == 2 and stop.best_epoch in (11, 12)
    assert kprune.summary(model).sparsity == pytest.approx(0.75, abs=0.01)


def test_a_schedule_that_the_fit_does_not_reach_is_not_waited_for():
    model, stop = mlp(), stopping(patience=9)
    model.compile("sgd", "mse")
    pruning = GradualPruning(kprune.schedules.Linear(0.25, 0.75, begin_step=2, end_step=20, frequency=6))
    callbacks = [Worsening(), pruning, AfterPruning(stop)]
    model.fit(*data(), batch_size=64, epochs=7, callbacks=callbacks, verbose=0)
    assert stop.best is not None, "the next update is due in step 8"


def test_a_fit_that_prunes_nothing_says_that_nothing_was_counted(caplog):
    model = mlp()
    model.compile("sgd", "mse")
    stop = stopping()
    with caplog.at_level("WARNING", logger="absl"):
        model.fit(*data(), epochs=2, callbacks=[Worsening(), AfterPruning(stop)], verbose=0)
    assert "nothing was pruned during training, so AfterPruning never activated EarlyStopping" in caplog.text
    assert stop.best is None


def test_what_looks_for_no_best_epoch_is_refused(tmp_path):
    batches = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_freq=10)
    for wrong, received in ((keras.callbacks.History(), "callback="), (3, "callback=3"), (batches, "save_freq=10")):
        with pytest.raises(ValueError, match=f"Received: {received}"):
            AfterPruning(wrong)
