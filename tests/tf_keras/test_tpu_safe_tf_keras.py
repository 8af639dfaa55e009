"""Nothing that kprune does in a train step of tf_keras keeps it from a TPU; see ../test_tpu_safe.py."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers import CHEAP, assert_zero
from steps import TracedSteps, compiled, conv_net, images, violations
from test_contract import CALLBACK_ROWS
from tpu_strategy import TPUStrategyOnCPU

import kprune
from kprune.criteria import synflow_tf_keras

ROWS = {name: row for name, row in CALLBACK_ROWS.items() if name != "BackupAndRestore"}  # which refuses tf_keras models


def masked():
    return compiled(kprune.mask(conv_net(library=tf_keras)).model, tf_keras, **CHEAP)


@pytest.mark.parametrize("name", ROWS)
def test_the_step_under_a_callback_is_safe_and_traced_once(name):
    row, model = ROWS[name], masked()
    steps = TracedSteps(model)
    callbacks = [row.make(0.8), steps.count]
    model.fit(*images(48), batch_size=8, epochs=row.epochs, verbose=0, callbacks=callbacks)
    assert steps.counts == steps.counts[:1] * 6 * row.epochs
    assert bool(kprune.summary(model).sparsity) == row.prunes
    assert violations(steps.lowered()) == []


def test_synflow_scores_in_float64_on_the_hosts_cpu_also_under_a_strategy(monkeypatch):
    twins, clone = [], synflow_tf_keras.clone_without_wrappers

    def spy(*arguments):
        made = clone(*arguments)
        twins.extend(made[1].values())
        return made

    monkeypatch.setattr(synflow_tf_keras, "clone_without_wrappers", spy)
    expected = masked()
    strategy = TPUStrategyOnCPU()
    with strategy.scope():
        model = masked()
        model.set_weights(expected.get_weights())
        masks = kprune.prune(model, "synflow", 0.8, rounds=3, verbose=False)
    assert isinstance(model.weights[0], tf.distribute.DistributedValues)
    assert len(twins) == 7 and not any(isinstance(v, tf.distribute.DistributedValues) for v in twins)
    assert {(v.device, v.dtype) for v in twins} == {("/job:localhost/replica:0/task:0/device:CPU:0", tf.float64)}
    twins.clear()
    alone = kprune.prune(expected, "synflow", 0.8, rounds=3, verbose=False)
    for one, other in zip(alone.values(), masks.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fit_under_a_tpu_strategy_prunes_on_schedule():
    strategy = TPUStrategyOnCPU()
    with strategy.scope():
        model = masked()
    batches = tf.data.Dataset.from_tensor_slices(images(48)).batch(8, drop_remainder=True)
    model.fit(batches, verbose=0, callbacks=[CALLBACK_ROWS["GradualPruning"].make(0.8)])
    assert len(strategy.traced) == 1
    assert kprune.summary(model).sparsity == pytest.approx(0.8, abs=1e-3)
    assert_zero(model)
