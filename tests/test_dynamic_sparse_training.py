"""DynamicSparseTraining in whole fits: when weights move, how many, and what stays as it is."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, assert_zero, built, data, mlp
from kprune.callbacks import BackupAndRestore, DynamicSparseTraining
from marks import with_slow
from test_prune import zeros

import kprune
from kprune.growth import GradientMomentum
from kprune.schedules import Linear
from kprune.util.ranking import zeros_for


class Watch(keras.callbacks.Callback):
    """The masks after each batch, and what the optimizer keeps of entries that came back with it."""

    def __init__(self):
        super().__init__()
        self.masks, self.zeros = [], []

    def on_train_batch_end(self, batch, logs=None):
        weights = kprune.masked_weights(self.model)
        kept = [w.kept() for w in weights]
        if self.masks:
            momentums = {v.path: m for v, m in zip(self.model.trainable_variables, self.slots(), strict=True)}
            for w, new, old in zip(weights, kept, self.masks[-1], strict=True):
                assert not np.any(momentums[w.variable.path][new & ~old]) and not np.any(w.value()[new & ~old])
        self.masks.append(kept)
        self.zeros.append(zeros(self.model))
        assert_zero(self.model)

    def slots(self):
        return [np.asarray(m) for m in self.model.optimizer.momentums]

    def moved(self):
        """The batches, from 1, at whose end masks changed."""
        pairs = enumerate(zip(self.masks, self.masks[1:], strict=False), 2)
        return [i for i, (a, b) in pairs if any(np.any(x != y) for x, y in zip(a, b, strict=True))]


def compiled(**arguments):
    keras.utils.set_random_seed(1)
    model = mlp()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **{**CHEAP, **arguments})
    return built(model)


def fit(model, *callbacks, epochs=1, **arguments):
    x, y = data(n=96)
    arguments = {"batch_size": 8, "verbose": 0, "shuffle": False, **arguments}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **arguments)


SIZE = 276


@pytest.mark.parametrize("method", ["set", "rigl", "snfs"])
def test_weights_move_at_constant_density_until_stop(method):
    model, watch = compiled(), Watch()
    callback = DynamicSparseTraining(method, 0.8, frequency=2, stop=0.75, data=data(n=32), seed=4)
    history = fit(model, callback, watch, epochs=2)  # 24 steps, the last with an update is 18
    assert set(watch.zeros) == {zeros_for(SIZE, 0.8)}
    assert watch.moved()[0] == 2 and max(watch.moved()) <= 18
    assert len(watch.moved()) == 9 or method != "set"  # the others may choose the same places again
    assert callback.updates == 9
    assert history.history["sparsity"] == pytest.approx([zeros_for(SIZE, 0.8) / SIZE] * 2)


def test_each_weight_drops_its_share():
    model, watch = compiled(), Watch()
    fit(model, DynamicSparseTraining("set", 0.5, scope="layerwise", share=0.25, frequency=6, stop=6), watch)
    before, after = watch.masks[4], watch.masks[5]
    assert watch.moved() in ([6], [])
    for old, new in zip(before, after, strict=True):
        gone = int((old & ~new).sum())
        assert gone == int((new & ~old).sum()) <= int(0.25 * old.sum())
    assert any(np.any(old != new) for old, new in zip(before, after, strict=True))


def test_constant_fan_in():
    """SRigL's (arXiv:2305.02299): weights move within their output, or as many from each."""
    model, watch = compiled(), Watch()
    fit(model, DynamicSparseTraining("set", 0.5, scope="layerwise", pattern="fan_in", frequency=3, stop=9), watch)
    assert watch.moved() == [3, 6, 9] and len(watch.masks) == 12
    for masks in watch.masks:
        assert [set(mask.sum(0).tolist()) for mask in masks] == [{4}, {6}, {6}]


def test_a_schedule_makes_it_sparser_as_weights_move():
    model, watch = compiled(), Watch()
    schedule = Linear(0.5, 0.9, 0, 8, frequency=2)
    fit(model, DynamicSparseTraining("set", schedule, frequency=4, stop=12), watch)
    expected = [zeros_for(SIZE, sparsity) for sparsity in [0.5] * 3 + [0.7] * 4 + [0.9] * 5]
    assert watch.zeros == expected


@pytest.mark.parametrize(("first", "last"), [(0.9, 0.6), (0.5, 0.8)])
def test_from_sparse_to_dense_or_the_other_way(first, last):
    """Three updates, a third of the way each; what has grown denser keeps what it has, but for what it drops."""
    model, watch = compiled(), Watch()
    callback = DynamicSparseTraining(
        "rigl", last, initial_sparsity=first, scope="uniform", share=0.01, frequency=4, stop=13, data=data(n=32)
    )
    fit(model, callback, watch, epochs=2)
    expected = [round(first + (last - first) * i / 3, 12) for i in range(4)]
    counts = [sum(zeros_for(w.size, sparsity) for w in kprune.masked_weights(model)) for sparsity in expected]
    assert watch.moved() == [4, 8, 12]
    np.testing.assert_allclose([watch.zeros[i] for i in (0, 3, 7, 11)], counts, atol=2)  # the scope rounds each weight
    assert watch.zeros[11] == watch.zeros[-1]
    if first > last:
        for one, other in zip(watch.masks, watch.masks[1:], strict=False):
            assert all(not np.any(old & ~new) for old, new in zip(one, other, strict=True))
    again = compiled()
    with pytest.raises(ValueError, match=r"cannot be combined with a schedule.*Received: initial_sparsity=0\.5"):
        fit(again, DynamicSparseTraining("set", Linear(0.5, 0.9, 0, 8), initial_sparsity=0.5))


def test_a_network_that_is_sparse_already_keeps_its_masks():
    model = compiled()
    masks = kprune.prune(model, "magnitude", 0.8, verbose=0)
    callback = DynamicSparseTraining("set", 0.8, frequency=100, stop=200)
    fit(model, callback)
    for w in kprune.masked_weights(model):
        np.testing.assert_array_equal(w.kept(), masks[w.path])


def test_a_fit_without_an_update_says_so(caplog):
    fit(compiled(), DynamicSparseTraining("set", 0.8))  # frequency=100
    assert "because the first update was due at step 100, but updates ended at step 9" in caplog.text


@pytest.mark.parametrize("method", with_slow(["snfs"], ["set", "rigl"]))
def test_it_goes_on_from_a_backup_to_the_bit(method, tmp_path):
    def callback():
        options = {"frequency": 5, "gradient_frequency": 3, "stop": 0.9, "seed": 2}
        return DynamicSparseTraining(method, 0.7, data=data(n=32), **options)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, resumed = compiled(), compiled()
    fit(whole, callback(), epochs=4)
    backup = tmp_path / "backup.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(resumed, callback(), BackupAndRestore(backup), Stop(), epochs=4)
    resumed = compiled()
    fit(resumed, callback(), BackupAndRestore(backup), epochs=4)
    for a, b in zip(kprune.masked_weights(whole), kprune.masked_weights(resumed), strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept())
        np.testing.assert_array_equal(a.value(), b.value())


def test_gradients_of_snfs_are_noted_every_so_many_steps_and_at_updates(monkeypatch):
    model, steps = compiled(), []
    note = GradientMomentum.after_step

    def noted(self, model):
        steps.append(int(model.optimizer.iterations))
        note(self, model)

    monkeypatch.setattr(GradientMomentum, "after_step", noted)
    sample = iter([data(n=32)])  # is read once
    callback = DynamicSparseTraining("snfs", 0.8, frequency=4, gradient_frequency=3, stop=8, data=sample)
    fit(model, callback)
    assert steps == [3, 4, 6, 8] and callback.updates == 2
    fit(model, callback)  # a fit of its own, which begins at step 12
    assert steps[4:] == [15, 16, 18, 20]


@pytest.mark.parametrize(
    "wrong",
    [
        dict(method="sett"),
        dict(method="rigl"),
        dict(method="snfs"),
        dict(method=kprune.criteria.movement),
        dict(gradient_frequency=0),
        dict(sparsity=1.0),
        dict(sparsity=None),
        dict(share=0.0),
        dict(share=1),
        dict(frequency=0),
        dict(stop=1.5),
        dict(stop=-1),
        dict(stop=None),
        dict(pattern="3:2"),
        dict(scope="erkk"),
        dict(seed=-1),
        dict(batches=0),
        dict(optimizer="adam"),
    ],
    ids=lambda wrong: "-".join(f"{key}={getattr(value, '__name__', value)}" for key, value in wrong.items()),
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        DynamicSparseTraining(**wrong)


def test_a_share_of_steps_that_are_not_known():
    model = compiled()
    x, y = data(n=96)
    batches = ((x[i : i + 8], y[i : i + 8]) for i in range(0, 96, 8))
    with pytest.raises(ValueError, match=r"`stop` is a fraction of the total training steps.*Received: stop=0\.75$"):
        model.fit(batches, verbose=0, callbacks=[DynamicSparseTraining("set", 0.5)])
    assert kprune.masked_weights(model) == []
