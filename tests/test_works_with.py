"""Other libraries on sparse models: docs/works_with.md; each test is skipped where its package is missing."""

import keras
import numpy as np
import pytest
from keras import layers

import kprune


def small(units):
    return keras.Sequential([keras.Input((8,)), layers.Dense(units, "relu"), layers.Dense(2)])


@pytest.mark.skipif(not hasattr(keras, "distillation"), reason="Keras has no distillation yet")
def test_distiller():
    """The student is pruned, the teacher is frozen; on TensorFlow the distiller itself is built by its first step."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    distiller = keras.distillation.Distiller(
        teacher=small(16), student=small(4), distillation_losses=keras.distillation.LogitsDistillation()
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    schedule = kprune.schedules.Linear(0.0, 0.75, begin_step=0, end_step=6, frequency=1)
    pruning = kprune.callbacks.GradualPruning(schedule)
    distiller.fit(x, (x[:, 0] > 0).astype(int), epochs=2, batch_size=16, verbose=0, callbacks=[pruning])
    assert [w.shape for w in kprune.masked_weights(distiller)] == [(8, 4), (4, 2)]
    assert kprune.summary(distiller.student).sparsity == 0.75 and not kprune.masked_weights(distiller.teacher)


def test_what_has_no_weights_is_still_refused():
    class Unbuilt(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.last = small(4), layers.Dense(2)

        def call(self, x):
            return self.last(self.inner(x))

    for model in (Unbuilt(), keras.Sequential([layers.Dense(2)]), keras.Sequential()):
        with pytest.raises(ValueError, match=r"no weights yet.*unbuilt layers="):
            kprune.mask(model)


def test_keras_tuner(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")

    class Hyper(keras_tuner.HyperModel):
        def build(self, hp):
            model = small(16)
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
            return model

        def fit(self, hp, model, *args, callbacks=None, **kwargs):
            schedule = kprune.schedules.Linear(0.0, hp.Fixed("sparsity", 0.75), begin_step=0, end_step=4, frequency=1)
            pruning = kprune.callbacks.GradualPruning(schedule)
            return model.fit(*args, callbacks=[pruning, *(callbacks or [])], **kwargs)

    tuner = keras_tuner.RandomSearch(Hyper(), "val_accuracy", max_trials=1, directory=tmp_path)
    tuner.search(x, (x[:, 0] > 0).astype(int), validation_split=0.25, epochs=2, batch_size=8, verbose=0)
    (best,) = tuner.get_best_models(1)
    zeros = [int((layer.kernel.numpy() == 0).sum()) for layer in best.layers]
    assert sum(zeros) == 120, "0.75 of 8 * 16 + 16 * 2"


def test_state_trees():
    """What Orbax saves; it needs each path once."""
    model = small(4)
    model.compile("adam", "mse")
    kprune.mask(model)
    tree = keras.tree.flatten(model.get_state_tree())
    assert len(tree) >= len(model.variables), "weights and masks among them"


def test_scikit_learn_wrappers():
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")

    def build(X, y, units=16):
        model = small(units)
        model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
        return model

    pruning = kprune.callbacks.GradualPruning(kprune.schedules.Constant(0.75, begin_step=2))
    fitting = {"epochs": 2, "batch_size": 16, "verbose": 0, "callbacks": [pruning]}
    wrapped = keras.wrappers.SKLearnClassifier(build, fit_kwargs=fitting)
    wrapped.fit(x, (x[:, 0] > 0).astype(int))
    assert kprune.summary(wrapped.model_).zeros == 120 and wrapped.predict(x).shape == (64,)


def pruned(model, sparsity=0.75):
    kprune.prune(model, "magnitude", sparsity, verbose=0)
    return model


@pytest.mark.parametrize("strip", [True, False])
def test_hls4ml(strip, tmp_path):
    """Its Keras 3 frontend keeps the zeros of a stripped model; it knows no masked layer."""
    hls4ml = pytest.importorskip("hls4ml")
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(4)])
    pruned(model)
    if strip:
        model = kprune.strip(model)
    config = hls4ml.utils.config_from_keras_model(model, granularity="name", backend="Vitis")
    made = hls4ml.converters.convert_from_keras_model(
        model, hls_config=config, backend="Vitis", output_dir=str(tmp_path)
    )
    found = [layer.weights["weight"].data for layer in made.get_layers() if "weight" in layer.weights]
    assert [array.size for array in found] == [36, 576]
    assert sum(int((array == 0).sum()) for array in found) == 459, "0.75 of 612"


def test_orbax(tmp_path):
    """A masked model saves its masks beside its weights, and takes both back."""
    pytest.importorskip("orbax.checkpoint")
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    model = small(16)
    model.compile("adam", "mse")
    pruning = kprune.callbacks.GradualPruning(kprune.schedules.Constant(0.75, begin_step=2))
    saving = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "kept"), monitor="loss", save_on_background=False)
    model.fit(x, x[:, :2], epochs=2, batch_size=16, verbose=0, callbacks=[pruning, saving])
    assert any((tmp_path / "kept").iterdir())
    tree, kept = model.get_state_tree(value_format="numpy_array"), [w.kept() for w in kprune.masked_weights(model)]
    kprune.set_masks(model, {w.path: np.ones(w.shape, bool) for w in kprune.masked_weights(model)})
    model.set_state_tree(tree)
    for weight, mask in zip(kprune.masked_weights(model), kept, strict=True):
        np.testing.assert_array_equal(weight.kept(), mask)


def test_qkeras():
    """The float kernel is pruned; the quantizer, whose zero is 0, is left alone."""
    qkeras = pytest.importorskip("qkeras")
    model = keras.Sequential(
        [
            keras.Input((8,)),
            qkeras.QDense(16, kernel_quantizer=qkeras.quantized_bits(4, 0, alpha=1)),
            qkeras.QDense(2, kernel_quantizer=qkeras.quantized_bits(4, 0, alpha=1)),
        ]
    )
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    pruning = kprune.callbacks.GradualPruning(kprune.schedules.Constant(0.75, begin_step=2))
    model.fit(x, x[:, :2], epochs=2, batch_size=16, verbose=0, callbacks=[pruning])
    assert kprune.summary(model).zeros == 120
    for layer in kprune.strip(model).layers:
        quantized = np.asarray(layer.kernel_quantizer_internal(layer.kernel))
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        assert (kernel == 0).any() and not quantized[kernel == 0].any() and quantized.any()
        np.testing.assert_allclose(quantized * 8, np.round(quantized * 8), atol=1e-5)


def test_hgq2():
    """Its layers' float kernels are pruned; the quantizers' own weights are not masked."""
    hgq = pytest.importorskip("hgq")
    from hgq.layers import QDense

    assert hgq
    model = keras.Sequential([keras.Input((8,)), QDense(16, activation="relu"), QDense(2)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    pruning = kprune.callbacks.GradualPruning(kprune.schedules.Constant(0.75, begin_step=2))
    model.fit(x, x[:, :2], epochs=2, batch_size=16, verbose=0, callbacks=[pruning])
    assert [w.shape for w in kprune.masked_weights(model)] == [(8, 16), (16, 2)]
    assert kprune.summary(model).zeros == 120


def backbones():
    keras_hub = pytest.importorskip("keras_hub").models
    yield "BERT", keras_hub.BertBackbone(50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16)
    yield "ViT", keras_hub.ViTBackbone((16, 16, 3), 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    yield (
        "ResNet",
        keras_hub.ResNetBackbone([64], [3], [64, 64], [1, 1], [1, 2], "basic_block", image_shape=(16, 16, 3)),
    )
    yield (
        "Gemma",
        keras_hub.GemmaBackbone(
            50, num_layers=1, num_query_heads=2, num_key_value_heads=1, hidden_dim=8, intermediate_dim=16, head_dim=4
        ),
    )


def test_keras_hub_backbones():
    """From a random config: pruned, stripped, and the predictions are those of the masked model."""
    for name, model in backbones():
        pruned(model, 0.5)
        report = kprune.summary(model)
        assert report.zeros == report.size // 2 > 100, name
        inputs = {
            key: np.ones((1, *(d or 4 for d in value.shape[1:])), "int32")
            for key, value in (model.input.items() if isinstance(model.input, dict) else [])
        } or np.random.default_rng(0).random((1, 16, 16, 3), "float32")
        masked = keras.tree.flatten(model.predict(inputs, verbose=0))
        for a, b in zip(masked, keras.tree.flatten(kprune.strip(model).predict(inputs, verbose=0)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
