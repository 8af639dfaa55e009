"""Mask updates by compiled programs, on four devices: masks are those of NumPy, and each part stays where it lies."""

import numpy as np
import pytest
from kprune.callbacks import GradualPruning
from small import BATCH, DISTRIBUTIONS, STEPS, data, distribute, network
from steps import TracedSteps
from test_callbacks_on_devices import check_shards

import kprune
import kprune.masks.types
import kprune.updates
from kprune.config import PruningConfig
from kprune.masks import current_masks


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """As if these four devices were accelerators; programs that are compiled for them are forgotten afterwards."""
    for place in (kprune.updates, kprune.masks.types):
        monkeypatch.setattr(place, "on_host", lambda variables: False)
    kprune.updates._programs.cache_clear()
    yield
    kprune.updates._programs.cache_clear()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2x2", "channel"])
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


def test_a_fit_with_50_updates_compiles_nothing_anew(monkeypatch):
    traces = []
    for name in ("_look", "_count", "_written"):
        function = getattr(kprune.updates, name)
        monkeypatch.setattr(kprune.updates, name, lambda *given, f=function: (traces.append(f), f(*given))[1])
    schedule = kprune.schedules.PolynomialDecay(0.1, 0.7, begin_step=1, end_step=50, frequency=1)
    with distribute("model_parallel"):
        model = network()
        callback = GradualPruning(schedule, "magnitude", pattern="channel")
        steps = TracedSteps(model)
        model.fit(*data(), batch_size=BATCH, epochs=9, shuffle=False, verbose=0, callbacks=[callback, steps.count])
        assert len(traces) == len(set(traces)) == 3
        assert len(steps.counts) == 9 * STEPS and set(steps.counts) == {1}
        assert kprune.summary(model).sparsity > 0.5


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_50_updates_by_the_host_do_not_retrace_the_step(name, monkeypatch):
    monkeypatch.undo()
    schedule = kprune.schedules.PolynomialDecay(0.1, 0.7, begin_step=1, end_step=50, frequency=1)
    with distribute(name):
        model = network()
        steps = TracedSteps(model)
        model.fit(
            *data(),
            batch_size=BATCH,
            epochs=9,
            shuffle=False,
            verbose=0,
            callbacks=[GradualPruning(schedule), steps.count],
        )
        assert len(steps.counts) == 9 * STEPS and set(steps.counts) == {1}
        assert kprune.summary(model).sparsity == pytest.approx(0.7, abs=0.01)
