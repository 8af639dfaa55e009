"""On tf_keras: zeros become masks, statistics anew, quantization-aware training that keeps zeros, LiteRT files."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from helpers import assert_zero, data
from tf_keras import layers
from tfk_helpers import masked_mlp, mlp, outputs, sequential

import kprune


def zeros_of(model):
    return {w.name: w.numpy() == 0 for w in model.weights if "kernel" in w.name}


def test_zeros_become_masks_and_stay():
    plain, (x, y) = kprune.strip(masked_mlp()), data()
    zeros, expected = sum(int(z.sum()) for z in zeros_of(plain).values()), outputs(plain, x)
    model = kprune.adopt(plain).model
    np.testing.assert_array_equal(outputs(model, x), expected)
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    assert_zero(model)
    assert kprune.summary(model).zeros == zeros


def test_statistics_are_those_of_the_data_and_weights_stay(rng):
    model = kprune.mask(sequential((6,), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2))).model
    kprune.prune(model, "magnitude", 0.5)
    normalize = next(layer for layer in model.submodules if isinstance(layer, layers.BatchNormalization))
    mine = {id(normalize.moving_mean), id(normalize.moving_variance)}
    rest = [v for v in model.variables if id(v) not in mine]
    before, x = [v.numpy() for v in rest], rng.normal(3.0, 2.0, (40, 6)).astype("float32")
    kprune.recalibrate(model, (x,))
    for v, value in zip(rest, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value, err_msg=v.name)
    made = np.asarray(model.layers[0](x, training=False), "float64")
    np.testing.assert_allclose(normalize.moving_mean, made.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normalize.moving_variance, made.var(0), rtol=0.05)  # tf_keras: of n - 1, in 4 dimensions


def test_quantization_aware_training_keeps_the_zeros():
    plain, (x, y) = kprune.strip(masked_mlp()), data()
    before = sum(int(zero.sum()) for zero in zeros_of(plain).values())
    annotated = tfmot.quantization.keras.quantize_annotate_model(plain)
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    kernels = [w.numpy() for w in model.trainable_weights if "kernel" in w.name]
    assert [k.size for k in kernels] == [96, 144, 36] and sum(int((k == 0).sum()) for k in kernels) >= before > 0


@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="ai_edge_litert not installed")
def test_litert_files(tmp_path, rng):
    model = masked_mlp()
    x = rng.normal(size=(16, 8)).astype("float32")
    done = kprune.export(model, tmp_path / "m", ["litert", "litert_int8"], representative=x, verbose=0)
    assert done.card.entry("litert").zeros == kprune.summary(model).zeros
    assert done.card.entry("litert").difference < 1e-5


def test_what_keras_writes_of_keras_3_models_only_is_refused(tmp_path, monkeypatch):
    model = mlp()  # Keras imports, too
    monkeypatch.setattr(importlib, "import_module", lambda name: tf_keras if name == "tf_keras" else tf)
    for format in ("onnx", "openvino"):
        with pytest.raises(
            ValueError, match=rf"Only Keras 3 models can be exported.*Received: format='{format}', model="
        ):
            kprune.export(model, tmp_path / "m", format)
    assert list(tmp_path.iterdir()) == []
