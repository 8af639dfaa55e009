"""EarlyBird in tf_keras's fit, and its state in tf_keras's own backup."""

import math

import numpy as np
import pytest
import tf_keras
from helpers import assert_zero
from kprune.callbacks import EarlyBird
from test_lottery_tf_keras import Interrupt, assert_same, fit, network

import kprune


def bird(stop=False):
    return EarlyBird(sparsity=0.8, threshold=1.0, patience=4, stop=stop)


def zeros(model):
    return sum(int((w.value() == 0).sum()) for w in kprune.masked_weights(model))


def test_it_prunes_by_the_weights_of_the_epoch_in_which_it_stops():
    model, caught = network(), bird(stop=True)
    history = fit(model, 9, caught)
    assert history.epoch == [0, 1, 2, 3] and caught.settled_at == 3
    first, *others = history.history["mask_distance"]
    assert math.isnan(first) and all(0 < distance < 1 for distance in others)
    other = network()
    fit(other, 4)
    masks = kprune.prune(other, "magnitude", 0.8)
    for weight, mask in zip(kprune.masked_weights(model), masks.values(), strict=True):
        np.testing.assert_array_equal(weight.kept(), mask)
    assert zeros(model) == 220
    fit(model, 2)
    assert_zero(model)


@pytest.mark.parametrize("first", [True, False])
def test_resumed_it_ends_as_if_it_had_not_stopped(first, tmp_path):
    def callbacks(*more):
        backup = tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        return [backup, bird(), *more] if first else [bird(), backup, *more]

    whole = network()
    fit(whole, 6, bird())
    for stop in (1, 2, 5):  # with one mask, with two, and after it has settled
        with pytest.raises(KeyboardInterrupt):
            fit(network(), 6, *callbacks(Interrupt(stop)))
    model = network()
    assert fit(model, 6, *callbacks()).epoch == [5]
    assert zeros(whole) == 220
    assert_same(model, whole)


class KilledAtTheEnd(tf_keras.callbacks.Callback):
    """Ends the process, as far as a test can, after the last epoch, before the backup is deleted."""

    def on_train_end(self, logs=None):
        raise KeyboardInterrupt


def test_killed_after_it_has_stopped_it_does_not_train_on(tmp_path):
    def callbacks():
        return [tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), bird(stop=True)]

    whole = network()
    fit(whole, 9, bird(stop=True))
    with pytest.raises(KeyboardInterrupt):
        fit(network(), 9, KilledAtTheEnd(), *callbacks())
    model = network()
    assert len(fit(model, 9, *callbacks()).epoch) == 1
    assert_same(model, whole)
