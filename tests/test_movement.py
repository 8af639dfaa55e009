"""Movement: its scores by hand, in every way that a fit can run, and what it leaves behind."""

import copy
import pickle

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, assert_zero, mlp
from keras import layers
from kprune.callbacks import ACDC, EarlyBird, GradualPruning, LotteryTicket, PruneAtInit
from sklearn.datasets import load_digits
from test_criteria_in_fits import TOTAL, assert_same_masks, compiled, fit, masks_of
from test_prune import assert_unchanged, snapshot, zeros

import kprune
from kprune.criteria import Movement
from kprune.runtime.optimizers import iterations
from kprune.schedules import Constant, Linear, PolynomialDecay
from kprune.util.ranking import zeros_for


def linear():
    """y = x . w with w = (1, -2, 0.5), under the squared error."""
    dense = layers.Dense(1, use_bias=False, name="dense")
    model = keras.Sequential([keras.Input((3,)), dense])
    dense.set_weights([np.array([[1.0], [-2.0], [0.5]])])
    return model


def by_hand(x, y, rate, steps):
    """-sum of rate * w * dL/dw over the steps of gradient descent, one example a step."""
    w, score = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    for example, target in zip(x[:steps], y[:steps, 0], strict=True):
        gradient = 2 * (example @ w - target) * example
        score -= rate * w * gradient
        w -= rate * gradient
    return score


X = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [-1.0, 1.0, 0.5], [2.0, -1.0, 0.0]], "float32")
Y = np.array([[0.0], [1.0], [-1.0], [2.0]], "float32")


def test_movement_is_minus_the_sum_of_weight_times_gradient():
    np.testing.assert_allclose(by_hand(X, Y, 0.1, 1), [-0.4, 0.0, -0.4])  # output 2, gradient (4, 0, 8)
    model, seen = linear(), []
    model.compile(keras.optimizers.SGD(0.1), "mse", **CHEAP)
    callback = GradualPruning(Constant(0.4, begin_step=4), "movement")

    def look(model):
        seen.append(callback.pruner.tracker.arrays[0].reshape(-1).copy())

    model.fit(X, Y, batch_size=1, shuffle=False, verbose=0, callbacks=[callback, EachBatch(look)])
    for steps, score in enumerate(seen, 1):
        np.testing.assert_allclose(score, by_hand(X, Y, 0.1, steps), rtol=1e-5, atol=1e-7)
    # Pruned is what moved towards zero most, here the largest of all.
    assert seen[-1].argmin() == 1
    np.testing.assert_array_equal(model.layers[0].kernel.numpy()[:, 0] == 0, [False, True, False])


def test_movement_over_several_steps_at_once():
    model = linear()
    model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=2, **CHEAP)
    kprune.mask(model)
    kernel, values = kprune.masked_weights(model)[0], []
    values.append(kernel.value().astype("float64"))
    callback = GradualPruning(Constant(0.4, begin_step=4), "movement")
    look = EachBatch(lambda m: values.append(kernel.value().astype("float64")))
    model.fit(X, Y, batch_size=1, shuffle=False, verbose=0, callbacks=[look, callback])
    assert look.calls == 2
    one, two, three = values
    np.testing.assert_allclose(callback.pruner.tracker.arrays[0], one * (two - one) + two * (three - two))


def test_a_tracker_that_is_pickled_in_training_keeps_its_float64():
    model = compiled()
    kprune.mask(model)
    moved = Movement()
    moved.begin(model)
    model.set_weights([1.001 * value for value in model.get_weights()])
    moved.after_step(model)
    again = pickle.loads(pickle.dumps(moved))
    for one, other in zip(moved.arrays, again.arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    for tracker in (moved, again):
        tracker.after_step(model)
    assert again.arrays[0].dtype == "float64" and again.arrays[0].any()


def test_a_pruned_weight_keeps_the_movement_it_had():
    model = compiled()
    kprune.mask(model)
    moved = Movement()
    moved.begin(model)
    fit(model)
    moved.after_step(model)
    before = [score.copy() for score in moved.arrays]
    masks = kprune.prune(model, "movement", 0.5, trackers=moved)
    fit(model)
    moved.after_step(model)
    for score, earlier, mask in zip(moved.arrays, before, masks.values(), strict=True):
        np.testing.assert_array_equal(score[~mask], earlier[~mask])
        assert np.mean(score[mask] != earlier[mask]) > 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_movement_is_added_up_in_float64(dtype):
    """2^12 * 2^12 + 2^13 * (2^-3 - 2^13) + 2^-3 * 2^-4, of which float32 loses the last; a pruned weight has none."""
    dense = layers.Dense(1, use_bias=False, dtype=dtype)
    model = keras.Sequential([keras.Input((2,)), dense])
    kprune.mask(model)
    (weight,), moved = kprune.masked_weights(model), Movement()
    kprune.set_masks(model, {weight.path: np.array([[True], [False]])})
    dense.kernel.assign([[2.0**12], [0.0]])
    moved.begin(model)
    for value in (2.0**13, 2.0**-3, 1.5 * 2.0**-3):
        dense.kernel.assign([[value], [value]])
        moved.after_step(model)
    np.testing.assert_array_equal(moved.arrays, [[[2.0**24 + 2.0**10 - 2.0**26 + 2.0**-7], [0.0]]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradualPruning(PolynomialDecay(0.0, 0.8, begin_step=0, end_step=4), "movement"),
        lambda: ACDC(0.5, "movement", begin=2, end=10, cycles=1),
        lambda: EarlyBird("movement", 0.5, patience=2, threshold=1.0, stop=False),
        lambda: LotteryTicket(levels=1, epochs_per_level=1, rate=0.5, rewind_to=3, criterion="movement"),
    ],
    ids=["GradualPruning", "ACDC", "EarlyBird", "LotteryTicket"],
)
def test_movement_leaves_nothing_on_the_device_when_training_ends(make):
    model, callback = compiled(), make()
    fit(model, callback, epochs=2)
    tracker = callback.lottery.pruner.tracker if isinstance(callback, LotteryTicket) else callback.pruner.tracker
    assert tracker.ready()
    assert {type(held) for held in keras.tree.flatten(vars(tracker))} - {type(None)} == {np.ndarray}


def test_movement_can_be_copied_while_it_watches():
    model, moved = compiled(), Movement()
    kprune.mask(model)
    moved.begin(model)
    for _ in range(2):
        fit(model)
        before = moved.arrays
        again = copy.deepcopy(moved)
        moved.after_step(model), again.after_step(model)
        for one, other, earlier in zip(again.arrays, moved.arrays, before, strict=True):
            np.testing.assert_array_equal(one, other)
            assert np.any(one != earlier)


def test_movement_of_another_model_or_not_begun_is_refused():
    model, moved = compiled(), Movement()
    kprune.mask(model)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"call its `begin\(model\)` before training.*Received: arrays=\[\], weights="
        ):
            moved.after_step(model)
        moved.begin(model)
        moved.after_step(model)
        moved.end()
    moved.begin(model)
    other = mlp(units=5)
    kprune.mask(other)
    for refused in (moved.begin, moved.after_step):
        with pytest.raises(ValueError, match=r"has not watched this model: .*\(12, 12\).*\(5, 5\)"):
            refused(other)


@pytest.mark.parametrize(
    "how", [{}, dict(jit_compile=True), dict(steps_per_execution=3), dict(run_eagerly=True)], ids=str
)
def test_movement_in_a_fit_is_exact_at_every_step(how):
    schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=6, frequency=2)  # prunes nothing at step 0
    model, seen = compiled(**how), []
    check = EachBatch(lambda m: seen.append((iterations(m.optimizer), zeros(m))))
    fit(model, GradualPruning(schedule, "movement"), check, steps=9)
    assert [count for _, count in seen] == [zeros_for(TOTAL, schedule(min(step - step % 2, 6))) for step, _ in seen]
    assert zeros(model) == zeros_for(TOTAL, 0.8)
    assert_zero(model)


def test_movement_starts_anew_in_each_fit_and_keeps_the_masks():
    model, callback = compiled(), GradualPruning(Linear(0.3, 0.6, 4, 12, frequency=4), "movement")
    fit(model, callback)
    masks, moved = masks_of(model), [score.copy() for score in callback.pruner.tracker.arrays]
    starts = []

    class Start(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            starts.append(masks_of(self.model))
            assert not callback.pruner.tracker.ready()

    fit(model, callback, Start())
    assert_same_masks(starts[0], masks)
    assert zeros(model) == zeros_for(TOTAL, 0.6)
    assert any(np.any(a != b) for a, b in zip(callback.pruner.tracker.arrays, moved, strict=True))


@pytest.mark.parametrize("schedule", [Constant(0.5), PolynomialDecay(0.1, 0.8, 0, 6)], ids=["constant", "polynomial"])
def test_pruning_by_movement_before_anything_moved_is_refused(schedule):
    model = compiled()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"the tracker has recorded nothing yet: .*Received: sparsity=0\.(5|0999.*)$"):
        fit(model, GradualPruning(schedule, "movement"))
    assert_unchanged(model, before, ["weights"])
    assert kprune.masked_weights(model) == []


def test_movement_outside_of_training_is_refused():
    model = compiled()
    before = snapshot(model)
    for prune in (
        lambda: kprune.prune(model, "movement", 0.5),
        lambda: kprune.prune(model, "movement", 0.5, trackers=kprune.criteria.InitialWeights()),
        lambda: fit(model, PruneAtInit("movement", 0.5)),
    ):
        with pytest.raises(
            ValueError, match=r"'movement' needs (what its tracker, Movement, records|a tracker, Movement)"
        ):
            prune()
        assert_unchanged(model, before, ["weights"])
        assert kprune.masked_weights(model) == []


def test_movement_on_digits():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"], **CHEAP)
    schedule = PolynomialDecay(0.0, 0.8, begin_step=50, end_step=200, frequency=25)
    callbacks = [GradualPruning(schedule, "movement", scope=kprune.scopes.with_floor("global", 0.05))]
    history = model.fit(x[:1400], y[:1400], batch_size=32, epochs=8, verbose=0, callbacks=callbacks)
    assert zeros(model) == zeros_for(64 * 32 + 32 * 10, 0.8)
    assert_zero(model)
    assert history.history["accuracy"][-1] > 0.85
