"""Criteria that need more than weights and masks, in `fit`: data, and the initial weights."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, assert_zero, built, data, mlp
from keras import layers
from kprune.callbacks import DynamicSparseTraining, GradualPruning, PruneAtInit
from test_prune import assert_unchanged, snapshot, zeros

import kprune
from kprune.runtime.optimizers import iterations
from kprune.schedules import Constant, Linear
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
