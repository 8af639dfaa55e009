"""kprune.adopt: zeros become masks; kprune.recalibrate: statistics of batch normalization anew, and nothing else."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, assert_zero, data, mlp
from keras import layers

import kprune


def test_zeros_of_a_file_stay_zeros_where_it_goes_on_training(tmp_path):
    model = mlp()
    kprune.prune(model, "magnitude", 0.75)
    x, y = data()
    expected = model.predict(x, verbose=0)
    kprune.strip(model).save(tmp_path / "sparse.keras")
    loaded = keras.models.load_model(tmp_path / "sparse.keras")
    zeros = {v.path: np.asarray(v) == 0 for v in loaded.weights if v.name == "kernel"}
    report = kprune.adopt(loaded)
    assert report.model is loaded and len(report.masked) == 3
    for weight in kprune.masked_weights(loaded):
        np.testing.assert_array_equal(weight.kept(), ~zeros[weight.variable.path])
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    loaded.compile("adam", "mse", **CHEAP)
    loaded.fit(x, y, verbose=0)
    assert_zero(loaded)
    assert kprune.summary(loaded).zeros == sum(int(z.sum()) for z in zeros.values())


def test_masks_that_are_there_stay_and_filters_choose(caplog):
    model = mlp()
    kprune.prune(model, "magnitude", 0.5)
    kept = {w.path: w.kept() for w in kprune.masked_weights(model)}
    for v in model.weights:
        if v.name == "kernel":
            v.assign(np.asarray(v) * (np.arange(v.shape[1]) > 0))  # the first unit's
    report = kprune.adopt(model, filters="hidden1")
    for weight in kprune.masked_weights(model):
        expected = kept[weight.path].copy()
        expected[:, 0] &= "hidden1" not in weight.path
        np.testing.assert_array_equal(weight.kept(), expected)
    assert any("hidden1" in path for path in report.masked)
    assert "contain many exact zeros" not in caplog.text


def test_what_cannot_be_meant_is_said(caplog):
    model = mlp()
    model.layers[-1].kernel.assign(np.zeros((12, 3)))
    kprune.adopt(model)
    assert "logits/kernel are 0, so their masks keep no entries" in caplog.text
    kprune.adopt(mlp())
    assert "found no zeros in the 3 weights" in caplog.text
    with pytest.raises(ValueError, match="Received: weights="):
        kprune.adopt(model, weights=["kernels"])


def normalized(shared=False):
    inputs = keras.Input((6,))
    normalize = layers.BatchNormalization(momentum=0.9)
    x = layers.Dropout(0.5, seed=1)(normalize(layers.Dense(4)(inputs)))
    x = normalize(layers.Dense(4)(inputs)) + x if shared else x
    return keras.Model(inputs, layers.Dense(2)(x))


@pytest.mark.slow_on_jax
def test_statistics_are_those_of_the_data_and_nothing_else_changes(rng):
    model, x = normalized(), rng.normal(3.0, 2.0, (300, 6)).astype("float32")
    model.compile("adam", "mse", **CHEAP)
    model.fit(x, x[:, :2], verbose=0, callbacks=[kprune.callbacks.SynFlow(0.5, verbose=0)])
    normalize = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    mine = {id(normalize.moving_mean), id(normalize.moving_variance)}
    rest = [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in mine]
    before = [np.asarray(v) for v in rest]
    kprune.recalibrate(model, (x, x[:, :2]))
    for v, value in zip(rest, before, strict=True):
        np.testing.assert_array_equal(np.asarray(v), value, err_msg=v.path)
    assert normalize.momentum == 0.9 and "call" not in vars(normalize)
    made = np.asarray(model.layers[1](x), "float64")
    batches = [(made[:256], 256), (made[256:], 44)]
    for v, of in ((normalize.moving_mean, np.mean), (normalize.moving_variance, np.var)):
        expected = sum(of(part, axis=0) * n for part, n in batches) / 300
        np.testing.assert_allclose(np.asarray(v), expected, rtol=1e-4, atol=1e-5)
    kprune.recalibrate(model, iter([(x[:100],), (x[100:],)]), batches=1)
    np.testing.assert_allclose(np.asarray(normalize.moving_mean), made[:100].mean(0), rtol=1e-4, atol=1e-5)
    model.fit(x, x[:, :2], verbose=0)
    assert_zero(model)


def test_a_shared_layer_takes_the_mean_of_its_calls(rng):
    model, x = normalized(shared=True), rng.normal(size=(40, 6)).astype("float32")
    kprune.recalibrate(model, x)
    dense = [layer for layer in model.layers if isinstance(layer, layers.Dense) and layer.units == 4]
    normalize = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    expected = np.mean([np.asarray(layer(x)).mean(0) for layer in dense], axis=0)
    np.testing.assert_allclose(np.asarray(normalize.moving_mean), expected, rtol=1e-4, atol=1e-5)


class Normalizes(keras.Model):
    """Three times: frozen, in inference mode, and as it trains."""

    def __init__(self):
        super().__init__()
        self.frozen = layers.BatchNormalization(name="frozen", trainable=False)
        self.inference, self.free = layers.BatchNormalization(name="inference"), layers.BatchNormalization(name="free")

    def call(self, x, training=False):
        return self.free(self.inference(self.frozen(x, training=training), training=False), training=training)


def test_frozen_statistics_stay_and_are_named(caplog, rng):
    model, x = Normalizes(), rng.normal(2.0, 1.0, (32, 6)).astype("float32")
    model(x)
    kprune.recalibrate(model, x)
    for layer in (model.frozen, model.inference):
        np.testing.assert_array_equal(np.asarray(layer.moving_mean), 0.0)
        np.testing.assert_array_equal(np.asarray(layer.moving_variance), 1.0)
    assert np.all(np.asarray(model.free.moving_mean) > 1.0)
    assert "the statistics of frozen, inference were not changed" in caplog.text


def test_recalibrate_refuses_what_it_cannot_do_and_leaves_the_model(rng):
    with pytest.raises(ValueError, match=r"has no batch normalization layer\. Received: model="):
        kprune.recalibrate(mlp(), np.ones((4, 8), "float32"))
    model = normalized()
    before = [np.asarray(v) for v in model.variables]
    for wrong, said in ((np.ones((0, 6)), "at least one example"), (np.ones((4, 5), "float32"), "incompatible")):
        with pytest.raises(ValueError, match=said):
            kprune.recalibrate(model, wrong)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(v), value)
