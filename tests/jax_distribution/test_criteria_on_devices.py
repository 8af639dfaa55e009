"""Every criterion on a model that lies on four devices: the scores that it has on one."""

import functools

import jax
import keras
import numpy as np
import pytest
from helpers import halve
from small import BATCH, DISTRIBUTIONS, data, distribute, network

import kprune
from kprune.config import PruningConfig
from kprune.criteria import CRITERIA, Context
from kprune.pruning import Pruner


def half_pruned(name):
    """A model, a plan to prune it by the criterion, and what the criterion is given."""
    model = network()
    kprune.mask(model)
    halve(model)
    weights = kprune.masked_weights(model)
    rng = np.random.default_rng(7)
    plan = Pruner(PruningConfig(name, rounds=2), tuple(a[:BATCH] for a in data()))
    plan.begin(model)
    if plan.tracker is not None:
        plan.tracker.arrays = [rng.normal(size=w.shape) for w in weights]
    return model, plan, Context(model, weights, {w.path: w.kept() for w in weights}, 0, plan.data, plan.tracker)


def scores(name, distribution=None):
    """The scores of a half pruned model, and the masks to which they would prune it further."""
    with distribute(distribution):
        model, plan, context = half_pruned(name)
        return CRITERIA.get(name)(context), plan.masks(model, 0.8)


@functools.cache
def on_one_device(name):
    return scores(name)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_scores(distribution, name):
    expected, masks = on_one_device(name)
    found, found_masks = scores(name, distribution)
    assert list(found) == list(expected)
    for path, score in expected.items():
        assert isinstance(found[path], np.ndarray)
        # Gradients differ by the rounding of float32; all else is computed on the host.
        largest = np.abs(score).max()
        np.testing.assert_allclose(found[path], score, rtol=1e-4, atol=1e-5 * largest, err_msg=path)
        np.testing.assert_array_equal(found_masks[path], masks[path], err_msg=path)


def test_sums_of_movement_are_spread_like_the_weights():
    with distribute("model_parallel"):
        model, moved = network(), kprune.criteria.Movement()
        kprune.mask(model)
        values = [weight.variable.value for weight in kprune.masked_weights(model)]
        assert not all(value.sharding.is_fully_replicated for value in values)
        for _ in ("from zeros", "from arrays of the host"):
            moved.begin(model)
            for after in (moved.after_step, lambda model: None):
                for array, value in zip([*moved._totals, *moved._last], [*values, *values], strict=True):
                    assert array.sharding.is_equivalent_to(value.sharding, value.ndim)
                after(model)
            moved.end()


def test_gradients_are_spread_like_the_weights(monkeypatch):
    """A model that only several devices together can hold is not scored on one of them."""
    placed, put = [], jax.device_put
    with distribute("model_parallel"):
        _, _, context = half_pruned("snip")
        monkeypatch.setattr(jax, "device_put", lambda *args: placed.append(put(*args)) or placed[-1])
        CRITERIA.get("snip")(context)
        assert [value.sharding for value in placed] == [w.variable.value.sharding for w in context.weights]
        assert not any(value.is_fully_replicated for value in placed)


@pytest.mark.parametrize("name", ["snip", "synflow"])
def test_outputs_are_not_laid_out_in_scoring(name, monkeypatch):
    """SynFlow is computed on the host, and of a batch of one no two devices can have a part."""
    with distribute("model_parallel"):
        _, _, context = half_pruned(name)

        def asked(self, path):
            raise AssertionError(path)

        monkeypatch.setattr(keras.distribution.ModelParallel, "get_tensor_layout", asked)
        assert CRITERIA.get(name)(context)


def without_retraining(distribution=None):
    """(mask, value) of each weight after SparseGPT."""
    with distribute(distribution):
        model = network()
        kprune.prune_after_training(model, 0.5, data=data(), verbose=0)
        return [(w.kept(), w.value()) for w in kprune.masked_weights(model)]


def test_sparsegpt_is_that_of_one_device():
    expected = without_retraining()
    for distribution in DISTRIBUTIONS:
        for (mask, value), (one_mask, one_value) in zip(without_retraining(distribution), expected, strict=True):
            np.testing.assert_array_equal(mask, one_mask)
            np.testing.assert_allclose(value, one_value, rtol=1e-3, atol=1e-5)
