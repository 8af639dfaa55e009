"""Mask updates by compiled programs, on four devices: masks are those of NumPy, and each part stays where it lies."""

import numpy as np
import pytest
from kprune.callbacks import GradualPruning
from small import BATCH, DISTRIBUTIONS, STEPS, data, distribute, network
from steps import TracedSteps, updates_on_device
from test_callbacks_on_devices import check_shards

import kprune
import kprune.updates
from kprune.config import PruningConfig
from kprune.masks import current_masks


@pytest.fixture
def traces():
    with updates_on_device() as traces:
        yield traces


FIFTY = kprune.schedules.PolynomialDecay(0.1, 0.7, begin_step=1, end_step=50, frequency=1)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2x2", "channel"])
@pytest.mark.usefixtures("traces")
def test_update(pattern):
    config = PruningConfig("magnitude", pattern=pattern, scope="global")
    with distribute("model_parallel"):
        model = network()
        kprune.prune(model, "magnitude", 0.0, pattern=pattern, verbose=0)
        for sparsity in (0.3, 0.6):
            expected = config.masks(model, sparsity)
            assert kprune.updates.update_on_device(model, config, sparsity) is not None
            for path, mask in current_masks(model).items():
                np.testing.assert_array_equal(mask, expected[path])
            check_shards(model, parts=2)
            followers = {weight.path: weight.kept() for weight in kprune.masks.followers(model)}
            kprune.set_masks(model, expected)
            assert bool(followers) == (pattern == "channel")
            for weight in kprune.masks.followers(model):
                np.testing.assert_array_equal(weight.kept(), followers[weight.path])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_update_by_movement_whose_sums_lie_as_the_weights_do(name, traces):
    with distribute(name):
        model = network()
        kprune.mask(model)
        tracker, config = kprune.criteria.Movement(), PruningConfig("movement")
        tracker.begin(model)
        for weight in kprune.masked_weights(model):
            weight.variable.assign(weight.variable * np.random.default_rng(weight.size).normal(1, 0.1, weight.shape))
        tracker.after_step(model)
        for sparsity in (0.3, 0.6):
            expected = config.masks(model, sparsity, trackers=tracker)
            assert kprune.updates.update_on_device(model, config, sparsity, tracker=tracker) is not None
            for path, mask in current_masks(model).items():
                np.testing.assert_array_equal(mask, expected[path])
        check_shards(model, parts=2 if name == "model_parallel" else 1)
        assert sorted(traces) == ["_count", "_given", "_look", "_written"]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.usefixtures("traces")
def test_lamp_is_left_to_the_host_where_weights_lie_in_parts(name):
    with distribute(name):
        model = network()
        kprune.mask(model)
        config = PruningConfig("lamp")
        expected = config.masks(model, 0.6)
        kept = kprune.updates.update_on_device(model, config, 0.6)
        assert (kept is None) == (name == "model_parallel")
        if kept:
            for path, mask in current_masks(model).items():
                np.testing.assert_array_equal(mask, expected[path])


def fit(model, callback):
    """A fit of 54 steps; how often its step had been traced at the end of each."""
    steps = TracedSteps(model)
    model.fit(*data(), batch_size=BATCH, epochs=9, shuffle=False, verbose=0, callbacks=[callback, steps.count])
    assert len(steps.counts) == 9 * STEPS == 54
    return steps.counts


def test_50_updates_on_the_devices_compile_nothing_anew(traces):
    with distribute("model_parallel"):
        model = network()
        assert set(fit(model, GradualPruning(FIFTY, pattern="channel"))) == {1}
        assert sorted(traces) == ["_count", "_look", "_written"]
        assert kprune.summary(model).sparsity > 0.5


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_50_updates_by_the_host_compile_nothing_anew(name):
    with distribute(name):
        model = network()
        assert set(fit(model, GradualPruning(FIFTY))) == {1}
        assert kprune.summary(model).sparsity == pytest.approx(0.7, abs=0.01)
