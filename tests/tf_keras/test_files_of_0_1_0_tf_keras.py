"""Files that version 0.1.0 wrote of tf_keras models under tfmot's wrappers: they load, and fits go on to their end."""

import shutil

import networks_of_0_1_0_tf_keras as networks
import pytest
import tf_keras
from helpers import assert_zero
from kprune.callbacks import GradualPruning, LotteryTicket
from networks_of_0_1_0 import FIXTURES, X, Y, all_weights, assert_stored, held, stored, waves

import kprune

STORED = stored("tf_keras")
CLOSE = 1e-4  # another version or processor adds in another order


def assert_holds(model, name):
    """Masks and weights bit for bit, outputs but for rounding; what is trained on stays sparse."""
    expected, x = STORED[name], X.reshape(48, 3, 2)
    assert_stored(held(model)[0], expected["masks"])
    assert_stored([model.predict(x[:8], verbose=0)], expected["outputs"], atol=CLOSE)
    model.train_on_batch(x[:8], waves(8, *model.output_shape[1:]))
    assert_zero(model)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_keras_file(name):
    networks.masked(name)  # kprune registers its wrapper with tf_keras when it is given the first model
    model = kprune.mask(tf_keras.models.load_model(FIXTURES / "tf_keras" / f"{name}.keras")).model
    assert_stored(all_weights(model), STORED[name]["weights"])
    assert_holds(model, name)


def test_a_checkpoint_of_tensorflow():
    model = networks.masked("functional")
    model.load_weights(FIXTURES / "tf_keras" / "checkpoint" / "functional").assert_existing_objects_matched()
    assert_stored(all_weights(model), STORED["functional"]["weights"])
    assert_holds(model, "functional")


def test_a_ticket():
    ticket = kprune.Ticket.load(FIXTURES / "tf_keras" / "ticket.npz")
    model = networks.masked("functional")
    ticket.apply(model)
    assert_stored(all_weights(model), STORED["functional"]["weights"])
    assert_holds(model, "functional")


class Begun(tf_keras.callbacks.Callback):
    """What a fit begins its first epoch with."""

    def on_epoch_begin(self, epoch, logs=None):
        if not hasattr(self, "epoch"):
            self.epoch, (self.masks, self.values) = epoch, held(self.model)


@pytest.mark.parametrize("kind", ["movement", "lottery"])
def test_a_fit_goes_on_from_a_backup(kind, tmp_path):
    expected, folder = STORED[kind], shutil.copytree(FIXTURES / "tf_keras" / kind, tmp_path / kind)
    if kind == "lottery":
        callback, epochs = LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to=3, scope="layerwise"), 6
    else:
        schedule = kprune.schedules.PolynomialDecay(0.0, 0.8, begin_step=4, end_step=20, frequency=4)
        callback, epochs = GradualPruning(schedule, criterion="movement", scope="layerwise"), 4
    model, begun = networks.trainable(), Begun()
    callbacks = [callback, tf_keras.callbacks.BackupAndRestore(str(folder)), begun]
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    assert begun.epoch == epochs // 2
    assert_stored(begun.masks, expected["begin_masks"])
    assert_stored(begun.values, expected["begin_values"])
    assert_zero(model)
    assert_stored(held(model)[0], expected["end_masks"])
    assert_stored(all_weights(model), expected["end_weights"], atol=CLOSE)
