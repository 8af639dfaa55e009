"""kprune.export of tf_keras models: files that load without kprune, and a model that stays as it is."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers import EachBatch, assert_zero, data, new_process
from tf_keras import layers
from tfk_helpers import assert_same, masked_mlp, outputs, sequential, state, wrappers

import kprune
from kprune.deploy import keras_file
from kprune.report import saved

MODELS = {
    "dense": (lambda: sequential((8,), layers.Dense(1200, "relu"), layers.BatchNormalization(), layers.Dense(3)), (8,)),
    "convolutions": (
        lambda: sequential((6, 6, 2), layers.Conv2D(4, 3), layers.SeparableConv2D(3, 2), layers.Flatten()),
        (6, 6, 2),
    ),
    "lstm": (lambda: sequential((5, 4), layers.LSTM(3, return_sequences=True), layers.GRU(2)), (5, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_both_files_load_and_agree(name, tmp_path):
    make, shape = MODELS[name]
    model = kprune.mask(make()).model
    kprune.prune(model, "magnitude", 0.75)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    expected = outputs(model, x)
    result = kprune.export(model, tmp_path / "sparse", ("saved_model", "saved_model_packed", "keras"))
    read = [(row.path, row.zeros) for row in saved.read(tmp_path / "sparse").rows]
    assert read == [(row.path, row.zeros) for row in kprune.summary(model).rows]
    assert result.saved_model == tmp_path / "sparse" and result.keras_file == tmp_path / "sparse.keras"
    assert result.difference <= 1e-4
    served = tf.saved_model.load(str(result.saved_model))
    packed = tf.saved_model.load(str(result.files["saved_model_packed"]))
    np.testing.assert_array_equal(packed.serve(x), served.serve(x))
    assert len(packed.kernels) == (name == "dense")
    np.testing.assert_allclose(served.serve(x).numpy(), expected[0], rtol=1e-4, atol=1e-5)
    loaded = tf_keras.models.load_model(result.keras_file)
    assert_same(outputs(loaded, x), expected)
    assert wrappers(loaded) == []
    kernels = [w for w in loaded.weights if w.name.split("/")[-1].split(":")[0] in kprune.masks.DEFAULT_WEIGHTS]
    size = sum(int(np.prod(w.shape)) for w in kernels)
    assert sum(int((w.numpy() == 0).sum()) for w in kernels) == int(0.75 * size)


def test_the_files_need_neither_kprune_nor_tfmot(tmp_path):
    model = masked_mlp()
    kprune.export(model, tmp_path / "sparse")
    x, _ = data()
    np.save(tmp_path / "x.npy", x)
    script = f"""
import sys, numpy, tensorflow, tf_keras
x = numpy.load({str(tmp_path / "x.npy")!r})
served = tensorflow.saved_model.load({str(tmp_path / "sparse")!r})
numpy.save({str(tmp_path / "served.npy")!r}, served.serve(x))
numpy.save({str(tmp_path / "keras.npy")!r}, tf_keras.models.load_model({str(tmp_path / "sparse.keras")!r})(x))
assert not any(name.split(".")[0] in ("kprune", "tensorflow_model_optimization") for name in sys.modules)
"""
    ran = new_process("-c", script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for name in ("served", "keras"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), outputs(model, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_the_model_stays_masked(jit, tmp_path):
    model = masked_mlp("adam", jit_compile=jit)
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0)
    before, compiled = state(model), model.train_function
    constraints = [w.variable.constraint for w in kprune.masked_weights(model)]
    kprune.export(model, tmp_path / "sparse")
    assert state(model) == before and model.train_function is compiled
    assert [w.variable.constraint for w in kprune.masked_weights(model)] == constraints
    check = EachBatch(assert_zero)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[check])
    assert check.calls == 4


def test_an_export_that_fails_leaves_the_model_masked(tmp_path, monkeypatch):
    model = masked_mlp("adam", run_eagerly=True)
    constraints = [w.variable.constraint for w in kprune.masked_weights(model)]

    def broken(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(tf_keras.export.ExportArchive, "write_out", broken)
    with pytest.raises(OSError, match="no space left"):
        kprune.export(model, tmp_path / "sparse")
    assert [w.variable.constraint for w in kprune.masked_weights(model)] == constraints
    assert list(tmp_path.iterdir()) == []
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[EachBatch(assert_zero)])


def test_a_plain_model_and_its_path_that_exists(tmp_path):
    model = sequential((4,), layers.Dense(3))
    kprune.export(model, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"pass overwrite=True.*Received: path="):
        kprune.export(model, tmp_path / "plain")
    kprune.export(model, tmp_path / "plain", overwrite=True)


def test_a_class_that_is_not_registered_is_told_what_to_do_with_this_keras(tmp_path):
    class Unknown(layers.Layer):
        pass

    model = sequential((4,), Unknown())
    model.save(str(tmp_path / "m.keras"))
    with pytest.raises(ValueError, match=r"@tf_keras\.saving\.register_keras_serializable\(\)"):
        keras_file.load(tmp_path / "m.keras", model)


def test_a_saved_model_of_tf_keras_is_read_without_what_training_left(tmp_path):
    model = masked_mlp("adam")
    model.fit(np.ones((4, 8)), np.ones((4, 3)), verbose=0)
    stripped = kprune.strip(model)
    stripped.compile("adam", "mse", metrics=["mae"])
    stripped.fit(np.ones((4, 8)), np.ones((4, 3)), verbose=0)
    stripped.save(tmp_path / "saved", save_format="tf")
    report, expected = saved.read(tmp_path / "saved"), kprune.summary(stripped)
    assert [(row.path, row.zeros) for row in report.rows] == [(row.path, row.zeros) for row in expected.rows]
    assert report.other_size == expected.other_size
