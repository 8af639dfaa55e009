"""Every callback on four devices, data and model parallel, against the same training on one."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from contract_rows import CALLBACK_ROWS
from helpers import EachBatch, assert_zero, halve
from small import BATCH, DISTRIBUTIONS, data, distribute, network

import kprune
from kprune.lottery.rewind import snapshot
from kprune.masks import current_masks
from kprune.runtime.distribution import to_numpy
from kprune.runtime.stand_in import StandIn

CLOSE = dict(rtol=2e-4, atol=1e-6)  # sums of four parts, and of all at once


@dataclass
class Outcome:
    """What a training leaves behind."""

    masks: dict
    model: dict
    state: dict
    history: dict


def train(name, steps, distribution=None, check=lambda model: None):
    row = CALLBACK_ROWS[name]
    with distribute(distribution):
        model = network(steps_per_execution=steps)
        if not row.prunes:
            kprune.mask(model)
            halve(model)
        callback, checks = row.make(0.7), EachBatch(check)
        fitting = dict(batch_size=BATCH, epochs=row.epochs, shuffle=False, verbose=0)
        fitted = model.fit(*data(), callbacks=[callback, checks], **fitting)
        assert checks.calls > 0
        check(model)
        assert row.latent or assert_zero(model) is None
        state = callback.get_state() if hasattr(callback, "get_state") else {}
        return Outcome(current_masks(model), snapshot(model).to_arrays(), state, fitted.history)


@functools.cache
def on_one_device(name, steps):
    return train(name, steps)


def check_shards(model, parts):
    """Each device holds the mask of just those entries of a weight that it holds, and zeros where that says pruned."""
    for weight in kprune.masked_weights(model):
        mask, value, whole = weight.mask.value, weight.variable.value, to_numpy(weight.mask)
        assert mask.sharding.is_equivalent_to(value.sharding, value.ndim), weight.path
        assert len(value.sharding.device_set) == 4
        assert len({str(shard.index) for shard in value.addressable_shards}) == parts, weight.path
        for part, shard in zip(mask.addressable_shards, value.addressable_shards, strict=True):
            assert (part.device, str(part.index)) == (shard.device, str(shard.index))
            np.testing.assert_array_equal(part.data, whole[part.index])
            assert weight.store == "latent" or not np.any(np.array(shard.data)[~np.array(part.data)])
    if isinstance(model.optimizer, StandIn):
        for weight in kprune.masked_weights(model):
            first, value = model.optimizer.parameters(weight.variable)[0].value, weight.variable.value
            assert first.sharding.is_equivalent_to(value.sharding, value.ndim), weight.path


def assert_close(one, other):
    """The same arrays, those of floats but for rounding."""
    assert list(one) == list(other)
    for name, array in one.items():
        kind = np.asarray(array).dtype.kind
        compare = (
            functools.partial(np.testing.assert_allclose, **CLOSE) if kind == "f" else np.testing.assert_array_equal
        )
        compare(array, other[name], err_msg=name)


@pytest.mark.private_api
@pytest.mark.parametrize("name", kprune.callbacks.__all__)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_callback(distribution, name):
    for steps in (1, 3):
        expected = on_one_device(name, steps)
        check = functools.partial(check_shards, parts=2 if distribution == "model_parallel" else 1)
        outcome = train(name, steps, distribution, check)
        assert_close(expected.masks, outcome.masks)
        assert_close(expected.model, outcome.model)
        assert_close(expected.history, outcome.history)
        # "progress" is JSON of what is in the history, too.
        assert_close(*({k: v for k, v in o.state.items() if k != "progress"} for o in (expected, outcome)))


def test_a_backup_goes_from_some_devices_to_others(tmp_path):
    def fit(distribution, epochs):
        with distribute(distribution):
            model = network()
            schedule = kprune.schedules.PolynomialDecay(0.0, 0.7, 2, 20, frequency=3)
            backup = kprune.callbacks.BackupAndRestore(tmp_path / "backup.npz", delete=False)
            callbacks = [kprune.callbacks.GradualPruning(schedule), backup]
            batches = kprune.RewindableBatches(*data(), BATCH, model, seed=2)
            fitted = model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
            return fitted.epoch, {**snapshot(model).to_arrays(), **current_masks(model)}

    assert [fit(where, 1 + i)[0] for i, where in enumerate(["model_parallel", None, "data_parallel"])] == [
        [0],
        [1],
        [2],
    ]
    last, moved = fit("model_parallel", 4)
    (tmp_path / "backup.npz").unlink()
    first, whole = fit(None, 4)
    assert (last, first) == ([3], [0, 1, 2, 3])
    assert_close(whole, moved)
