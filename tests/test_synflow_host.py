"""SynFlow's rounds block by block on the host's CPU: the masks are those of all scores at once."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kprune
from kprune.config import PruningConfig
from kprune.criteria.engines import synflow_factors, synflow_host
from kprune.criteria.engines.synflow_factors import Derivative, aligned
from kprune.criteria.engines.synflow_host import Survivors
from kprune.scopes import global_scope
from kprune.selection import keep_highest


@st.composite
def small_integers(draw):
    """Weights, what is left of them and their derivatives, all so small that no score is rounded and many are equal."""
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values, masks, parts = [], [], []
    for window, filters, positions in ((6, 4, 3), (9, 2, 1), (5, 3, 0)):
        values.append(draws.integers(0, 3, (window, filters)).astype(float))
        masks.append(draws.random((window, filters)) < 0.8)
        if positions:
            rows = draws.integers(0, 3, (positions, window)).astype(float)
            parts.append(Derivative(draws.integers(-1, 3, (positions, filters)).astype(float), rows))
        else:
            parts.append(Derivative(draws.integers(-3, 3, (window, filters)).astype(float)))
    return values, masks, parts


def all_scores(values, masks, parts):
    whole = [p.deltas if p.windows is None else p.windows.T @ p.deltas for p in parts]
    return [np.abs(g * np.where(m, v, 0)) for g, v, m in zip(whole, values, masks, strict=True)]


@settings(deadline=None, max_examples=40)
@given(small_integers(), st.integers(0, 70), st.sampled_from(["sampled", "wide", "above", "below"]))
def test_a_cut_keeps_the_highest_and_of_equal_ones_the_earlier(drawn, n, bracket):
    values, masks, parts = drawn
    expected = keep_highest(all_scores(values, masks, parts), masks, n)
    survivors = Survivors(values, masks)
    brackets = {"wide": (0.5, 20.0), "above": (30.0, 40.0), "below": (0.25, 0.5)}
    if bracket in brackets:  # the last two miss the cut
        survivors._bracket = lambda parts, n: brackets[bracket]
    addresses = [kept.ctypes.data for kept in survivors.kept]
    survivors.cut(parts, n)
    for mask, known, kept, value in zip(survivors.masks, expected, survivors.kept, values, strict=True):
        np.testing.assert_array_equal(mask, known)
        np.testing.assert_array_equal(kept, np.where(known, value, 0))
    assert addresses == [kept.ctypes.data for kept in survivors.kept]


def test_blocks_of_any_size_score_alike(monkeypatch):
    draws = np.random.default_rng(0)
    kept, part = draws.random((7, 5)), Derivative(draws.random((3, 5)), draws.random((3, 7)))
    for block in (1, 11, 1000):
        monkeypatch.setattr(synflow_host, "BLOCK", block)
        scores = synflow_host._scores(kept, part)
        np.testing.assert_allclose(scores, part.windows.T @ part.deltas * kept, rtol=1e-15)
        places = draws.integers(kept.size, size=9)
        np.testing.assert_allclose(synflow_host._scores_at(kept, part, places), scores.reshape(-1)[places], rtol=1e-15)


class Twice(layers.Layer):
    """Not Keras's own, so that it may do anything with the kernels of the model."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Conv2D(3, 3, padding="same", use_bias=False)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(self.inner(x))


def convolutional(own=()):
    """With max pooling, normalization, a stride, a shortcut, a layer that is called twice and one of another kind."""
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for layer in own:
        x = layer(x)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(x))
    shared = layers.Conv2D(6, 3, padding="same", use_bias=False)
    y = shared(shared(layers.MaxPooling2D(2)(y)))
    y = layers.Add()([y, layers.Conv2D(6, 1, strides=2, use_bias=False)(x)])
    y = layers.DepthwiseConv2D(2)(y)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)))


@pytest.fixture
def factored(monkeypatch):
    """The number of weights that were left as factors, of each loop."""
    numbers, find = [], synflow_factors._convolutions

    def watched(flow):
        found = find(flow)
        numbers.append(len(found))
        return found

    monkeypatch.setattr(synflow_factors, "_convolutions", watched)
    return numbers


@pytest.mark.parametrize(("criterion", "own"), [("synflow", False), ("synflow_l2", False), ("synflow", True)])
def test_masks_equal_those_of_all_scores(factored, monkeypatch, criterion, own):
    keras.utils.set_random_seed(0)
    model = convolutional([Twice()] if own else [])
    kprune.prune(model, "random", 0.1)
    before = [v.numpy() for v in model.variables]
    within, sampled = Survivors._cut_within, []
    monkeypatch.setattr(Survivors, "_cut_within", lambda *given: (sampled.append(within(*given)), sampled[-1])[1])
    masks = PruningConfig(criterion, rounds=13).masks(model, 0.9)
    assert factored == [0 if own else 3] and sum(sampled) > 8
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    other = PruningConfig(criterion, scope=lambda *given: global_scope(*given), rounds=13)
    plain = other.masks(model, 0.9)
    assert len(factored) == 1
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, plain[path], path)


def sequences():
    return keras.Sequential(
        [keras.Input((8, 3)), layers.Conv1D(4, 3, padding="same"), layers.Flatten(), layers.Dense(5)]
    )


def computed_anew():
    with keras.RematScope(mode="full"):
        first = layers.Conv2D(4, 3)
    return keras.Sequential([keras.Input((5, 5, 2)), first, layers.Flatten(), layers.Dense(3)])


@pytest.mark.private_api
@pytest.mark.parametrize("make", [sequences, computed_anew])
def test_convolutions_that_cannot_be_recorded_are_asked_for_their_gradient(factored, make):
    if make is computed_anew and keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow cannot score it")
    keras.utils.set_random_seed(0)
    model = make()
    kprune.prune(model, "random", 0.3)
    masks = PruningConfig("synflow", rounds=5).masks(model, 0.6)
    plain = PruningConfig("synflow", scope=lambda *given: global_scope(*given), rounds=5).masks(model, 0.6)
    assert factored == [0]
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, plain[path], path)


def test_a_framework_that_copies_is_given_each_rounds_weights():
    arrays = [aligned(np.ones(3))]
    lent = synflow_factors._lent(arrays, np.array, np.array)
    arrays[0][...] = 2
    np.testing.assert_array_equal(lent(), [[2, 2, 2]])


@pytest.mark.private_api
def test_the_frameworks_compute_on_the_arrays_themselves():
    """NumPy writes to memory that TensorFlow and JAX hold; a copy of all weights in each round would cost much time."""
    array = aligned(np.ones((2, 3)))
    if keras.backend.backend() == "jax":
        import jax

        with synflow_factors.float64_on(synflow_factors.host_of_jax()):
            (tensor,) = synflow_factors._lent([array], jax.dlpack.from_dlpack, None)()
    else:
        import tensorflow as tf

        (tensor,) = synflow_factors._lent([array], lambda a: tf.experimental.dlpack.from_dlpack(a.__dlpack__()), None)()
    array[0, 0] = 5
    assert np.asarray(tensor)[0, 0] == 5
