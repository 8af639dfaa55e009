"""ACDC: dense and sparse phases in turn, and what is left of the weights at each switch."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, fit, momentum_mlp
from keras import layers
from kprune.callbacks import ACDC, BackupAndRestore, GradualPruning

import kprune
from kprune.util.ranking import zeros_for

KERNEL = np.array([[6.0, -5.0, 4.0], [3.0, 2.0, 1.0]], "float32")


class Watch(keras.callbacks.Callback):
    """The first kernel, its mask and the optimizer's first slot after each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        weight = kprune.masked_weights(self.model)[0]
        momentums = getattr(self.model.optimizer, "momentums", [])
        self.seen.append((weight.value(), weight.kept(), np.array(momentums[0].value) if momentums else None))


def test_steps_by_hand():
    """x = (1, 1) and targets that make each gradient 1: every kept weight loses the learning rate and its momentum."""
    dense = layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.set_weights([KERNEL])

    def total(y, outputs):
        return keras.ops.sum(outputs, axis=-1)

    model.compile(keras.optimizers.SGD(0.25, momentum=0.5), total, **CHEAP)
    watch = Watch()
    callback = ACDC(0.5, begin=1, end=3, cycles=1)
    model.fit(np.ones((4, 2)), np.zeros((4, 3)), batch_size=1, verbose=0, callbacks=[callback, watch])
    assert callback.switches == (1, 2, 3)
    values, masks, slots = zip(*watch.seen, strict=True)
    top = np.array([[1, 1, 1], [0, 0, 0]], bool)
    # Steps of the upper row: 1/4, then 1/4 + half of the last one ...; its momentum passes both switches.
    upper = KERNEL[0] - np.cumsum([0.25, 0.375, 0.4375, 0.46875])[:, None]
    np.testing.assert_array_equal(masks, [top, np.ones((2, 3)), top, top])
    np.testing.assert_array_equal([value[0] for value in values], upper)
    # The lower one is pruned, trains in step 3 only, from 0 and without momentum, and is pruned again.
    np.testing.assert_array_equal([value[1] for value in values], np.zeros((4, 3)))
    np.testing.assert_array_equal([slot[1] for slot in slots], np.zeros((4, 3)))


SIZE = 66


def test_sparsity_is_exact_in_each_phase_and_all_weights_train_in_the_others():
    model, watch, counts = momentum_mlp(), Watch(), []

    def count(batch, logs):
        masks = [w.kept() for w in kprune.masked_weights(model)]
        counts.append(sum(int((~mask).sum()) for mask in masks))

    callback = ACDC(0.8, begin=0.25, end=9, cycles=3)
    history = fit(model, callback, watch, keras.callbacks.LambdaCallback(on_train_batch_end=count))
    assert callback.switches == (3, 4, 5, 6, 7, 8, 9)
    zeros = zeros_for(SIZE, 0.8)
    assert counts == [0, 0, zeros, 0, zeros, 0, zeros, 0, zeros, zeros, zeros, zeros]
    assert history.history["sparsity"] == pytest.approx([0.0, 0.0, zeros / SIZE])
    values = [value for value, _, _ in watch.seen]
    assert np.all(values[4][watch.seen[4][1]] != 0) and not np.any(values[4][~watch.seen[4][1]])
    assert np.count_nonzero(values[1]) == 48
    assert kprune.masks.moved_weights(model) == []


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("criterion", "killed_at"), [("magnitude", 1), ("movement", 2)])
def test_it_goes_on_from_a_backup_to_the_bit(criterion, killed_at, tmp_path):
    def callback():
        return ACDC(0.7, criterion, begin=2, end=10, cycles=2)  # switches at 2, 4, 6, 8, 10 of 12; epochs of 4

    whole, killed, resumed = momentum_mlp(), momentum_mlp(), momentum_mlp(seed=7)
    fit(whole, callback())
    with pytest.raises(KeyboardInterrupt):
        fit(killed, callback(), BackupAndRestore(tmp_path / "b.npz"), Stop(killed_at))
    fit(resumed, callback(), BackupAndRestore(tmp_path / "b.npz"))
    for a, b in zip(kprune.masked_weights(whole), kprune.masked_weights(resumed), strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept())
        np.testing.assert_array_equal(a.value(), b.value())


def test_a_fit_that_ends_too_early_says_what_it_leaves(caplog):
    def stops_at(step):
        def stop(batch, logs):
            model.stop_training = batch + 1 == step

        return keras.callbacks.LambdaCallback(on_train_batch_end=stop)

    for step, says in ((1, "the final phases never ran"), (2, "the network is dense")):
        model = momentum_mlp()
        fit(model, ACDC(0.5, begin=1, end=4, cycles=1), stops_at(step), epochs=1)
        assert f"ended at step {step}, before the last switch at step 4, so {says}" in caplog.text


def test_another_callback_that_prunes_is_refused():
    model = momentum_mlp()
    with pytest.raises(ValueError, match=r"ACDC brings pruned weights back.*Received: other=GradualPruning"):
        fit(model, ACDC(0.5, begin=1, end=4, cycles=1), GradualPruning(0.9))
    assert kprune.masked_weights(model) == []


@pytest.mark.parametrize(
    "wrong",
    [
        dict(sparsity=1.0),
        dict(sparsity=None),
        dict(criterion="magnitud"),
        dict(criterion="snip"),
        dict(begin=-1),
        dict(end=1.5),
        dict(cycles=0),
        dict(optimizer="adam"),
        dict(scoop="erk"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        ACDC(**wrong)


def test_fewer_steps_than_phases_are_refused_before_anything_changes():
    model = momentum_mlp()
    with pytest.raises(ValueError, match=r"at least 16 steps.*`begin` \(step 1\) and `end` \(step 10\).*cycles=8$"):
        fit(model, ACDC(0.5))
    assert kprune.masked_weights(model) == []
