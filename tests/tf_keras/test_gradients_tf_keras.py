"""Criteria that ask the loss, on tf_keras models under tfmot's wrappers, against the SynFlow authors' code."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from golden_networks import build, load
from helpers import EachBatch, assert_finite_differences, data
from tf_keras import layers
from tfk_helpers import masked_mlp, mlp, sequential, state

import kprune
from kprune.criteria import Context, grasp, snip
from kprune.data.batches import take_batches

CRITERIA = {"snip": snip, "grasp": grasp}


def scores_of(model, criterion, batch, **arguments):
    weights = kprune.masked_weights(model)
    context = Context(model, weights, {w.path: w.kept() for w in weights}, data=take_batches(batch))
    return list(CRITERIA[criterion](context, **arguments).values())


@pytest.mark.parametrize(("name", "mode"), [("mlp3", "eval"), ("convbn", "eval"), ("convbn", "train")])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_equal_the_authors(criterion, name, mode):
    golden = load(name)
    model = kprune.mask(build(golden, tf_keras)).model
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = state(model)
    scores = scores_of(model, criterion, (golden.x, golden.y), training=mode == "train")
    reference = list(golden.scores(f"{criterion}_{mode}").values())
    largest = max(np.abs(score).max() for score in reference)
    for score, expected in zip(scores, reference, strict=True):
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4 * largest)
    assert state(model) == before


@pytest.mark.parametrize("criterion", CRITERIA)
def test_products_are_not_in_tf32_while_a_model_is_scored_and_only_then(criterion):
    in_tf32, seen = tf.config.experimental.tensor_float_32_execution_enabled, []

    class Watching(layers.Layer):
        def call(self, x):
            seen.append(in_tf32())
            return x

    model = kprune.mask(sequential((8,), layers.Dense(6), Watching(), layers.Dense(3))).model
    model.compile("sgd", "mse")
    assert in_tf32() and all(seen)
    scores_of(model, criterion, data())
    assert not seen[-1] and in_tf32()


@pytest.mark.parametrize(
    "norm",
    [
        lambda: layers.BatchNormalization(),
        lambda: layers.LayerNormalization(),
        lambda: layers.LayerNormalization(axis=1),
        lambda: layers.GroupNormalization(2),
    ],
)
def test_the_hessian_product_sees_through_normalisation(norm):
    tf_keras.mixed_precision.set_global_policy("float64")
    stack = [layers.Dense(12, "tanh"), layers.Reshape((3, 4)), norm(), layers.Flatten(), layers.Dense(3)]
    model = kprune.mask(sequential((8,), *stack)).model
    model.compile("sgd", "mse")
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(1).normal(size=v.shape))
    weights = kprune.masked_weights(model)
    context = Context(model, weights, {w.path: w.kept() for w in weights}, data=take_batches(data()))
    assert context.dtype() == "float64"
    assert_finite_differences(context)


@pytest.mark.parametrize("criterion", ["snip", "iterative_snip", "force", "grasp", "taylor", "fisher"])
def test_counts_are_exact_and_pruned_weights_stay(criterion):
    model = masked_mlp(half=False)
    first = kprune.prune(model, criterion, 0.5, rounds=3, data=data())
    more = kprune.prune(model, criterion, 0.8, rounds=3, data=data())
    assert [sum(int((~m).sum()) for m in masks.values()) for masks in (first, more)] == [138, 220]
    assert not any(np.any(more[path] & ~first[path]) for path in first)


def test_initial_weights_by_gradual_pruning():
    model = masked_mlp("adam", half=False)
    schedule = kprune.schedules.Constant(0.5, begin_step=2)
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[kprune.callbacks.GradualPruning(schedule, "large_init")])
    assert kprune.summary(model).zeros == 138


@pytest.mark.parametrize("steps", [1, 4], ids=lambda steps: f"steps_per_execution={steps}")
def test_movement_by_gradual_pruning(steps):
    model, values = masked_mlp(tf_keras.optimizers.SGD(0.1), half=False, steps_per_execution=steps), []
    callback = kprune.callbacks.GradualPruning(kprune.schedules.Constant(0.5, begin_step=8), "movement")

    def look(model):
        values.append([w.value().astype("float64") for w in kprune.masked_weights(model)])

    look(model)
    model.fit(*data(n=64), batch_size=8, verbose=0, shuffle=False, callbacks=[EachBatch(look), callback])
    assert len(values) == 1 + 8 // steps
    expected = [sum(a * (b - a) for a, b in itertools.pairwise(of_one)) for of_one in zip(*values, strict=True)]
    for score, by_hand in zip(callback.pruner.tracker.arrays, expected, strict=True):
        np.testing.assert_allclose(score, by_hand, rtol=1e-12)
    assert kprune.summary(model).zeros == 138
    kept = np.concatenate([w.kept().ravel() for w in kprune.masked_weights(model)])
    scores = np.concatenate([score.ravel() for score in expected])
    assert scores[kept].min() >= scores[~kept].max()


def test_two_outputs_with_weights_of_their_losses():
    inputs = tf_keras.Input((8,))
    x = tf_keras.layers.Dense(6, "relu")(inputs)
    outputs = {"a": tf_keras.layers.Dense(3, name="a")(x), "b": tf_keras.layers.Dense(1, name="b")(x)}
    model = kprune.mask(tf_keras.Model(inputs, outputs)).model
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.0})
    x, y = data()
    *_, ignored = scores_of(model, "snip", (x, {"a": y, "b": y[:, :1]}))
    np.testing.assert_array_equal(ignored, 0.0)


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match=r"cannot be used\. Received: model='.*'$"):
        kprune.prune(kprune.mask(mlp()).model, "snip", 0.5, data=data())


def test_a_loss_of_the_models_own_needs_no_targets():
    """dL/dw of mean((x w)^2) at x = (3, 1), w = (1, 2): 2 * 5 * x = (30, 10), so |w dL/dw| = (30, 20) / 50."""

    class Penalty(tf_keras.layers.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_mean(tf.square(x)))
            return x

    class Own(tf_keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return tf.reduce_mean(tf.square(y_pred))

    x = np.array([[3.0, 1.0]], "float32")
    for cls, last in ((tf_keras.Model, Penalty()), (Own, tf_keras.layers.Activation("linear"))):
        inputs, dense = tf_keras.Input((2,)), tf_keras.layers.Dense(1, use_bias=False)
        model = kprune.mask(cls(inputs, last(dense(inputs)))).model
        kprune.masked_weights(model)[0].variable.assign([[1.0], [2.0]])
        model.compile("sgd")
        (scores,) = scores_of(model, "snip", (x,))
        np.testing.assert_allclose(scores.ravel(), [0.6, 0.4], rtol=1e-6)
    bare = kprune.mask(mlp()).model
    bare.compile("sgd")
    with pytest.raises(ValueError, match=r"cannot be used\. Received: model='.*'$"):
        kprune.prune(bare, "snip", 0.5, data=data())
