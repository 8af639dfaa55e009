"""STR: thresholds that the loss and a decay move, and the network that is left when they have reached a sparsity."""

import keras
import numpy as np
import pytest
from helpers import CHEAP
from keras import layers
from kprune.callbacks import STR, BackupAndRestore, GradualPruning
from test_supermask import Stop, assert_equal, assert_the_same, assert_trains_weights, compiled, fit, kernels

import kprune
from kprune.runtime.stand_in import StandIn

WEIGHTS = np.array([[2.0, -0.5, 0.1], [1.0, 0.2, -1.0]], "float32")
RATE, DECAY, START = 0.25, 0.5, -1.0


class Watch(keras.callbacks.Callback):
    """What latent, s and weight are after each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        [weight] = kprune.masked_weights(self.model)
        latent, s, _ = (np.asarray(v) for v in self.model.optimizer.parameters(weight.variable))
        self.seen.append((latent, float(s), weight.value()))


def sigmoid(s):
    return 1 / (1 + np.exp(-s))


def test_two_steps_by_hand():
    """Of the mean of y_j^2 at x = (1, 1): dL/dw_ij = 2/3 y_j."""
    dense, watch = layers.Dense(3, use_bias=False, name="dense"), Watch()
    model = keras.Sequential([keras.Input((2,)), dense], name="net")
    dense.set_weights([WEIGHTS])
    model.compile(keras.optimizers.SGD(RATE), "mse", **CHEAP)
    callback = STR(0.9, start=START, decay=DECAY, frequency=1)
    model.fit(np.ones((2, 2)), np.zeros((2, 3)), batch_size=1, verbose=0, callbacks=[callback, watch])
    latent, s, value = WEIGHTS.astype("float64"), START, WEIGHTS.astype("float64")
    for seen in watch.seen:
        t = sigmoid(s)
        gradient = np.broadcast_to(2 / 3 * value.sum(0), (2, 3)) * (np.abs(latent) > t)
        slope = DECAY * s - t * (1 - t) * np.sum(np.sign(latent) * gradient)
        latent, s = latent - RATE * gradient, s - RATE * slope
        value = np.sign(latent) * np.maximum(np.abs(latent) - sigmoid(s), 0)
        for mine, theirs in zip((latent, s, value), seen, strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-6)
    # 0.1 and 0.2 never were above the threshold, 0.27 at first; 1 has come below it.
    np.testing.assert_array_equal(watch.seen[-1][2] == 0, [[False, False, True], [True, True, False]])
    [weight] = kprune.masked_weights(model)
    np.testing.assert_array_equal(weight.kept(), watch.seen[-1][2] != 0)
    assert callback.thresholds == {"net/dense/kernel": pytest.approx(sigmoid(s), abs=1e-6)}


def test_it_ends_with_its_sparsity_and_trains_on():
    model, callback, masks = compiled(optimizer=keras.optimizers.SGD(0.1, momentum=0.9)), STR(0.5, decay=1.0), []
    own = model.optimizer
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: masks.append([w.kept() for w in kprune.masked_weights(model)])
    )
    history = fit(model, STR(0.5, decay=1.0, frequency=2), note, epochs=8).history["sparsity"]
    reached = history.index(0.5)
    assert 0 < reached < 6 and all(mask.all() for mask in masks[reached - 1])
    assert_equal(masks[reached], masks[-1])
    assert kprune.summary(model).zeros == 33 and model.optimizer is own and int(own.iterations) == 0
    assert all(w.moved().size == 0 for w in kprune.masked_weights(model))
    sparse = kernels(model)
    fit(model, callback, epochs=1)  # goes on with the masks that there are
    assert_equal([one != 0 for one in sparse], [one != 0 for one in kernels(model)])
    assert_trains_weights(model, own)


def test_a_threshold_that_has_overshot_goes_back_below_what_is_kept():
    model = compiled(optimizer=keras.optimizers.SGD(1e-7))
    initial = kernels(model)
    callback = STR(0.5, start=4.0, decay=1e-6, frequency=1)  # above every weight
    fit(model, callback, epochs=1)
    assert kprune.summary(model).zeros == 33
    assert all(0 < t < np.abs(first).max() for t, first in zip(callback.thresholds.values(), initial, strict=True))
    # All that is kept is alive.
    assert all((w.value() != 0).sum() == w.kept().sum() for w in kprune.masked_weights(model))


def test_what_falls_short_is_said(caplog):
    model, callback = compiled(), STR(0.9, decay=1e-3)
    fit(model, callback, epochs=1)
    assert "below the target sparsity=0.9. Raise `decay` or `start`" in caplog.text and len(callback.thresholds) == 2
    assert kprune.summary(model).zeros == sum(int((value == 0).sum()) for value in kernels(model))
    other = compiled()
    fit(other, STR(0.9), epochs=0)
    assert kprune.summary(other).zeros == 0


@pytest.mark.parametrize("library", ["kprune", "keras"])
def test_it_goes_on_from_a_backup_to_the_bit(library, tmp_path):
    def callbacks():
        keras_own = keras.callbacks.BackupAndRestore(str(tmp_path / "keras"))
        return [
            STR(0.5, decay=0.5, frequency=3),
            BackupAndRestore(tmp_path / "b.npz") if library == "kprune" else keras_own,
        ]

    whole, killed, resumed = (compiled(seed, keras.optimizers.SGD(0.1, momentum=0.9)) for seed in (1, 1, 5))
    for model in (whole, killed, resumed):
        kprune.mask(model)
    fit(whole, callbacks()[0], epochs=4)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, *callbacks(), Stop(), epochs=4)
    fit(resumed, *callbacks(), epochs=4)
    assert_the_same(whole, resumed)
    assert_equal(whole.get_weights(), resumed.get_weights())


@pytest.mark.parametrize("averages", [False, True])
def test_a_file_of_the_middle_of_a_fit_holds_the_sparse_weights(averages, tmp_path):
    optimizer = keras.optimizers.SGD(0.1, use_ema=averages, ema_momentum=0.5)
    model = compiled(optimizer=optimizer)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, STR(0.9, start=-2.0, decay=0.1), save)
    loaded = keras.models.load_model(tmp_path / "2.keras")
    assert all(0 < np.mean(np.asarray(layer.kernel) == 0) < 0.9 for layer in loaded.layers)
    assert_equal(loaded.get_weights(), model.get_weights()) if not averages else None
    assert kprune.summary(model).zeros == sum(int((value == 0).sum()) for value in kernels(model))


def test_weights_that_were_pruned_stay_pruned():
    model = compiled(optimizer=keras.optimizers.SGD(0.1))
    masks = kprune.prune(model, "magnitude", 0.3, verbose=0)
    fit(model, STR(0.6, start=-2.0, decay=3.0, frequency=1))
    assert kprune.summary(model).zeros == 39  # of 66
    assert all(not np.any(w.kept() & ~masks[w.path]) for w in kprune.masked_weights(model))


def refused(model, *callbacks, match):
    before = model.get_weights()
    with pytest.raises(ValueError, match=match):
        fit(model, *callbacks)
    assert_equal(model.get_weights(), before)
    assert not isinstance(model.optimizer, StandIn)


def test_what_it_cannot_do_is_refused():
    for other in (GradualPruning(0.5), STR()):
        refused(compiled(), STR(), other, match=r"STR trains thresholds.*Received: other=\w+$")
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    refused(compiled(optimizer=scaled), STR(), match=r"a loss scale would.*Received: optimizer=")
    stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    refused(compiled(), STR(), stop, match=r"Received: other=EarlyStopping$")
    model = compiled()
    kprune.mask(model, store="latent")
    refused(model, STR(), match=r"store='zero'")
    model = compiled()
    kprune.mask(model)
    model.get_layer("hidden").trainable = False
    model.compile("sgd", "mse", **CHEAP)
    refused(model, STR(), match=r"STR requires all masked weights to be trainable.*Received: model=")
    callback = STR()
    callback.set_model(model)
    callback.set_params({"epochs": 1})
    with pytest.raises(ValueError, match=r"custom training loops.*Received: model="):
        callback.on_train_begin()


@pytest.mark.parametrize("wrong", [dict(sparsity=1.0), dict(start=np.inf), dict(decay=0.0), dict(frequency=0)], ids=str)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        STR(**wrong)
