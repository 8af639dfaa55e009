"""Drop and grow, by hand and in general: exact densities, what goes and what comes."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kprune
from kprune.growth import METHODS, GradientMomentum, drop_and_grow

PATH = "net/dense/kernel"


def network(kernel):
    """A layer without bias whose kernel is this, its zeros pruned."""
    kernel = np.asarray(kernel, "float32")
    dense = keras.layers.Dense(kernel.shape[1], use_bias=False, name="dense")
    model = keras.Sequential([keras.Input((kernel.shape[0],)), dense], name="net")
    dense.set_weights([kernel])
    kprune.mask(model)
    kprune.set_masks(model, {PATH: kernel != 0})
    return model


def growing(*scores):
    return lambda context: {PATH: np.array(scores, "float64").reshape(context.weights[0].shape)}


def test_two_updates_of_a_kernel_by_hand():
    # Kept: 1, -4, 3. A third of them, the smallest magnitude, goes: 1. The highest of the others comes: at (1, 1).
    model = network([[1.0, 0.0, -4.0], [3.0, 0.0, 0.0]])
    masks = drop_and_grow(model, growing(5.0, 1.0, 9.0, 9.0, 6.0, 2.0), {PATH: 3}, 0.34)
    assert masks[PATH].tolist() == [[False, False, True], [True, True, False]]
    kprune.set_masks(model, masks)
    assert model.layers[0].kernel.numpy().tolist() == [[0.0, 0.0, -4.0], [3.0, 0.0, 0.0]]  # it comes with 0
    # Now it is the smallest itself, and goes; what was dropped before may come back, also with 0.
    masks = drop_and_grow(model, growing(7.0, 1.0, 0.0, 0.0, 6.0, 2.0), {PATH: 3}, 0.34)
    assert masks[PATH].tolist() == [[True, False, True], [True, False, False]]
    kprune.set_masks(model, masks)
    assert model.layers[0].kernel.numpy().tolist() == [[0.0, 0.0, -4.0], [3.0, 0.0, 0.0]]


def test_what_was_dropped_may_be_what_grows():
    model = network([[1.0, 2.0, 0.0]])
    masks = drop_and_grow(model, growing(9.0, 0.0, 1.0), {PATH: 2}, 0.5)
    assert masks[PATH].tolist() == [[True, True, False]]
    assert model.layers[0].kernel.numpy().tolist() == [[1.0, 2.0, 0.0]]  # and keeps its value


def test_rigl_grows_where_the_gradient_is_largest():
    model = network([[2.0], [1.0], [0.0], [0.0]])
    model.compile("sgd", "mse")
    x, y = np.array([[1.0, 1.0, 0.5, 3.0]], "float32"), np.zeros((1, 1), "float32")
    masks = drop_and_grow(model, "rigl", {PATH: 2}, 0.5, data=(x, y))  # |dL/dw| = 6 * x
    assert masks[PATH].ravel().tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match=r"'gradient' needs data to compute the loss.*Received: data=None$"):
        drop_and_grow(model, "rigl", {PATH: 2}, 0.5)


def test_snfs_grows_where_the_running_mean_of_gradients_is_largest():
    model = network([[2.0], [1.0], [0.0], [0.0]])
    model.compile("sgd", "mse")
    x, y = np.array([[1.0, 1.0, -0.5, 0.25]], "float32"), np.zeros((1, 1), "float32")
    momentum = GradientMomentum((x, y))
    momentum.after_step(model)  # dL/dw = 2 * 3 * x = 6, 6, -3, 1.5
    np.testing.assert_allclose(momentum.arrays[0].ravel(), [0.6, 0.6, -0.3, 0.15], rtol=1e-6)
    model.layers[0].kernel.assign([[-4.0], [1.0], [0.0], [0.0]])
    momentum.after_step(model)  # dL/dw = 2 * -3 * x = -6, -6, 3, -1.5; M = 0.9 M + 0.1 of that
    np.testing.assert_allclose(momentum.arrays[0].ravel(), [-0.06, -0.06, 0.03, -0.015], rtol=1e-5)
    # 1 goes; of the others -0.06, its own, is largest: with less in its momentum the entry at 2 comes.
    grow = {"method": "snfs", "n_keep": {PATH: 2}, "share": 0.5, "trackers": momentum}
    assert drop_and_grow(model, **grow)[PATH].ravel().tolist() == [True, True, False, False]
    momentum.arrays[0][1] = 0.029
    assert drop_and_grow(model, **grow)[PATH].ravel().tolist() == [True, False, True, False]


def test_snfs_needs_its_momentum_and_data():
    model = network([[2.0], [0.0]])
    with pytest.raises(ValueError, match=r"'snfs'.*GradientMomentum, that records.*Received: trackers=None$"):
        drop_and_grow(model, "snfs", {PATH: 1}, 0.5)
    with pytest.raises(ValueError, match=r"needs data to compute the loss: pass data=\(x, y\)\. Received: data=None$"):
        GradientMomentum(None)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), kept=st.integers(0, 24), target=st.integers(0, 24), share=st.floats(0, 1))
def test_each_weight_keeps_exactly_what_it_is_to(seed, kept, target, share):
    rng = np.random.default_rng(seed)
    mask = np.zeros(24, bool)
    mask[rng.permutation(24)[:kept]] = True
    values = (rng.normal(size=24) + np.sign(rng.normal(size=24)) * 0.01) * mask
    model = MODELS.setdefault("net", network(np.ones((6, 4))))
    model.layers[0].kernel.assign(values.reshape(6, 4))
    kprune.set_masks(model, {PATH: mask.reshape(6, 4)})
    moved = drop_and_grow(model, "set", {PATH: target}, share, seed=seed)[PATH].ravel()
    assert moved.sum() == target
    left = min(target, kept - int(np.floor(share * kept)))
    largest = np.argsort(-np.abs(values) - mask, kind="stable")[:left]
    assert moved[largest].all()


MODELS = {}


def test_at_random_is_the_same_for_the_same_seed_only():
    model = network(np.arange(1, 41).reshape(8, 5) % 3)
    kept = int(np.count_nonzero(model.layers[0].kernel))
    one, again, other = (drop_and_grow(model, "set", {PATH: kept}, 0.5, seed=seed)[PATH] for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize("pattern", ["2:4", "channel", "2x1"])
def test_patterns_stay_whole(pattern):
    rng = np.random.default_rng(0)
    model = network(rng.normal(size=(8, 6)))
    masks = kprune.prune(model, "magnitude", 0.5, pattern=pattern)
    kept = {path: int(mask.sum()) for path, mask in masks.items()}
    moved = drop_and_grow(model, "set", kept, 0.4, pattern=pattern, seed=3)[PATH]
    assert moved.sum() == kept[PATH] and (moved != masks[PATH]).any()
    if pattern == "2:4":
        assert (moved.reshape(2, 4, 6).sum(1) == 2).all()
    elif pattern == "channel":
        assert set(moved.sum(0)) == {0, 8}
    else:
        assert (moved[::2] == moved[1::2]).all()


def test_methods_by_name():
    assert set(METHODS) == {"set", "rigl", "snfs"}
    with pytest.raises(ValueError, match=r"Unknown method.*Received: method='sett'$"):
        drop_and_grow(network([[1.0]]), "sett", {PATH: 1}, 0.5)
