"""Backups: Keras's own holds the callbacks' state, ours is one file; what cannot be read or written is said."""

import functools
import logging
import resource

import keras
import numpy as np
import pytest
from helpers import CHEAP, built, data, mlp
from keras import layers
from kprune.callbacks import BackupAndRestore, GradualPruning, LotteryTicket, SynFlow
from marks import with_slow

import kprune
from kprune.lottery.rewind import snapshot
from kprune.masks import followers
from kprune.schedules import PolynomialDecay


class Interrupt(keras.callbacks.Callback):
    """Ends the process, as far as a test can, at the beginning of an epoch."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            raise KeyboardInterrupt


def network(units=12, dropout=0.2):
    """With all that a backup must hold: statistics, slots, and the state of the dropout's seeds."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(units, "relu", name="hidden1"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(dropout, name="dropout"),
            layers.Dense(units, "relu", name="hidden2"),
            layers.Dense(3, name="logits"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse", **CHEAP)
    return built(model)


def fit(model, epochs, *callbacks):
    batches = kprune.RewindableBatches(*data(n=60), 10, model)
    return model.fit(batches, epochs=epochs, callbacks=list(callbacks), shuffle=False, verbose=0)


def same(one, other):
    for part in ("weights", "optimizer"):
        pairs = zip(getattr(snapshot(one), part).items(), getattr(snapshot(other), part).values(), strict=True)
        for (name, array), other_array in pairs:
            np.testing.assert_array_equal(array, other_array, err_msg=name)
    for weight, other_weight in zip(kprune.masked_weights(one), kprune.masked_weights(other), strict=True):
        np.testing.assert_array_equal(weight.kept(), other_weight.kept())
    return True


def lottery():
    return LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to=3)


def gradual(criterion="magnitude_increase"):
    schedule = PolynomialDecay(0.0, 0.8, begin_step=6, end_step=30, frequency=4)
    return GradualPruning(schedule, criterion=criterion)


@pytest.mark.parametrize("backup", [BackupAndRestore, keras.callbacks.BackupAndRestore], ids=["kprune", "keras"])
def test_what_follows_pruned_channels_is_as_in_a_fit_that_was_not_killed(backup, tmp_path):
    def callbacks():
        path = tmp_path / "backup.npz" if backup is BackupAndRestore else tmp_path / "backup"
        return GradualPruning(0.5, frequency=4, scope="uniform", pattern="channel"), backup(path)

    whole, killed, resumed = network(), network(), network()
    fit(whole, 4, callbacks()[0])
    with pytest.raises(KeyboardInterrupt):
        fit(killed, 4, *callbacks(), Interrupt(2))
    fit(resumed, 4, *callbacks())
    assert same(whole, resumed)
    kept, again = (
        {weight.path.partition("/")[2]: weight.kept().tolist() for weight in followers(model)}
        for model in (whole, resumed)
    )
    assert kept == again
    assert sum(kept["norm/gamma"]) == sum(kept["hidden1/bias"]) == 6


@pytest.mark.parametrize("first", [True, False])
def test_the_plan_of_a_sparsity_alone_is_that_of_the_first_fit(first, tmp_path):
    def callbacks():
        pruning, backup = GradualPruning(0.8), BackupAndRestore(tmp_path / "backup.npz")
        return pruning, [backup, pruning] if first else [pruning, backup]

    whole, killed = network(), network()
    fit(whole, 6, GradualPruning(0.8))
    with pytest.raises(KeyboardInterrupt):
        fit(killed, 6, *callbacks()[1], Interrupt(2))
    resumed = network()
    pruning, listed = callbacks()
    fit(resumed, 6, *listed)
    assert pruning.schedule == PolynomialDecay(0.0, 0.8, 3, 25, frequency=1)  # of 36 steps
    assert same(resumed, whole)


def moving():
    return gradual("movement")


def synflow():
    return SynFlow(0.8, rounds=5, verbose=False)


@functools.cache
def undisturbed(make):
    """What a fit with this callback makes of `network()`."""
    model = network()
    fit(model, 6, make())
    return model


@pytest.mark.private_api
@pytest.mark.parametrize(
    ("kind", "first", "make"),
    # Both kinds of backup, before and after the callback that has the most to keep; then each pair of the three once.
    with_slow(
        [("keras", True, lottery), ("kprune", False, lottery), ("kprune", False, gradual), ("keras", False, moving)],
        [
            *(("keras", False, lottery), ("kprune", True, lottery)),
            *(("keras", True, gradual), ("kprune", True, moving)),
            *(("keras", True, synflow), ("kprune", False, synflow)),
        ],
    ),
)
def test_resumed_it_ends_as_if_it_had_not_stopped(make, first, kind, tmp_path):
    def backup():
        if kind == "keras":
            return keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return BackupAndRestore(tmp_path / "backup.npz")

    def callbacks(*more):
        return [backup(), make(), *more] if first else [make(), backup(), *more]

    whole = undisturbed(make)
    for stop in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            fit(network(), 6, *callbacks(Interrupt(stop)))
    model = network()
    history = fit(model, 6, *callbacks())
    assert history.epoch == [5]
    assert same(model, whole)
    assert not (tmp_path / "backup").exists() and not (tmp_path / "backup.npz").exists()


def test_a_torn_backup_of_keras_is_said(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        fit(network(), 6, lottery(), keras.callbacks.BackupAndRestore(tmp_path / "b"), Interrupt(3))
    # As a kill between Keras's two files leaves it: weights of epoch 3, the epoch of the save before.
    (tmp_path / "b" / "training_metadata.json").write_text('{"epoch": 2, "batch": 0}')
    with caplog.at_level(logging.WARNING, "absl"):
        fit(network(), 6, lottery(), keras.callbacks.BackupAndRestore(tmp_path / "b"))
    assert "was writing its two files" in caplog.text


def test_a_backup_of_other_callbacks_is_refused_and_changes_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(network(), 6, lottery(), BackupAndRestore(tmp_path / "b.npz"), Interrupt(3))
    model, fresh = network(), network()
    with pytest.raises(
        ValueError, match=r"does not match this training run.*in the same order.*Received.*path='.*b.npz'"
    ):
        fit(model, 6, gradual(), BackupAndRestore(tmp_path / "b.npz"))
    assert same(model, fresh)


def test_a_backup_of_another_model_is_refused_and_changes_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(network(), 6, BackupAndRestore(tmp_path / "b.npz"), Interrupt(3))
    model = network(units=5)
    before = [value.copy() for value in model.get_weights()]
    with pytest.raises(ValueError, match=r"does not match this training run.*hidden1/kernel.*path='.*b.npz'"):
        fit(model, 6, BackupAndRestore(tmp_path / "b.npz"))
    for value, array in zip(kprune.strip(model).get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, array)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-100], lambda whole: b"", lambda whole: b"nonsense"])
def test_a_truncated_or_foreign_backup_is_an_error_that_names_it(damage, tmp_path):
    path = tmp_path / "b.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(network(), 6, BackupAndRestore(path), Interrupt(3))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"truncated or damaged.*Received: file='.*b.npz'"):
        fit(network(), 6, BackupAndRestore(path))


def test_no_space_left_is_logged_and_the_training_goes_on(tmp_path, caplog):
    path, limits = tmp_path / "b.npz", resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(keras.callbacks.Callback):
        """From the third epoch on no file may be longer than 1000 bytes."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with caplog.at_level(logging.ERROR, "absl"):
            history = fit(network(), 4, Full(), BackupAndRestore(path, delete=False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert history.epoch == [0, 1, 2, 3]
    assert caplog.text.count("File too large") == 2
    assert [file.name for file in tmp_path.iterdir()] == ["b.npz"]
    assert fit(network(), 4, BackupAndRestore(path)).epoch == [2, 3]


@pytest.mark.private_api
def test_a_second_fit_in_the_same_process_begins_at_its_first_epoch(tmp_path):
    model = network()
    with pytest.raises(KeyboardInterrupt):
        fit(model, 4, BackupAndRestore(tmp_path / "b.npz"), Interrupt(2))
    assert fit(model, 4, BackupAndRestore(tmp_path / "b.npz")).epoch == [2, 3]
    assert fit(model, 2, BackupAndRestore(tmp_path / "b.npz")).epoch == [0, 1]


@pytest.mark.parametrize("path", ["backup", None, 5])
def test_a_path_that_is_not_npz_is_refused(path):
    with pytest.raises(ValueError, match=f"Received: path={path!r}"):
        BackupAndRestore(path)


def test_a_folder_that_is_none_is_logged_and_the_training_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.ERROR, "absl"):
        assert fit(network(), 2, BackupAndRestore(tmp_path / "file" / "b.npz")).epoch == [0, 1]
    assert caplog.text.count("Training continues") == 2


def test_a_backup_that_is_refused_leaves_a_plain_model(tmp_path):
    (tmp_path / "b.npz").write_bytes(b"nonsense")
    model = network()
    with pytest.raises(ValueError, match="Received: file="):
        fit(model, 2, BackupAndRestore(tmp_path / "b.npz"))
    assert kprune.masked_weights(model) == []


def test_a_checkpoint_of_the_fit_loads_into_a_model_outside_of_it(tmp_path):
    model = network(dropout=0.0)  # Keras saves no seeds
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    fit(model, 6, lottery(), checkpoint)
    other = network(dropout=0.0)
    kprune.mask(other)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "6.weights.h5")
    assert same(other, model)


@pytest.mark.parametrize("killed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["keras", "kprune"])
def test_a_backup_before_a_lottery_loses_no_level(killed, kind, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == killed:
                raise KeyboardInterrupt

    def callbacks(*between):
        keras_own = kind == "keras"
        backup = keras.callbacks.BackupAndRestore(tmp_path / "b") if keras_own else BackupAndRestore(tmp_path / "b.npz")
        return [backup, *between, LotteryTicket(levels=2, epochs_per_level=1, rate=0.5)]

    with pytest.raises(KeyboardInterrupt):
        fit(network(), 3, *callbacks(Kill()))
    resumed = callbacks()
    fit(network(), 3, *resumed)
    results = resumed[-1].ticket.about["results"]
    assert [(row["level"], row["sparsity"]) for row in results] == [(0, 0.0), (1, 0.5), (2, 0.75)]
    assert ["loss" in row for row in results] == [level != killed for level in range(3)]


@pytest.mark.parametrize("kind", ["keras", "kprune"])
def test_a_backup_of_another_lottery_is_refused(kind, tmp_path):
    def lottery_fit(rate, *more):
        keras_own = kind == "keras"
        backup = keras.callbacks.BackupAndRestore(tmp_path / "b") if keras_own else BackupAndRestore(tmp_path / "b.npz")
        fit(network(), 3, LotteryTicket(levels=2, epochs_per_level=1, rate=rate), backup, *more)

    with pytest.raises(KeyboardInterrupt):
        lottery_fit(0.2, Interrupt(2))
    with pytest.raises(ValueError, match="backup was written by a lottery with different settings"):
        lottery_fit(0.9)
    lottery_fit(0.2)


def test_a_checkpoint_loads_after_a_fit_that_was_interrupted(tmp_path):
    model = network()
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "a.weights.h5", save_weights_only=True)
    fit(model, 1, SynFlow(0.5, rounds=5, verbose=False), checkpoint)
    wanted = [weight.value() for weight in kprune.masked_weights(model)]
    with pytest.raises(KeyboardInterrupt):
        fit(model, 6, lottery(), Interrupt(1))
    model.load_weights(tmp_path / "a.weights.h5")
    for weight, value in zip(kprune.masked_weights(model), wanted, strict=True):
        np.testing.assert_array_equal(weight.value(), value)


def test_the_words_of_kerass_own_callback(tmp_path):
    model, x, y = mlp(), *data()
    model.compile("sgd", "mse")
    backup = BackupAndRestore(backup_dir=tmp_path / "new", save_freq="epoch", delete_checkpoint=False)
    model.fit(x, y, verbose=0, callbacks=[backup])
    assert (tmp_path / "new" / "backup.npz").is_file()
    assert BackupAndRestore(backup_dir=tmp_path).delete
    for wrong in ({}, dict(path="a.npz", backup_dir="b"), dict(backup_dir="b", save_freq=5), dict(backup_dir=3)):
        with pytest.raises(ValueError, match="Received: "):
            BackupAndRestore(**wrong)
