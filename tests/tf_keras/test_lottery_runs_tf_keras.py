"""`kprune.run_lotteries` and the order of the data on tf_keras models, against loops of training steps."""

import dataclasses

import numpy as np
import pytest
import tf_keras
from helpers import data
from tfk_helpers import masked_mlp, mlp

import kprune
from kprune import controls
from kprune.experiments import lottery_runs
from kprune.lottery import rewind

DIGITS = kprune.data.load("digits")
SMALL = dataclasses.replace(DIGITS, train=tuple(part[:250] for part in DIGITS.train))
STEPS, EPOCHS = 4, 3  # 64, 64, 64 and 58 images


def build(seed):
    tf_keras.utils.set_random_seed(seed)
    model = kprune.mask(kprune.models.lenet_300_100((8, 8, 1), width=0.1, library=tf_keras)).model
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = tf_keras.optimizers.schedules.PiecewiseConstantDecay([2 * STEPS - 1], [0.02, 0.002])
    model.compile(tf_keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def by_hand(model, seed, first, last):
    """Train the steps from `first` to `last` of those that the optimizer counts: a fresh order for each pass."""
    x, y = SMALL.train
    for step in range(first, last):
        chosen = np.random.default_rng([seed, step // STEPS]).permutation(250)[step % STEPS * 64 :][:64]
        model.train_on_batch(x[chosen], y[chosen])
    return round(float(model.evaluate(*SMALL.test, 64, verbose=0)[1]), 6)


def test_each_mode_is_a_loop_of_training_steps():
    modes = ["init", "weights", "learning_rate", "none", "shuffle", "reinitialize"]
    options = dict(levels=1, rate=0.5, rewind_to="epoch:1", seeds=[3], epochs=EPOCHS, verbose=False)
    report = lottery_runs.run_lotteries(build, SMALL, modes, **options)
    found = {cell.mode: cell.accuracy for cell in report.cells}

    model, last = build(3), EPOCHS * STEPS
    start, full = rewind.snapshot(model), {w.path: w.kept() for w in kprune.masked_weights(model)}
    by_hand(model, 3, 0, STEPS)
    early = rewind.snapshot(model)
    assert found.pop("dense") == by_hand(model, 3, STEPS, last)
    trained = rewind.snapshot(model)
    masks = kprune.prune(model, "magnitude", 0.5, verbose=False)
    for mode, to, what, first in (
        ("init", start, "weights", 0),
        ("weights", early, "weights", STEPS),
        ("learning_rate", early, "learning_rate", STEPS),
        ("none", early, "none", last),
        ("shuffle", start, "weights", 0),
        ("reinitialize", start, "weights", 0),
    ):
        rewind.restore(model, full, trained)
        kprune.set_masks(model, controls.shuffled(masks, 1003) if mode == "shuffle" else masks)
        rewind.rewind(model, to, what)
        if mode == "reinitialize":
            controls.reinitialize(model, 1003, weights="all")
        assert found.pop(mode) == by_hand(model, 3, first, first + last - (0 if to is start else STEPS)), mode
    assert not found


def test_a_model_without_masks_is_refused_with_the_remedy():
    def plain(seed):
        model = kprune.models.lenet_300_100((8, 8, 1), width=0.1, library=tf_keras)
        model.compile("adam", "mse", metrics=["accuracy"])
        return model

    with pytest.raises(ValueError, match=r"kprune\.mask\(model\)\.model"):
        lottery_runs.run_lotteries(plain, SMALL, ["init"], levels=1, seeds=[0], epochs=1, verbose=False)


@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 3}])
def test_batches_follow_the_step_at_which_a_fit_begins(settings):
    x, y = data(n=25)
    model, other = (masked_mlp(**settings) for _ in range(2))
    for weight, value in zip(other.weights, model.get_weights(), strict=True):
        weight.assign(value)
    for epochs in (2, 1):  # the second fit goes on where the first one ended
        batches = kprune.RewindableBatches(x, y, 10, model, seed=1)
        model.fit(batches.to_tf_data(), epochs=epochs, steps_per_epoch=len(batches), verbose=0)
    order = [np.random.default_rng([1, turn]).permutation(25) for turn in range(3)]
    for chosen in (order[turn][begin : begin + 10] for turn in range(3) for begin in (0, 10, 20)):
        other.fit(x[chosen], y[chosen], batch_size=10, verbose=0)
    for value, wanted in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-7)  # TensorFlow compiles the two loops differently


def test_batches_of_several_inputs():
    x, y = data(n=6)
    several = kprune.RewindableBatches([x, {"a": x[:, 0]}], y, 4, mlp_compiled(), seed=2)
    (left, right), target = next(iter(several.to_tf_data()))
    chosen = np.random.default_rng([2, 0]).permutation(6)[:4]
    for got, want in ((left, x), (right["a"], x[:, 0]), (target, y)):
        np.testing.assert_array_equal(got, want[chosen])


def mlp_compiled():
    model = mlp()
    model.compile("sgd", "mse")
    return model
