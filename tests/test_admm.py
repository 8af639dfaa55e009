"""ADMM: the penalty, what Z and U become at each update, and what each round prunes."""

import json

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, fit, momentum_mlp
from keras import layers
from kprune.callbacks import ADMM, BackupAndRestore, GradualPruning

import kprune
from kprune.masks.pulls import Pull, pull_of
from kprune.util.ranking import zeros_for

KERNEL = np.array([[4.0, -3.0, 2.0], [-1.0, 0.5, 0.25]], "float32")


class Watch(keras.callbacks.Callback):
    """The kernels, masks, targets and strengths after each batch."""

    def __init__(self):
        super().__init__()
        self.values, self.masks, self.targets, self.strengths = [], [], [], []

    def on_train_batch_end(self, batch, logs=None):
        weights = kprune.masked_weights(self.model)
        self.values.append([weight.value() for weight in weights])
        self.masks.append([weight.kept() for weight in weights])
        self.targets.append([np.array(pull_of(weight).target.value) for weight in weights])
        self.strengths.append({float(pull_of(weight).strength.value) for weight in weights})


def test_two_updates_by_hand():
    """The loss has no gradient: SGD(1/2) moves W by half of rho = 1/2 times what it is away from Z - U."""
    dense = layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.set_weights([KERNEL])
    model.compile(keras.optimizers.SGD(0.5), "mse", **CHEAP)
    watch, callback = Watch(), ADMM(4 / 6, rho=0.5, rounds=1, updates=2, begin=1, end=3)
    model.fit(np.zeros((4, 2)), np.zeros((4, 3)), batch_size=1, shuffle=False, verbose=0, callbacks=[callback, watch])
    small = np.array([2.0, -1.0, 0.5, 0.25])

    def seen(kernel):
        return kernel.ravel()[2:]

    # After step 1 the round starts: Z keeps 4 and -3, so U = (2, -1, 1/2, 1/4) elsewhere and Z - U is the negative.
    np.testing.assert_array_equal(watch.values[0][0], KERNEL)
    np.testing.assert_array_equal(seen(watch.targets[0][0]), -small)
    # Step 2 moves those by -1/4 * 2w: W = w / 2. W + U = 3/2 w; now 3 is as large as -3, which stays by its index.
    np.testing.assert_array_equal(seen(watch.values[1][0]), small / 2)
    np.testing.assert_array_equal(seen(watch.targets[1][0]), -1.5 * small)
    # Step 3: w/2 - 1/4 * (1/2 + 3/2) w = 0, so the last update prunes what is 0 already, and the penalty ends.
    np.testing.assert_array_equal(seen(watch.values[2][0]), np.zeros(4))
    assert callback.residuals == (0.0,)
    assert watch.strengths == [{0.5}, {0.5}, {0.0}, {0.0}]
    top = np.array([[True, True, False], [False] * 3])
    for (value,), (target,) in zip(watch.values, watch.targets, strict=True):
        np.testing.assert_array_equal(value[top], KERNEL[top])
        np.testing.assert_array_equal(target[top], KERNEL[top])
    for (mask,), expected in zip(watch.masks, [np.ones((2, 3)), np.ones((2, 3)), top, top], strict=True):
        np.testing.assert_array_equal(mask, expected)


SIZE = 66


def test_rounds_end_at_rising_sparsities_and_nothing_stays_of_the_penalty():
    model, watch = momentum_mlp(kernel_regularizer="l2"), Watch()
    before, plain = [v.regularizer for v in model.trainable_variables], len(model.variables)
    callback = ADMM(0.875, rho=0.1, rounds=3, updates=1, begin=1, end=0.5)  # phases of a step: 1, 2, 3, 4, 5, 6
    history = fit(model, callback, watch)
    counts = [sum(int((~mask).sum()) for mask in masks) for masks in watch.masks]
    half, most, all_of_them = (zeros_for(SIZE, sparsity) for sparsity in (0.5, 0.75, 0.875))
    assert counts == [0, half, half, most, most, *[all_of_them] * 7]
    assert [strength == {0.0} for strength in watch.strengths] == [False, True, False, True, False, *[True] * 7]
    assert history.history["sparsity"] == pytest.approx([most / SIZE, all_of_them / SIZE, all_of_them / SIZE])
    assert len(callback.residuals) == 3 and all(0 < residual < 1 for residual in callback.residuals)
    assert kprune.masks.moved_weights(model) == []
    assert len(model.variables) == plain + 2  # the masks
    assert len(model.losses) == 1
    kprune.strip(model)
    assert [v.regularizer for v in model.trainable_variables] == before and len(model.variables) == plain


def test_recurrent_shared_and_nested_kernels_are_pulled_and_files_of_the_fit_are_plain(tmp_path):
    keras.utils.set_random_seed(1)
    shared, inner = layers.Dense(4, name="shared"), keras.Sequential([keras.Input((4,)), layers.Dense(4)], name="inner")
    inputs = keras.Input((3, 4))
    x = layers.GRU(4, name="gru")(shared(shared(inputs)))
    model = keras.Model(inputs, inner(x))
    model.compile(keras.optimizers.SGD(0.1), "mse", **CHEAP)
    seen = []

    def count(model):
        seen.append({w.path for w in kprune.masked_weights(model) if np.array(pull_of(w).target.value).any()})
        assert len(model.losses) == 4

    callback, watch = ADMM(0.5, begin=1, end=5, rounds=1, updates=2), EachBatch(count)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", save_freq=3)
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(6, 3, 4)), np.ones((6, 4)), batch_size=1, verbose=0, callbacks=[callback, watch, save])
    assert seen[0] == seen[-1] == {weight.path for weight in kprune.masked_weights(model)}
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.losses == [] and len(loaded.variables) == len(model.variables)


def test_the_penalty_draws_the_weights_to_a_sparse_network():
    residuals = []
    for rho in (1e-6, 0.1):
        callback = ADMM(0.8, rho=rho, rounds=1, updates=4, begin=2, end=82)
        model = momentum_mlp()
        fit(model, callback, epochs=21)
        residuals += callback.residuals
    assert residuals[1] < 0.6 * residuals[0]


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("killed_at", "first"), [(1, True), (2, False)])
def test_it_goes_on_from_a_backup_to_the_bit(killed_at, first, tmp_path):
    def callbacks(*more):
        both = [ADMM(0.7, rho=0.1, rounds=2, updates=2, begin=2, end=10), BackupAndRestore(tmp_path / "b.npz")]
        return [*(both if first else both[::-1]), *more]

    whole, killed, resumed = momentum_mlp(), momentum_mlp(), momentum_mlp(seed=7)
    fit(whole, callbacks()[0 if first else 1])
    with pytest.raises(KeyboardInterrupt):
        fit(killed, *callbacks(Stop(killed_at)))
    fit(resumed, *callbacks())
    for a, b in zip(kprune.masked_weights(whole), kprune.masked_weights(resumed), strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept())
        np.testing.assert_array_equal(a.value(), b.value())


def test_strip_and_the_next_fit_take_away_what_an_interrupted_one_left():
    def pulls(model):
        return [v for v in model.weights if isinstance(getattr(v.regularizer, "regularizer", None), Pull)]

    def interrupted():
        model = momentum_mlp()
        with pytest.raises(KeyboardInterrupt):
            fit(model, ADMM(0.7, rounds=1, updates=2, begin=1, end=8), Stop(1))
        assert len(pulls(model)) == len(model.losses) == 2 and float(sum(model.losses)) > 0
        return model

    model = kprune.strip(interrupted())
    assert model.losses == [] and not pulls(model)
    model = interrupted()
    fit(model, GradualPruning(0.5), epochs=1)
    assert model.losses == [] and not pulls(model)


def test_a_fit_that_cannot_begin_leaves_the_model_as_it_was():
    model = momentum_mlp()
    before, plain = model.get_weights(), len(model.variables)
    with pytest.raises(ValueError, match=r"at least 40 steps.*`begin` \(step 1\) and `end` \(step 8\)\..*updates=8$"):
        fit(model, ADMM(0.5))
    assert kprune.masked_weights(model) == [] and model.losses == [] and len(model.variables) == plain
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_fit_that_ends_too_early_says_what_it_leaves(caplog):
    model = momentum_mlp()
    fit(model, ADMM(0.5, rounds=2, updates=1, begin=1, end=7), epochs=1)
    assert "ended at step 4, before the end of the last round at step 7, so only 1 of 2 rounds pruned" in caplog.text


def test_another_callback_that_prunes_is_refused():
    model = momentum_mlp()
    with pytest.raises(ValueError, match=r"ADMM draws the weights.*Received: other=GradualPruning"):
        fit(model, ADMM(0.5, rounds=1, updates=1), GradualPruning(0.9))
    assert kprune.masked_weights(model) == [] and model.losses == []


def test_it_is_written_down_and_made_again():
    config = json.loads(json.dumps(ADMM(0.5, rho=0.1, rounds=2, end=0.9, pattern="channel").get_config()))
    assert config == {"sparsity": 0.5, "rho": 0.1, "rounds": 2, "end": 0.9, "pattern": "channel"}
    assert ADMM.from_config(config).get_config() == config


@pytest.mark.parametrize(
    "wrong",
    [
        dict(sparsity=1.0),
        dict(sparsity=None),
        dict(rho=0.0),
        dict(rho=float("inf")),
        dict(rounds=0),
        dict(updates=0),
        dict(begin=-1),
        dict(end=1.5),
        dict(scope="globl"),
        dict(pattern="2:x"),
        dict(optimizer="adam"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        ADMM(**wrong)
