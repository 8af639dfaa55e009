"""Lottery tickets under tfmot's wrappers: rewinds are exact, and tf_keras's own backup holds the callbacks' state."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers import assert_zero, data
from kprune.callbacks import BackupAndRestore, GradualPruning, LotteryTicket, SynFlow, TakeSnapshot
from sklearn.datasets import load_digits
from tf_keras import layers
from tfk_helpers import sequential

import kprune
from kprune.lottery.rewind import rewind, snapshot
from kprune.schedules import PolynomialDecay

STEPS = 6


def network(optimizer=None):
    tf_keras.utils.set_random_seed(1)
    model = sequential(
        (8,),
        layers.Dense(12, "relu", name="hidden1"),
        layers.BatchNormalization(name="norm"),
        layers.Dense(12, "relu", name="hidden2"),
        layers.Dense(3, name="logits"),
    )
    model = kprune.mask(model).model
    rate = tf_keras.optimizers.schedules.CosineDecay(1e-2, 4 * STEPS)
    model.compile(optimizer or tf_keras.optimizers.Adam(rate), "mse")
    return model


def fit(model, epochs, *callbacks, steps=None, initial_epoch=0):
    x, y = data(n=60)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    batches = batches.take(steps) if steps else batches
    return model.fit(batches, epochs=epochs, callbacks=list(callbacks), initial_epoch=initial_epoch, verbose=0)


def assert_same(one, other):
    for part in ("weights", "optimizer"):
        arrays, others = getattr(snapshot(one), part), getattr(snapshot(other), part)
        for (name, array), other_array in zip(arrays.items(), others.values(), strict=True):
            np.testing.assert_array_equal(array, other_array, err_msg=name)
    for weight, other_weight in zip(kprune.masked_weights(one), kprune.masked_weights(other), strict=True):
        np.testing.assert_array_equal(weight.kept(), other_weight.kept())


@pytest.mark.parametrize("optimizer", [None, "sgd"])
def test_a_level_after_a_rewind_to_init_is_a_fresh_fit_under_its_mask(optimizer):
    model = network(optimizer)
    lottery = LotteryTicket(levels=1, epochs_per_level=2, rate=0.6)
    history = fit(model, lottery.total_epochs(), lottery).history
    assert history["level"] == [0, 0, 1, 1]
    fresh = network(optimizer)
    lottery.ticket.apply(fresh, weights=False)
    fit(fresh, 2)
    assert_same(model, fresh)
    assert_zero(model)


def test_a_rewind_to_a_step_is_a_run_that_stopped_there():
    model, stopped = network(), network()
    early = TakeSnapshot(4)
    fit(model, 2, early)
    rewind(model, early.snapshot)
    fit(stopped, 1, steps=4)
    assert_same(model, stopped)


def test_find_ticket_is_the_callback_around_the_users_own_fits():
    def train(model, level):
        return fit(model, 2, *level.callbacks, initial_epoch=level.initial_epoch)

    found = kprune.find_ticket(network(), train, levels=2, rate=0.5, rewind_to="epoch:1", verbose=False)
    lottery = LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to="epoch:1")
    fit(network(), lottery.total_epochs(), lottery)
    assert found.checksum == lottery.ticket.checksum


class Interrupt(tf_keras.callbacks.Callback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            raise KeyboardInterrupt


def lottery():
    return LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to=3)


def gradual(criterion):
    return GradualPruning(PolynomialDecay(0.0, 0.8, 6, 30, frequency=4), criterion=criterion)


@pytest.mark.parametrize(
    ("make", "first"),
    # The one that has the most to keep before and after the backup, each other one once.
    [
        (lottery, True),
        (lottery, False),
        (lambda: gradual("magnitude_increase"), True),
        (lambda: gradual("movement"), False),
        (lambda: SynFlow(0.8, rounds=5, verbose=False), True),
    ],
)
def test_resumed_it_ends_as_if_it_had_not_stopped(make, first, tmp_path):
    def callbacks(*more):
        backup = tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        return [backup, make(), *more] if first else [make(), backup, *more]

    whole = network()
    fit(whole, 6, make())
    for stop in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            fit(network(), 6, *callbacks(Interrupt(stop)))
    model = network()
    assert fit(model, 6, *callbacks()).epoch == [5]
    assert_same(model, whole)


@pytest.mark.parametrize("first", [True, False])
def test_a_schedule_within_levels_may_be_listed_before_or_after(first):
    model, rates = network(tf_keras.optimizers.SGD(0.5)), []
    lottery = LotteryTicket(levels=1, epochs_per_level=3, rewind_to="epoch:1")
    scheduler = tf_keras.callbacks.LearningRateScheduler(lottery.within_level(lambda epoch, rate: rate / 2))

    def watch(batch, logs):
        if batch == 0:
            rates.append(float(model.optimizer.learning_rate))

    watching = tf_keras.callbacks.LambdaCallback(on_batch_begin=watch)
    fit(model, 5, *([scheduler, lottery] if first else [lottery, scheduler]), watching)
    assert rates == [0.25, 0.125, 0.0625, 0.125, 0.0625]


def test_the_learning_rate_and_the_loss_scale_are_rewound():
    inner = tf_keras.optimizers.SGD(0.5)
    optimizer = tf_keras.mixed_precision.LossScaleOptimizer(inner, initial_scale=4.0, dynamic_growth_steps=4)
    model = network(optimizer)
    before = snapshot(model)
    fit(model, 1)
    inner.learning_rate = 0.125
    assert (float(optimizer.loss_scale), int(optimizer.dynamic_counter)) == (8.0, 2)
    rewind(model, before)
    assert (float(optimizer.loss_scale), int(optimizer.dynamic_counter)) == (4.0, 0)
    assert float(inner.learning_rate) == 0.5 and int(inner.iterations) == 0


def test_a_checkpoint_loads_after_a_fit_that_was_interrupted(tmp_path):
    class Stop(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    model = network()
    checkpoint = tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "a"), save_weights_only=True)
    fit(model, 1, SynFlow(0.5, rounds=5, verbose=False), checkpoint)
    wanted = [weight.value() for weight in kprune.masked_weights(model)]
    with pytest.raises(KeyboardInterrupt):
        fit(model, 2, LotteryTicket(levels=1, epochs_per_level=1), Stop())
    model.load_weights(str(tmp_path / "a"))
    for weight, value in zip(kprune.masked_weights(model), wanted, strict=True):
        np.testing.assert_array_equal(weight.value(), value)


def test_keras_3s_backup_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"use tf_keras.callbacks.BackupAndRestore.*Received: model="):
        fit(network(), 1, BackupAndRestore(tmp_path / "b.npz"))


def test_a_legacy_optimizer_is_refused_by_name():
    model = network(tf_keras.optimizers.legacy.Adam())
    with pytest.raises(ValueError, match=r"legacy optimizer.*Received: optimizer=legacy\.Adam"):
        fit(model, 2, LotteryTicket(levels=1, epochs_per_level=1))


def test_winning_on_digits():
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    tf_keras.utils.set_random_seed(0)
    model = sequential((64,), layers.Dense(100, "relu"), layers.Dense(10, "softmax"))
    model = kprune.mask(model).model
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    lottery = LotteryTicket(levels=3, epochs_per_level=8, rate=0.4)
    model.fit(x[:1400], y[:1400], 64, lottery.total_epochs(), 0, [lottery], validation_data=(x[1400:], y[1400:]))
    dense, *_, ticket = [row["val_accuracy"] for row in lottery.results]
    assert lottery.ticket.sparsity == pytest.approx(1 - 0.6**3, abs=1e-3)
    assert ticket > dense - 0.03 > 0.8
