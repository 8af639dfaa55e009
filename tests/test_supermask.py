"""Supermask: scores that train in the place of weights, what reads them, and what is left when the fit has ended."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, data
from keras import layers
from kprune.callbacks import BackupAndRestore, GradualPruning, Supermask, TakeSnapshot
from steps import TracedSteps

import kprune
from kprune.masks import plain
from kprune.masks.behind import read_scored
from kprune.masks.scoring import hold_weights

WEIGHTS = np.array([[2.0, -1.0, 1.0], [1.0, 2.0, -2.0]], "float32")


class Starting(Supermask):
    """Starts from these scores."""

    scores = np.array([[0.3, 0.1, 0.2], [0.2, 0.4, -0.1]])

    def _first(self, weight, i):
        return self.scores if self.method == "edge_popup" else super()._first(weight, i)


class Watch(keras.callbacks.Callback):
    """What the kernel is after each batch: scores, mask, fixed weights."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        [weight] = kprune.masked_weights(self.model)
        self.seen.append((weight.value(), weight.kept(), np.array(weight.fixed.value), weight.read()))


def small(optimizer="sgd", **options):
    dense = layers.Dense(3, use_bias=False, name="dense", **options)
    model = keras.Sequential([keras.Input((2,)), dense], name="net")
    dense.set_weights([WEIGHTS])
    model.compile(keras.optimizers.SGD(0.15) if optimizer == "sgd" else optimizer, "mse", **CHEAP)
    return model


def step_by_step(callback):
    """Two steps on x = (1, 1), y = 0: of the mean of y_j^2, ds_ij = 2/3 y_j x_i w_ij."""
    model, watch = small(), Watch()
    model.fit(np.ones((2, 2)), np.zeros((2, 3)), batch_size=1, verbose=0, callbacks=[callback, watch])
    np.testing.assert_array_equal(model.get_weights()[0], WEIGHTS)
    for _, mask, fixed, read in watch.seen:
        np.testing.assert_array_equal(fixed, WEIGHTS)
        np.testing.assert_array_equal(read, np.where(mask, WEIGHTS, 0))
    return model, watch.seen


def test_two_steps_of_edge_popup():
    model, seen = step_by_step(Starting("edge_popup", 0.5))
    # Kept at first: 0.4, 0.3 and the first 0.2, so y = (2, 2, 1); then y = (0, -1, -1).
    np.testing.assert_allclose(seen[0][0], [[-0.1, 0.3, 0.1], [0.0, 0.0, 0.1]], atol=1e-6)
    np.testing.assert_array_equal(seen[0][1], [[0, 1, 1], [0, 0, 1]])
    np.testing.assert_allclose(seen[1][0], [[-0.1, 0.2, 0.2], [0.0, 0.2, -0.1]], atol=1e-6)
    np.testing.assert_array_equal(seen[1][1], [[0, 1, 1], [0, 1, 0]])
    [weight] = kprune.masked_weights(model)
    np.testing.assert_array_equal(weight.kept(), seen[1][1])
    assert weight.store == "latent" and weight.fixed is None and kprune.summary(model).zeros == 3
    np.testing.assert_array_equal(model.predict(np.eye(2), verbose=0), np.where(weight.kept(), WEIGHTS, 0))


def test_two_steps_of_bernoulli():
    model, seen = step_by_step(Supermask("bernoulli", seed=3))
    scores = np.zeros((2, 3))
    mask = np.random.default_rng([3, 0]).random((2, 3)) < 0.5
    for step, (value, drawn, _, _) in enumerate(seen, 1):
        slope = 1 / (1 + np.exp(-scores)) / (1 + np.exp(scores))  # 1/4 at 0
        scores = scores - 0.15 * 2 / 3 * (WEIGHTS * mask).sum(0) * WEIGHTS * slope
        np.testing.assert_allclose(value, scores, atol=1e-6)
        mask = np.random.default_rng([3, step]).random((2, 3)) < 1 / (1 + np.exp(-scores))
        np.testing.assert_array_equal(drawn, mask)
    np.testing.assert_array_equal(kprune.masked_weights(model)[0].kept(), scores > 0)


def test_signed_constants():
    model = small()
    model.fit(np.ones((2, 2)), np.zeros((2, 3)), verbose=0, callbacks=[Supermask(signed_constant=True)])
    root = np.sqrt(15 / 6)  # of the mean of the squares
    np.testing.assert_allclose(model.get_weights()[0], np.sign(WEIGHTS) * root, rtol=1e-6)


def test_what_is_read_is_the_weight_to_the_bit():
    scores, fixed = keras.Variable([[1e30, -3.0], [0.1, 0.0]]), keras.Variable([[0.1, 0.2], [-0.3, 1e-30]])
    mask = keras.Variable([[True, False], [True, True]], dtype="bool")
    for slope in ("edge_popup", "bernoulli"):
        read = np.asarray(read_scored(scores.value, mask, fixed, slope))
        np.testing.assert_array_equal(read, np.where(np.asarray(mask.value), np.asarray(fixed.value), 0))


def compiled(seed=1, optimizer="adam", **options):
    keras.utils.set_random_seed(seed)
    dense = [layers.Dense(6, "relu", name="hidden", **options), layers.Dense(3, name="logits", **options)]
    model = keras.Sequential([keras.Input((8,)), *dense])
    model.compile(optimizer, "mse", **CHEAP)
    return model


def fit(model, *callbacks, epochs=2):
    x, y = data(n=32)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def kernels(model):
    return [weight.value() for weight in kprune.masked_weights(model)]


def assert_the_same(one, other):
    for a, b in zip(kprune.masked_weights(one), kprune.masked_weights(other), strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept())
        np.testing.assert_array_equal(a.value(), b.value())


class Saves(keras.callbacks.Callback):
    """Saves the model in the middle of a fit, and what it predicts then."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        self.outputs = np.asarray(self.model(data()[0]))
        self.model.save(self.folder / "model.keras")
        self.model.save_weights(self.folder / "model.weights.h5")
        with plain(self.model) as stripped:
            np.testing.assert_array_equal(np.asarray(stripped(data()[0])), self.outputs)
        np.testing.assert_array_equal(np.asarray(self.model(data()[0])), self.outputs)


def test_a_file_of_the_middle_of_a_fit_holds_weights_and_masks(tmp_path):
    model, saves = compiled(), Saves(tmp_path)
    initial = [np.array(layer.kernel) for layer in model.layers]
    fit(model, Supermask(sparsity=0.7), saves, epochs=1)
    loaded, other = keras.models.load_model(tmp_path / "model.keras"), compiled(seed=2)
    kprune.mask(other, store="latent")
    other.load_weights(tmp_path / "model.weights.h5")
    for one in (model, loaded, other):
        for value, first in zip(kernels(one), initial, strict=True):
            np.testing.assert_array_equal(value, first)
        np.testing.assert_array_equal(np.asarray(one(data()[0])), saves.outputs)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("method", "order", "library"),
    [("edge_popup", 1, "kprune"), ("bernoulli", -1, "kprune"), ("bernoulli", 1, "keras")],
)
def test_it_goes_on_from_a_backup_to_the_bit(method, order, library, tmp_path):
    def callbacks():
        backup = BackupAndRestore(tmp_path / "b.npz") if library == "kprune" else None
        backup = backup or keras.callbacks.BackupAndRestore(str(tmp_path / "keras"))
        return [Supermask(method, frequency=3), backup][::order]

    whole, killed, resumed = compiled(), compiled(), compiled(seed=5)
    for model in (whole, killed, resumed):
        kprune.mask(model, store="latent")  # or the first callback masks it, as it does by default
    fit(whole, callbacks()[::order][0])
    with pytest.raises(KeyboardInterrupt):
        fit(killed, *callbacks(), Stop())
    fit(resumed, *callbacks())
    assert_the_same(whole, resumed)


def test_the_step_is_traced_once_and_a_regularizer_sees_what_is_read():
    model = compiled(kernel_regularizer=keras.regularizers.L1(1.0))
    steps = TracedSteps(model)
    expected = []

    def penalty(epoch, logs):
        read = [np.abs(weight.read()).sum() for weight in kprune.masked_weights(model)]
        expected.append((float(sum(model.losses)), sum(read)))

    fit(model, Supermask(), steps.count, keras.callbacks.LambdaCallback(on_epoch_end=penalty))
    assert steps.counts[-1] <= 1 + (keras.backend.backend() == "tensorflow")
    for loss, read in expected:
        assert loss == pytest.approx(read, rel=1e-5)


def test_a_further_fit_continues_from_the_scores_and_another_model_does_not():
    # Without slots two fits are one.
    callback, model, whole = Supermask(frequency=4), compiled(optimizer="sgd"), compiled(optimizer="sgd")
    fit(model, callback, epochs=1)
    fit(model, callback, epochs=1)
    fit(whole, Supermask(frequency=4))
    assert_the_same(model, whole)
    other, fresh = compiled(seed=4), compiled(seed=4)
    fit(other, callback, epochs=1)
    fit(fresh, Supermask(frequency=4), epochs=1)
    assert_the_same(other, fresh)


def test_frozen_weights_keep_mask_and_value():
    model = compiled()
    model.get_layer("hidden").trainable = False
    model.compile("sgd", "mse", **CHEAP)
    fit(model, Supermask(sparsity=0.5), epochs=1)
    assert [weight.path.split("/")[1] for weight in kprune.masked_weights(model)] == ["logits"]


def test_what_an_interrupted_fit_leaves_is_read_and_put_back():
    model = compiled()
    initial = [np.array(layer.kernel) for layer in model.layers]
    with pytest.raises(KeyboardInterrupt):
        fit(model, Supermask(), Stop())
    outputs = np.asarray(model(data()[0]))
    weights = kprune.masked_weights(model)
    assert all(weight.fixed is not None for weight in weights)
    for weight, first in zip(weights, initial, strict=True):
        np.testing.assert_array_equal(weight.read(), np.where(weight.kept(), first, 0))
    fit(model, GradualPruning(0.8), epochs=1)  # trains the weights again
    assert all(weight.fixed is None for weight in kprune.masked_weights(model))

    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        fit(model, Supermask(), Stop())
    kprune.strip(model)
    np.testing.assert_array_equal(np.asarray(model(data()[0])), outputs)


def test_evaluate_and_a_fit_that_fails_leave_the_model_as_it_was():
    model = compiled()
    initial = model.get_weights()
    model.evaluate(*data(), verbose=0, callbacks=[Supermask()])
    with pytest.raises(ValueError, match="Received: callbacks="):
        fit(model, Supermask(), GradualPruning(0.5))
    assert kprune.masked_weights(model) == []
    for one, other in zip(model.get_weights(), initial, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (lambda: GradualPruning(0.5, margin=1.2), "GradualPruning"),
        (lambda: TakeSnapshot(3), "TakeSnapshot"),
        (lambda: keras.callbacks.EarlyStopping("loss", restore_best_weights=True), "EarlyStopping"),
        (
            lambda: kprune.AfterPruning(keras.callbacks.EarlyStopping("loss", restore_best_weights=True)),
            "EarlyStopping",
        ),
    ],
)
def test_callbacks_that_would_take_scores_for_weights_are_refused(other, name):
    with pytest.raises(ValueError, match=rf"Received: callbacks=\[\.\.\., .*{name}\]"):
        fit(compiled(), Supermask(), other())


def test_early_stopping_before_it_brings_back_scores_and_their_masks():
    model = compiled()
    initial = [np.array(layer.kernel) for layer in model.layers]
    best = keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)
    fit(model, best, Supermask(sparsity=0.6), epochs=3)
    for value, first in zip(kernels(model), initial, strict=True):
        np.testing.assert_array_equal(value, first)
    scores = [array for array in best.best_weights if array.ndim == 2]
    for weight, score in zip(kprune.masked_weights(model), scores, strict=True):
        assert score[weight.kept()].min() > score[~weight.kept()].max()


@pytest.mark.parametrize(
    "wrong",
    [
        dict(method="edge"),
        dict(method="bernoulli", sparsity=0.5),
        dict(sparsity=1.0),
        dict(scope="erkk"),
        dict(signed_constant=1),
        dict(frequency=0),
        dict(seed=-1),
        dict(optimizer="adam"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        Supermask(**wrong)


def test_the_state_of_another_model_is_refused():
    model, callback = compiled(), Supermask()
    callback.set_model(model)
    state = callback.get_state()
    with pytest.raises(ValueError, match="state of Supermask does not match this model"):
        callback.set_state({key: array for key, array in state.items() if key != "weights/1"})
    hold_weights(model, "edge_popup")  # is held already
    callback.on_test_begin()
    assert kprune.masked_weights(model) == []
