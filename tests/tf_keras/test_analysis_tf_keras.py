"""`kprune.analysis` on tf_keras models."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import data, halve
from tfk_helpers import masked_mlp, mlp, state

import kprune
from kprune.analysis import instability, linear_path, supermask
from kprune.lottery.rewind import snapshot


def trained(half=True):
    model = masked_mlp("adam", half=half, metrics=["mae"])
    model.fit(*data(), batch_size=8, verbose=0)
    return model


def test_a_path_between_two_trainings():
    model = trained()
    one = snapshot(model)
    model.fit(*data(seed=1), batch_size=8, verbose=0)
    other, before, seen = snapshot(model), state(model), []

    def look(model):
        seen.append(snapshot(model).weights)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return 0.0

    linear_path(model, one, other, look, points=3, verbose=False)
    for path, value in seen[1].items():
        np.testing.assert_array_equal(seen[0][path], one.weights[path])
        np.testing.assert_array_equal(seen[2][path], other.weights[path])
        np.testing.assert_allclose(value, (one.weights[path] + other.weights[path]) / 2, rtol=1e-6, atol=1e-7)
    assert state(model) == before
    with pytest.raises(KeyboardInterrupt):
        linear_path(model, one, other, look, points=3, verbose=False)
    assert state(model) == before


def test_instability_trains_from_the_point_and_leaves_the_optimizer_alone():
    model = trained()
    x, y = data(n=64)

    def train(model, seed):
        begun.append(int(model.optimizer.iterations))
        model.fit(tf.data.Dataset.from_tensor_slices((x, y)).shuffle(64, seed=seed).batch(8), verbose=0)

    early, begun = snapshot(model), []
    model.fit(x, y, batch_size=8, verbose=0)
    before = state(model)
    path = instability(model, train, (x, y), at=early, points=3, verbose=False)
    assert state(model) == before
    assert begun == [4, 4] and path.metric in ("mae", "mean_absolute_error")
    assert path.values[0] != path.values[2]


def test_a_supermask_is_the_ticket_untrained():
    model = trained(half=False)
    initial = masked_mlp()
    ticket, before = kprune.Ticket.of(initial), state(model)
    x, y = data()

    def error(model):
        return np.mean((np.asarray(model(x)) - y) ** 2)

    assert supermask(model, ticket, error) == error(initial) != error(model)
    assert state(model) == before

    def breaks(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supermask(model, ticket, breaks)
    assert state(model) == before
    with pytest.raises(ValueError, match=r"kprune\.mask\(model\)\.model"):
        supermask(mlp(), ticket, error)
    halve(model)
    assert supermask(model, ticket, error) == error(initial)
