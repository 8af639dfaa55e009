"""The contract of the registered criteria on tf_keras models in tfmot's wrappers."""

import functools
import random

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from helpers import data
from tf_keras import layers
from tfk_helpers import masked_mlp, sequential, state

import kprune
from kprune.config import PruningConfig
from kprune.criteria import CRITERIA, Context
from kprune.pruning import Pruner
from kprune.util.registry import trait

NAMES = list(CRITERIA)  # before a test or a doctest registers one of its own
ASK_THE_LOSS = [name for name in NAMES if "loss" in trait(CRITERIA.get(name), "needs", ())]
NEED_DATA = [name for name in NAMES if "data" in trait(CRITERIA.get(name), "needs", ())]


class Broken(Exception):
    pass


def flat():
    return masked_mlp("adam", half=False)


def normalized():
    stack = [layers.Dense(12, "relu"), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)]
    model = kprune.mask(sequential((8,), *stack)).model
    model.compile("adam", "mse", metrics=["mae"])
    return model


def two_by_two():
    one, other = (tf_keras.Input((4,), name=name) for name in ("one", "other"))
    hidden = layers.Dense(12, "relu")(layers.Concatenate()([one, other]))
    outputs = [layers.Dense(units, name=f"out{units}")(hidden) for units in (2, 3)]
    model = kprune.mask(tf_keras.Model([one, other], outputs)).model
    model.compile("adam", ["mse", "mae"], loss_weights=[1.0, 0.5])
    return model


def mixed():
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    return flat()


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = tfmot.sparsity.keras.prune_low_magnitude(layers.Dense(12, "relu", name="hidden"))
        self.norm, self.drop = layers.BatchNormalization(), layers.Dropout(0.5, seed=3)
        self.logits = tfmot.sparsity.keras.prune_low_magnitude(layers.Dense(3, name="logits"))

    def call(self, x, training=None):
        x = self.drop(self.norm(self.hidden(x), training=training), training=training)
        self.add_metric(x, name="activity")
        return self.logits(x)


def subclassed():
    model = Subclassed()
    model(data()[0])
    kprune.mask(model)
    model.compile("adam", "mse", metrics=["mae"])
    return model


MODELS = {
    "flat": flat,
    "normalized": normalized,
    "two by two": two_by_two,
    "mixed precision": mixed,
    "subclassed": subclassed,
}


def batch_for(model):
    x, y = data(n=24)
    if len(model.outputs or ["only"]) == 1:
        return x, y
    return [x[:, :4], x[:, 4:]], [y[:, :2], y]


def everything(model):
    """The variables, of metrics too, what each layer holds, and the states of what draws random numbers."""
    metrics = [v.numpy().tobytes() for metric in model.metrics for v in metric.variables]
    held = [sorted((name, id(value)) for name, value in vars(m).items()) for m in (model, *model.submodules)]
    seeds = [vars(m["_random_generator"]).copy() for m in map(vars, model.submodules) if "_random_generator" in m]
    drawn = random.getstate(), np.random.get_state()[2]
    return state(model), metrics, held, seeds, drawn


def plan(model, name, seed=0):
    rng = np.random.default_rng(3)
    made = Pruner(PruningConfig(name, rounds=2, seed=seed), [batch_for(model)] if name in NEED_DATA else None)
    made.begin(model)
    if made.tracker is not None:
        made.tracker.arrays = [rng.normal(size=w.shape) for w in kprune.masked_weights(model)]
    return made


def scores_of(model, name):
    weights = kprune.masked_weights(model)
    made = plan(model, name)
    masks = {w.path: w.kept() for w in weights}
    return CRITERIA.get(name)(Context(model, weights, masks, 0, made.data, made.tracker))


@pytest.fixture(scope="module")
def shared():
    """Makes and trains a model of each kind once: the test that shares it holds that it does not change."""

    def trained(kind):
        model = MODELS[kind]()
        model.fit(*batch_for(model), verbose=0)
        return model

    return functools.cache(trained)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_criterion(name, kind, shared):
    model = shared(kind)
    if kind == "mixed precision":
        tf_keras.mixed_precision.set_global_policy("mixed_float16")
    before = everything(model)
    tf.random.set_seed(0)
    drawn = tf.random.normal(())
    tf.random.set_seed(0)
    scores = scores_of(model, name)
    assert tf.random.normal(()) == drawn
    assert list(scores) == [w.path for w in kprune.masked_weights(model)]
    for w in kprune.masked_weights(model):
        assert scores[w.path].shape == w.shape and np.isfinite(scores[w.path]).all()
    again = scores_of(model, name)
    assert all(np.array_equal(score, again[path]) for path, score in scores.items())
    masks = plan(model, name).masks(model, 0.75)
    size = sum(mask.size for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == size * 3 // 4
    assert everything(model) == before


@pytest.mark.parametrize("kind", MODELS)
def test_masks_that_a_plan_gives_hold_in_a_fit(kind):
    model = MODELS[kind]()
    model.fit(*batch_for(model), verbose=0)
    masks = plan(model, "magnitude").masks(model, 0.75)
    kprune.set_masks(model, masks)
    model.fit(*batch_for(model), verbose=0)
    zeros = sum(int((w.value() == 0).sum()) for w in kprune.masked_weights(model))
    assert zeros >= sum(mask.size for mask in masks.values()) * 3 // 4


@pytest.mark.parametrize("name", NAMES)
def test_eager_equals_compiled(name):
    model = normalized()
    compiled = scores_of(model, name)
    tf.config.run_functions_eagerly(True)
    try:
        eager = scores_of(model, name)
    finally:
        tf.config.run_functions_eagerly(False)
    for path, score in compiled.items():
        np.testing.assert_allclose(eager[path], score, rtol=1e-4, atol=1e-5 * np.abs(score).max())


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_the_way_a_model_is_written_does_not_matter(name):
    functional, written = normalized(), subclassed()
    written.set_weights(functional.get_weights())
    for one, other in zip(scores_of(functional, name).values(), scores_of(written, name).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("name", ASK_THE_LOSS)
def test_an_exception_in_the_loss_leaves_all_as_it_was(name):
    def loss(y, predicted):
        raise Broken

    model = subclassed()
    model.fit(*batch_for(model), verbose=0)
    compiled = model.loss
    model.compile(model.optimizer, loss)
    before = everything(model)
    with pytest.raises(Broken):
        scores_of(model, name)
    assert everything(model) == before
    model.compile(model.optimizer, compiled)
    scores_of(model, name)  # and the next one works


@pytest.mark.parametrize("name", ["snip", "synflow"])
def test_an_exception_in_a_layer_leaves_all_as_it_was(name, monkeypatch):
    def broken(*args, **kwargs):
        raise Broken

    model = subclassed()
    model.fit(*batch_for(model), verbose=0)
    before = everything(model)
    with monkeypatch.context() as patch:
        patch.setattr(layers.BatchNormalization, "call", broken)
        with pytest.raises(Broken):
            scores_of(model, name)
    assert everything(model) == before
