"""DropBack: what moves, what goes back to its initial value, and when that has faded to 0."""

import json

import keras
import numpy as np
import pytest
from helpers import CHEAP, fit, momentum_mlp
from keras import layers
from kprune.callbacks import BackupAndRestore, DropBack, GradualPruning

import kprune
from kprune.util.ranking import zeros_for

KERNEL = np.array([[4.0, -4.0, 2.0], [-2.0, 1.0, 1.0]], "float32")
# The gradients of two steps: by the inputs of each row, all outputs alike, but for the weights of `pulled`.
PULLS = np.array([[[8.0, 4.0, 2.0], [1.0, 0.0, 0.0]], [[-8.0, 1.0, 3.0], [0.0, 0.0, 16.0]]], "float32")


class Watch(keras.callbacks.Callback):
    """The kernels, masks and momentums of kernels after each batch."""

    def __init__(self):
        super().__init__()
        self.values, self.masks, self.slots = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        weights = kprune.masked_weights(self.model)
        self.values.append([weight.value() for weight in weights])
        self.masks.append([weight.kept() for weight in weights])
        momentums = getattr(self.model.optimizer, "momentums", [])
        self.slots.append([np.array(slot.value) for slot in momentums if len(slot.shape) == 2])


def pulled(*callbacks, **options):
    """A kernel of 2x3 whose gradient in step t is PULLS[t], trained by SGD(1/8)."""
    dense = layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.set_weights([KERNEL])

    def loss(pulls, outputs):
        return keras.ops.sum(pulls * outputs, axis=-1)

    model.compile(keras.optimizers.SGD(0.125), loss, **CHEAP)
    # A batch is two rows, (1, 0) and (0, 1), whose targets are the rows of the gradient times two, as losses are means.
    x, y = np.tile(np.eye(2, dtype="float32"), (2, 1)), 2 * PULLS.reshape(4, 3)
    watch = Watch()
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=[*callbacks, watch], **options)
    return model, watch


def test_two_steps_by_hand():
    callback = DropBack(4 / 6)
    model, watch = pulled(callback)
    # Step 1 moves by 1, 1/2, 1/4, 1/8, 0 and 0: the first two stay.
    first = [[3.0, -4.5, 2.0], [-2.0, 1.0, 1.0]]
    # Step 2 takes the first back to where it was, the second to -4.625, and moves the last by 2, the third by 3/8.
    second = [[4.0, -4.625, 2.0], [-2.0, 1.0, -1.0]]
    np.testing.assert_array_equal([kernel for (kernel,) in watch.values], [first, second])
    np.testing.assert_array_equal(callback.initial.arrays, [KERNEL])
    assert all(mask.all() for (mask,) in watch.masks) and kprune.summary(model).sparsity == 0


def test_two_steps_with_decay_by_hand():
    """What is untracked is compared with what it was reset to, so decay itself moves nothing."""
    _, watch = pulled(DropBack(4 / 6, decay=0.5))
    half = KERNEL / 2
    first = [[3.0, -4.5, half[0, 2]], half[1]]
    np.testing.assert_array_equal(watch.values[0][0][0], first[0])
    np.testing.assert_array_equal(watch.values[0][0][1], first[1])
    # From halves: the first is at 4, 2 off; the second at -4.625, 2.625 off; the third 3/8, the last 2 off: a tie,
    # which the lower index wins. All others fall to a quarter, but the fit's end makes them 0.
    np.testing.assert_array_equal(watch.values[1][0], [[4.0, -4.625, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(watch.masks[1][0], [[True, True, False], [False, False, False]])


SIZE = 66


def test_only_k_weights_have_moved_after_each_step():
    model, watch, callback = momentum_mlp(), Watch(), DropBack(0.8)
    history = fit(model, callback, watch)
    first, k = callback.initial.arrays, SIZE - zeros_for(SIZE, 0.8)
    for values, slots in zip(watch.values, watch.slots, strict=True):
        moved = [value != start for value, start in zip(values, first, strict=True)]
        assert sum(int(one.sum()) for one in moved) == k
        assert all(np.array_equal(slot != 0, one) for slot, one in zip(slots, moved, strict=True))
    assert len(watch.values) == 12 and callback.closes is None
    assert "sparsity" not in history.history


def test_the_initial_values_fade_and_the_untracked_are_masked():
    model, watch, callback = momentum_mlp(), Watch(), DropBack(0.8, decay=0.05)
    history = fit(model, callback, watch)
    assert callback.closes == 6  # 0.05^6 is below 2^-24, 0.05^5 is not
    zeros, first = zeros_for(SIZE, 0.8), callback.initial.arrays
    for step, (values, masks) in enumerate(zip(watch.values, watch.masks, strict=True), 1):
        left = np.float32(0.05**step if step < 6 else 0)
        reset = [value == start * left for value, start in zip(values, first, strict=True)]
        assert sum(int(one.sum()) for one in reset) == zeros
        if step >= 6:
            assert all(np.array_equal(~mask, one) for mask, one in zip(masks, reset, strict=True))
        else:
            assert all(mask.all() for mask in masks)
    assert history.history["sparsity"] == pytest.approx([0, zeros / SIZE, zeros / SIZE])
    assert kprune.masks.moved_weights(model) == []
    assert all(not slot[~mask].any() for slot, mask in zip(watch.slots[-1], watch.masks[-1], strict=True))


def test_what_is_pruned_already_counts_and_stays():
    model = momentum_mlp()
    masks = kprune.prune(model, "random", 0.5)
    callback = DropBack(0.8)
    fit(model, callback, epochs=1)
    assert kprune.masks.moved_weights(model) == [] and kprune.summary(model).sparsity == 0.5
    pairs = list(zip(kprune.masked_weights(model), callback.initial.arrays, strict=True))
    assert sum(int((weight.value() != start).sum()) for weight, start in pairs) == SIZE - zeros_for(SIZE, 0.8)
    assert all(np.array_equal(weight.kept(), masks[weight.path]) for weight, _ in pairs)


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("decay", "killed_at"), [(1.0, 1), (0.05, 1), (0.05, 2)])
def test_it_goes_on_from_a_backup_to_the_bit(decay, killed_at, tmp_path):
    whole, killed, resumed = momentum_mlp(), momentum_mlp(), momentum_mlp(seed=7)
    fit(whole, DropBack(0.7, decay=decay))
    with pytest.raises(KeyboardInterrupt):
        fit(killed, DropBack(0.7, decay=decay), BackupAndRestore(tmp_path / "b.npz"), Stop(killed_at))
    fit(resumed, DropBack(0.7, decay=decay), BackupAndRestore(tmp_path / "b.npz"))
    for a, b in zip(kprune.masked_weights(whole), kprune.masked_weights(resumed), strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept())
        np.testing.assert_array_equal(a.value(), b.value())


def test_a_fit_that_is_too_short_says_what_is_left(caplog):
    model = momentum_mlp()
    fit(model, DropBack(0.5, decay=0.9), epochs=1)
    # 0.9^4 = 0.6561; 0.0156^4 is below 2^-24
    assert "training ends at step 4, when the initial values are still multiplied by 0.66" in caplog.text
    assert "Lower `decay` to at most 0.015625" in caplog.text
    assert kprune.summary(model).sparsity == 0.5
    model = momentum_mlp()
    stop = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", True))
    fit(model, DropBack(0.5, decay=0.01), stop, epochs=1)
    assert "training ended at step 1, but the initial values fade out only at step 4" in caplog.text
    assert kprune.summary(model).sparsity == 0


def test_another_callback_that_prunes_is_refused():
    model = momentum_mlp()
    with pytest.raises(ValueError, match=r"DropBack resets weights.*Received: other=GradualPruning"):
        fit(model, DropBack(0.5), GradualPruning(0.9))
    with pytest.raises(ValueError, match=r"DropBack resets weights.*Received: other=DropBack"):
        fit(model, DropBack(0.5), DropBack(0.6))
    assert kprune.masked_weights(model) == []


def test_it_is_written_down_and_made_again():
    config = json.loads(json.dumps(DropBack({"hidden": 0.5}, decay=0.9, scope="erk", pattern="2:4").get_config()))
    assert config == {"sparsity": {"hidden": 0.5}, "decay": 0.9, "scope": "erk", "pattern": "2:4"}
    assert DropBack.from_config(config).get_config() == config


@pytest.mark.parametrize(
    "wrong",
    [
        dict(sparsity=1.0),
        dict(sparsity=None),
        dict(decay=0.0),
        dict(decay=1.1),
        dict(decay="1"),
        dict(scope="globl"),
        dict(pattern="2:x"),
        dict(optimizer="adam"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        DropBack(**wrong)
