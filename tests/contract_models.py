"""The models of the contract: each has the same three kernels, norm and dropout, written in another way."""

import functools

import keras
import numpy as np
from helpers import CHEAP, built, data
from keras import layers

import kprune
from kprune.config import PruningConfig
from kprune.criteria import CRITERIA, Context
from kprune.util.registry import trait


def parts():
    return [
        layers.Dense(10, "relu", name="hidden1"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.3, seed=3, name="drop"),
        layers.Dense(9, "relu", name="hidden2"),
        layers.Dense(3, name="logits"),
    ]


def flat():
    return keras.Sequential([keras.Input((8,)), *parts()])


def nested():
    hidden1, norm, drop, hidden2, logits = parts()
    inner_inputs = keras.Input((10,))
    inner = keras.Model(inner_inputs, hidden2(drop(inner_inputs)), name="inner")
    inputs = keras.Input((8,))
    first = keras.Sequential([keras.Input((8,)), hidden1, norm], name="first")
    head = keras.Sequential([keras.Input((9,)), logits], name="head")
    return keras.Model(inputs, head(inner(first(inputs))))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden1, self.norm, self.drop, self.hidden2, self.logits = parts()

    def call(self, x, training=None):
        x = self.drop(self.norm(self.hidden1(x), training=training), training=training)
        return self.logits(self.hidden2(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 8), "float32"))
    return model


def two_by_two():
    one, other = keras.Input((8,), name="one"), keras.Input((4,), name="other")
    hidden1, norm, drop, hidden2, logits = parts()
    x = layers.Concatenate()([drop(norm(hidden1(one))), layers.Dense(6, "relu", name="side")(other)])
    return keras.Model([one, other], {"logits": logits(hidden2(x)), "size": layers.Dense(1, name="size")(x)})


MODELS = {"flat": flat, "nested": nested, "subclassed": subclassed, "two by two": two_by_two}


def batch_for(kind):
    (x, y), (other, size) = data(), data((4,), outputs=(1,), seed=1)
    return ({"one": x, "other": other}, {"logits": y, "size": size}) if kind == "two by two" else (x, y)


def trained(kind, masked=True, policy="float32", **compile_args):
    """A compiled model of a kind, with state everywhere: moments, metrics, statistics, a seed generator."""
    keras.config.set_dtype_policy(policy)
    model = MODELS[kind]()
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:  # biases and gammas too
        v.assign(rng.normal(size=v.shape) * 0.5 + (1.0 if v.name == "gamma" else 0.0))
    if masked:
        kprune.mask(model)
    metrics = {"logits": "mae", "size": "mae"} if kind == "two by two" else ["mae"]
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", metrics=metrics, **{**CHEAP, **compile_args})
    built(model)
    x, y = batch_for(kind)
    model.train_on_batch(x, y)
    keras.config.set_dtype_policy("float32")
    return model


@functools.cache
def shared(kind, **arguments):
    """Each trained model, made once: the tests that share it hold that it does not change."""
    return trained(kind, **arguments)


def needed(model, name):
    """What the criterion needs, as arguments of `kprune.prune`."""
    needs, arguments = trait(CRITERIA.get(name), "needs", ()), {}
    if "data" in needs:
        arguments["data"] = [batch_for("two by two" if any("side" in v.path for v in model.variables) else "flat")]
    if tracker := PruningConfig(name).tracker():
        rng = np.random.default_rng(7)
        tracker.arrays = [rng.normal(size=v.shape) for v in model.trainable_variables if "kernel" in v.path]
        arguments["trackers"] = tracker
    return arguments


def scores_of(model, name, seed=0):
    weights = kprune.masked_weights(model)
    given = needed(model, name)
    masks = {w.path: w.kept() for w in weights}
    batches = PruningConfig(name).take(given.get("data"))
    return CRITERIA.get(name)(Context(model, weights, masks, seed, batches, given.get("trackers")))


def masks_of(model, name, sparsity, **arguments):
    """The masks to which the model would be pruned; it is not."""
    return PruningConfig(name, **arguments).masks(model, sparsity, **needed(model, name))


def count_zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def assert_all_equal(one, other):
    """Two dicts of arrays: the same keys in the same order, the same bits."""
    assert list(one) == list(other)
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)
