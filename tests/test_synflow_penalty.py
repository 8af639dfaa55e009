"""SynFlow's R as a term of the loss: its gradient, what it does to the flow, and what is left of it."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, fit, momentum_mlp
from keras import layers
from kprune.callbacks import ADMM, BackupAndRestore, GradualPruning, SynFlowPenalty
from test_admm import Stop

import kprune

FIRST = np.array([[2.0, -1.0, 0.0], [1.0, 3.0, -2.0]], "float32")
LAST = np.array([[1.0], [-2.0], [0.5]], "float32")


def test_two_steps_by_hand():
    """R = sum of |first| |last|; the loss has no gradient, so SGD(1/2) moves w by half of 0.1 * sign(w) dR/d|w| / R."""
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, use_bias=False, name="a"), layers.Dense(1, use_bias=False, name="b")]
    )
    model.set_weights([FIRST, LAST])
    model.compile(keras.optimizers.SGD(0.5), "mse", **CHEAP)
    seen, callback = [], SynFlowPenalty(0.1, frequency=1)
    watch = EachBatch(lambda model: seen.append(model.get_weights()[:2]))
    model.fit(np.zeros((2, 2)), np.zeros((2, 1)), batch_size=1, verbose=0, callbacks=[watch, callback])
    first, last = FIRST.astype("float64"), LAST.astype("float64")
    for a, b in seen:
        flow = (np.abs(first) @ np.abs(last)).sum()
        by_first, by_last = np.sign(first) * np.abs(last).T, np.sign(last) * np.abs(first).sum(0)[:, None]
        first, last = first - 0.05 * by_first / flow, last - 0.05 * by_last / flow
        np.testing.assert_allclose(a, first, rtol=1e-6)
        np.testing.assert_allclose(b, last, rtol=1e-6)
    # Of the second step's end, when the third gradient was due.
    assert callback.log_flow == pytest.approx(np.log((np.abs(first) @ np.abs(last)).sum()))


def test_the_flow_falls_more_than_without_it_and_nothing_is_left():
    flows = []
    for strength in (1e-9, 0.1):
        model, callback = momentum_mlp(kernel_regularizer="l2"), SynFlowPenalty(strength, frequency=2)
        before, plain = [v.regularizer for v in model.trainable_variables], len(model.variables)
        fit(model, callback, epochs=6)
        flows.append(callback.log_flow)
        assert len(model.losses) == 1 and len(model.variables) == plain + 2  # the masks
        kprune.strip(model)
        assert [v.regularizer for v in model.trainable_variables] == before
    assert flows[1] < flows[0] - 0.4


def test_it_prunes_beside_another_and_keeps_the_zeros():
    model = momentum_mlp()
    fit(model, SynFlowPenalty(0.01, frequency=2), GradualPruning(0.5), epochs=6)
    assert kprune.summary(model).zeros == 33 and kprune.masks.moved_weights(model) == []


def test_it_goes_on_from_a_backup_to_the_bit(tmp_path):
    def callbacks(*more):
        return [SynFlowPenalty(0.01, frequency=5), BackupAndRestore(tmp_path / "b.npz"), *more]

    whole, killed, resumed = momentum_mlp(), momentum_mlp(), momentum_mlp(seed=7)
    for model in (whole, killed, resumed):
        kprune.mask(model)
    fit(whole, callbacks()[0])
    with pytest.raises(KeyboardInterrupt):
        fit(killed, *callbacks(Stop(2)))
    fit(resumed, *callbacks())
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_it_cannot_do_is_refused():
    for other in (ADMM(0.5), SynFlowPenalty()):
        model = momentum_mlp()
        before = model.get_weights()
        with pytest.raises(ValueError, match=r"Received: other=\w+$"):
            fit(model, SynFlowPenalty(), other)
        for one, value in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, value)
    model = momentum_mlp()
    model.set_weights([np.zeros_like(value) for value in model.get_weights()])
    with pytest.raises(ValueError, match=r"synaptic flow \(0\.0\).*Received: model="):
        fit(model, SynFlowPenalty())
    assert model.losses == [] and kprune.masked_weights(model) == []
    for wrong in (dict(strength=0), dict(strength=np.inf), dict(frequency=0)):
        with pytest.raises(ValueError, match="Received: "):
            SynFlowPenalty(**wrong)
