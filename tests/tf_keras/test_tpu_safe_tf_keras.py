"""Nothing that kprune does in a train step of tf_keras keeps it from a TPU; see ../test_tpu_safe.py."""

import pytest
import tensorflow as tf
import tf_keras
from contract_rows import CALLBACK_ROWS, KERAS_3_ONLY
from helpers import CHEAP, assert_zero
from steps import TracedSteps, compiled, conv_net, images, violations
from tf_keras import layers
from tpu_strategy import TPUStrategyOnCPU

import kprune

ROWS = {name: row for name, row in CALLBACK_ROWS.items() if name not in KERAS_3_ONLY}


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


class Watched(layers.Dense):
    """Notes where it computes in float64, where its kernel lies then, and whether that is one of several replicas."""

    seen = []  # noqa: RUF012  (of all copies that are made of the layer)

    def get_prunable_weights(self):
        return [self.kernel]

    def call(self, x):
        if x.dtype == tf.float64:
            replicated = isinstance(self.kernel, tf.distribute.DistributedValues)
            self.seen.append((x.device, self.kernel.device.rpartition("/")[2], replicated))
        return super().call(x)


def test_synflow_scores_in_float64_on_the_hosts_cpu_also_under_a_strategy():
    with TPUStrategyOnCPU().scope():
        model = kprune.mask(conv_net(Watched(6, "relu"), library=tf_keras)).model
        weights = [weight.variable for weight in kprune.masked_weights(model)]
        assert all(isinstance(v, tf.distribute.DistributedValues) for v in weights)
        kprune.prune(model, "synflow", 0.8, rounds=3, verbose=False)
    assert set(Watched.seen) == {("/device:CPU:0", "device:CPU:0", False)}


def test_a_fit_under_a_tpu_strategy_prunes_on_schedule():
    strategy = TPUStrategyOnCPU()
    with strategy.scope():
        model = masked()
    batches = tf.data.Dataset.from_tensor_slices(images(48)).batch(8, drop_remainder=True)
    model.fit(batches, verbose=0, callbacks=[CALLBACK_ROWS["GradualPruning"].make(0.8)])
    assert len(strategy.traced) == 1
    assert kprune.summary(model).sparsity == pytest.approx(0.8, abs=1e-3)
    assert_zero(model)
