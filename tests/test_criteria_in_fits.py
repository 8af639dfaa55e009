"""Criteria that need more than weights and masks, in `fit`: data, the initial weights, how the weights moved."""

import copy

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, assert_zero, built, data, mlp
from keras import layers
from kprune.callbacks import ACDC, DynamicSparseTraining, EarlyBird, GradualPruning, LotteryTicket, PruneAtInit
from sklearn.datasets import load_digits
from test_prune import assert_unchanged, snapshot, zeros

import kprune
from kprune.criteria import Movement
from kprune.runtime.optimizers import iterations
from kprune.schedules import Constant, Linear, PolynomialDecay
from kprune.util.ranking import zeros_for

TOTAL = 8 * 12 + 12 * 12 + 12 * 3
SAMPLE = data(n=16, seed=5)


def compiled(**arguments):
    model = mlp()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **{**CHEAP, **arguments})
    return built(model)


def fit(model, *callbacks, steps=8, **arguments):
    x, y = data(n=8 * steps)
    return model.fit(x, y, batch_size=8, verbose=0, shuffle=False, callbacks=list(callbacks), **arguments)


def masks_of(model):
    return {w.path.split("/")[-2]: w.kept() for w in kprune.masked_weights(model)}


def assert_same_masks(one, other):
    assert one.keys() == other.keys()
    for layer in one:
        np.testing.assert_array_equal(one[layer], other[layer], err_msg=layer)


def pruned_copy(weights, *arguments, **keywords):
    """The masks of a model with these weights (and the masks among them) after `kprune.prune`."""
    model = compiled()
    kprune.mask(model)
    model.set_weights(weights)
    kprune.prune(model, *arguments, verbose=False, **keywords)
    return masks_of(model)


class Before(keras.callbacks.Callback):
    """The weights and masks before each step's pruning, step -> `get_weights()`; listed before what prunes."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    def on_train_batch_end(self, batch, logs=None):
        self.weights[iterations(self.model.optimizer)] = self.model.get_weights()


# Data


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_at_initialisation_the_masks_are_those_of_prune_on_the_same_data(criterion):
    model = compiled()
    kprune.mask(model)
    start, seen = model.get_weights(), []
    expected = pruned_copy(start, criterion, 0.83, data=SAMPLE)
    fit(model, PruneAtInit(criterion, 0.83, data=SAMPLE), EachBatch(lambda m: seen.append(masks_of(m))))
    for masks in seen:
        assert_same_masks(masks, expected)
    assert zeros(model) == zeros_for(TOTAL, 0.83)
    other = pruned_copy(start, criterion, 0.83, data=data(n=16, seed=6))
    assert any(np.any(other[layer] != expected[layer]) for layer in other), "the data make no difference"


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_each_update_of_a_schedule_scores_the_weights_of_its_step_on_the_same_data(criterion):
    schedule = Linear(0.3, 0.9, begin_step=2, end_step=6, frequency=2)
    # A generator gives its batch only once; all updates see it.
    callback = GradualPruning(schedule, criterion, data=(batch for batch in [SAMPLE]))
    model, before, after = compiled(), Before(), {}
    fit(model, before, callback, EachBatch(lambda m: after.update({iterations(m.optimizer): masks_of(m)})))
    for step in (2, 4, 6):
        assert_same_masks(after[step], pruned_copy(before.weights[step], criterion, schedule(step), data=SAMPLE))
    counts = [sum(int((~mask).sum()) for mask in masks.values()) for masks in after.values()]
    assert counts == [0, *(zeros_for(TOTAL, sparsity) for sparsity in (0.3, 0.3, 0.6, 0.6, 0.9, 0.9, 0.9))]
    assert_zero(model)


class Counted(layers.Layer):
    """Counts how often Python runs it: once in each trace."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs


@pytest.mark.parametrize(
    "make",
    [
        lambda every: GradualPruning(Linear(0.3, 0.9, 0, 8, frequency=every), "snip", data=SAMPLE),
        lambda every: DynamicSparseTraining("rigl", sparsity=0.5, frequency=every, stop=1.0, data=SAMPLE),
    ],
    ids=["snip", "rigl"],
)
def test_what_an_update_has_compiled_serves_those_after_it(make):
    calls = []
    for every in (8, 1):
        counted = Counted()
        model = keras.Sequential([keras.Input((8,)), layers.Dense(12), counted, layers.Dense(3)])
        model.compile("sgd", "mse", **CHEAP)
        fit(model, make(every))
        calls.append(counted.calls)
    assert calls[0] == calls[1]


def test_a_model_that_is_compiled_anew_is_scored_by_the_new_loss():
    dense = layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input((1,)), dense])
    dense.set_weights([np.ones((1, 2), "float32")])
    kprune.mask(model)
    config, made, found = kprune.PruningConfig("snip"), kprune.criteria.Compiled(), []
    for output in (0, 1):
        model.compile("sgd", lambda y, outputs, output=output: outputs[:, output] ** 2)
        masks = config.masks(model, 0.5, data=(np.ones((1, 1)), np.ones((1, 2))), compiled=made)
        found += [mask.tolist() for mask in masks.values()]
    assert found == [[[True, False]], [[False, True]]]


def test_what_is_compiled_is_forgotten_when_other_variables_train():
    model, made = compiled(), kprune.criteria.Compiled()
    made.of(model)["scorer"] = 1
    assert made.of(model) == {"scorer": 1}
    model.layers[0].trainable = False
    assert made.of(model) == {}
    made.of(model)["scorer"] = 2
    kprune.mask(model)  # adds masks to its variables
    assert made.of(model) == {}


@pytest.mark.parametrize("criterion", ["snip", "taylor", "fisher"])
def test_missing_data_are_refused_when_the_callback_is_made(criterion):
    for make in (lambda: PruneAtInit(criterion, 0.5), lambda: GradualPruning(Constant(0.5), criterion)):
        with pytest.raises(ValueError, match=rf"'{criterion}' .* data=\(x, y\)\. Received: data=None$"):
            make()


# The initial weights


@pytest.mark.parametrize("criterion", ["large_init", "init_final_sign", "magnitude_increase"])
def test_the_initial_weights_are_those_at_the_start_of_each_fit(criterion):
    callback, model = GradualPruning(Constant(0.5, begin_step=5), criterion), compiled()
    for sparsity, first in [(0.5, 0), (0.8, 8)]:  # the second fit begins at step 8, with other weights
        callback.schedule, before = Constant(sparsity, begin_step=first + 5), Before()
        kprune.mask(model)
        initial = {w.path: w.value() for w in kprune.masked_weights(model)}
        at_start = model.get_weights()
        fit(model, before, callback)
        assert zeros(model) == zeros_for(TOTAL, sparsity)
        weights = before.weights[first + 5]
        assert any(np.any(a != b) for a, b in zip(weights, at_start, strict=True))
        assert_same_masks(masks_of(model), pruned_by_initial(model, weights, criterion, sparsity, initial))


def pruned_by_initial(model, weights, criterion, sparsity, initial):
    """The masks by what `model` weighed initially, of a copy, whose layers have the same names under another model."""
    copy = compiled()
    kprune.mask(copy)
    copy.set_weights(weights)
    tracker = kprune.criteria.InitialWeights()
    tracker.arrays = list(initial.values())
    kprune.prune(copy, criterion, sparsity, trackers=tracker)
    return masks_of(copy)


@pytest.mark.parametrize(
    ("criterion", "scores"),
    [
        ("large_init", [[4.5], [1.0], [0.5], [2.0]]),
        ("magnitude_increase", [[0.5], [2.0], [0.25], [-1.0]]),
        ("init_final_sign", [[5.0], [0.0], [0.75], [1.0]]),
    ],
)
def test_scores_by_the_initial_weights_by_hand(criterion, scores):
    dense = layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((4,)), dense])
    kprune.mask(model)
    initial = kprune.criteria.InitialWeights()
    dense.kernel.assign([[4.5], [-1.0], [0.5], [-2.0]])
    initial.begin(model)
    dense.kernel.assign([[5.0], [3.0], [0.75], [-1.0]])
    weights = kprune.masked_weights(model)
    context = kprune.criteria.Context(model, weights, {w.path: w.kept() for w in weights}, tracker=initial)
    (found,) = kprune.criteria.get(criterion)(context).values()
    np.testing.assert_array_equal(found, scores)


def test_a_tracker_of_another_model_is_refused():
    model = compiled()
    kprune.mask(model)
    tracker = kprune.criteria.InitialWeights()
    tracker.arrays = [w.value().T for w in kprune.masked_weights(model)]
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"has not watched this model.*\(12, 8\).*\(8, 12\)"):
        kprune.prune(model, "large_init", 0.5, trackers=tracker)
    assert_unchanged(model, before, ["weights"])


# Movement


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
