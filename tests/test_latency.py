"""Budgets in latency: the bisection on times that are made up, and that what is timed is the model's prediction."""

import keras
import numpy as np
import pytest
from helpers import mlp
from keras import layers

import kprune
from kprune.deploy import latency


def made_up(monkeypatch, of):
    """The latency of the smaller network is `of` its fraction of multiply-adds."""

    def ratio(model, small, inputs):
        assert kprune.masked_weights(small) == []
        return of(kprune.summary(small).flops / kprune.summary(model).flops)

    monkeypatch.setattr(latency, "_ratio", ratio)


@pytest.mark.once
@pytest.mark.parametrize("masked", [False, True])
def test_the_largest_budget_that_is_fast_enough(monkeypatch, masked):
    made_up(monkeypatch, lambda flops: 0.1 + flops)
    model = mlp(units=64)
    if masked:
        kprune.mask(model)
    before = [np.array(w) for w in model.get_weights()]
    [(unit, found)] = kprune.latency_budget(model, 0.6, trials=5, verbose=0).items()
    assert unit == "flops"
    assert 0.5 - 1 / 2**5 <= found <= 0.52  # of 0.5; the network is at most a unit below its budget
    assert (kprune.masked_weights(model) != []) == masked
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.once
def test_a_latency_that_cannot_be_reached(monkeypatch):
    made_up(monkeypatch, lambda flops: 0.9)
    model = mlp()
    # One unit in each layer: 12 of 276 multiply-adds.
    with pytest.raises(ValueError, match=r"0\.04348 of the multiply-adds, takes 0\.90 times .*Received: fraction=0\.6"):
        kprune.latency_budget(model, 0.6, verbose=0)
    assert kprune.masked_weights(model) == []


@pytest.mark.once
def test_wrong_arguments():
    refused = ({"criterion": "snip"}, {"criterion": "movement"})
    for wrong in (
        {"fraction": 1.0},
        {"trials": 0},
        {"verbose": 3},
        {"groups": "rows"},
        {"groups": None},
        {"inputs": 3},
        *refused,
    ):
        with pytest.raises(ValueError, match=f"Received: {next(iter(wrong))}="):
            kprune.latency_budget(mlp(), **{"fraction": 0.5, **wrong})
    with pytest.raises(ValueError, match="latency_budget requires a Keras 3 model"):
        import tf_keras

        kprune.latency_budget(tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Dense(1)]), 0.5)


def test_what_is_timed_is_the_prediction():
    one, other = keras.Input((3,), name="one"), keras.Input((2,), name="other")
    model = keras.Model({"one": one, "other": other}, layers.Dense(2)(layers.Concatenate()([one, other])))
    rng = np.random.default_rng(0)
    x = {"one": rng.normal(size=(4, 3)).astype("float32"), "other": rng.normal(size=(4, 2)).astype("float32")}
    made = keras.tree.flatten(latency._compiled(model, x)())
    np.testing.assert_allclose(np.array(made[0]), model.predict(x, verbose=0)[:1], rtol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["mixed precision", "subclassed", "pruned"])
def test_networks_that_are_copied(monkeypatch, kind, caplog):
    made_up(monkeypatch, lambda flops: 0.1 + flops)
    if kind == "mixed precision":
        keras.config.set_dtype_policy("mixed_float16")
    model = mlp(units=16)
    if kind == "subclassed":

        class Own(keras.Model):
            def __init__(self, inner):
                super().__init__()
                self.one, self.two, self.three = inner.layers

            def call(self, x):
                return self.three(self.two(self.one(x)))

        model = Own(mlp(units=16))
        model.build((None, 8))
    if kind == "pruned":
        kprune.prune(model, "magnitude", 0.5, verbose=0)
    assert 0.3 < kprune.latency_budget(model, 0.6, trials=3, verbose=0)["flops"] <= 0.6
    assert "exact zeros" not in caplog.text
