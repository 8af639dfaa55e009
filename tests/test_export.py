"""Export: files that load without kprune, predict the same, and appear only when they do."""

import importlib
import pathlib
import resource

import keras
import numpy as np
import pytest
from helpers import assert_zero, data, mlp, new_process
from keras import layers

import kprune
from kprune.deploy.export import _move

pytest.importorskip("tensorflow")

LOAD = """
import os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import numpy as np, keras, tensorflow as tf
folder, keras_file, inputs, expected = sys.argv[1:]
x, y = np.load(inputs), np.load(expected)
loaded = tf.saved_model.load(folder)
np.testing.assert_allclose(loaded.serve(tf.constant(x)), y, rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(keras.saving.load_model(keras_file).predict(x, verbose=0), y, rtol=1e-4, atol=1e-5)
assert not any(name.partition(".")[0] == "kprune" for name in sys.modules)
"""


def images():
    inputs = keras.Input((8, 8, 2))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def test_exported_files_load_without_kprune(tmp_path, rng):
    model = images()
    model.compile("adam", "mse")
    x = rng.normal(size=(16, 8, 8, 2)).astype("float32")
    model.fit(x, np.zeros((16, 3)), verbose=0, callbacks=[kprune.callbacks.SynFlow(0.8, verbose=False)])
    y = model.predict(x, verbose=0)
    done = kprune.export(model, tmp_path / "sparse")
    assert done.saved_model == tmp_path / "sparse" and done.keras_file == tmp_path / "sparse.keras"
    assert done.difference < 1e-5
    assert 0 < done.zipped_bytes < done.saved_model_bytes
    assert str(done.saved_model) in str(done)
    np.save(tmp_path / "x.npy", x), np.save(tmp_path / "y.npy", y)
    ran = new_process("-c", LOAD, done.saved_model, done.keras_file, tmp_path / "x.npy", tmp_path / "y.npy")
    assert ran.returncode == 0, ran.stderr

    assert len(kprune.masked_weights(model)) == 2
    np.testing.assert_array_equal(model.predict(x, verbose=0), y)
    model.fit(x, np.zeros((16, 3)), verbose=0)
    assert_zero(model)


def test_zeros_make_the_download_smaller(tmp_path):
    sizes = []
    for sparsity in (0.0, 0.95):
        model = keras.Sequential([keras.Input((64,)), layers.Dense(256), layers.Dense(64)])
        kprune.prune(model, "magnitude", sparsity)
        sizes.append(kprune.export(model, tmp_path / f"at{sparsity}").zipped_bytes)
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs_and_outputs(structure, tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    x = layers.Add()([layers.Dense(5)(a), layers.Dense(5)(b)])
    inputs = [a, b] if structure == "list" else {"a": a, "b": b}
    model = keras.Model(inputs, {"one": layers.Dense(2)(x), "two": layers.Dense(3)(x)})
    kprune.prune(model, "magnitude", 0.5)
    assert kprune.export(model, tmp_path / "m").difference < 1e-5


def test_a_plain_model_is_exported_too(tmp_path):
    assert kprune.export(mlp(), tmp_path / "m").saved_model.is_dir()


def test_nothing_is_replaced_unless_told(tmp_path):
    model = mlp()
    kprune.export(model, tmp_path / "m")
    with pytest.raises(ValueError, match=r"overwrite=True.*Received: path="):
        kprune.export(model, tmp_path / "m")
    kprune.prune(model, "magnitude", 0.5)
    kprune.export(model, tmp_path / "m", overwrite=True)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.layers[0].kernel.numpy(), model.layers[0].kernel.numpy())


def test_own_inputs_for_a_model_of_open_shape(tmp_path):
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.Dense(4)(inputs))
    kprune.mask(model)
    with pytest.raises(ValueError, match=r"Received: model=<class 'int'>$"):
        kprune.export(5, "somewhere")
    with pytest.raises(ValueError, match=r"not fixed"):
        kprune.export(model, tmp_path / "m")
    assert kprune.export(model, tmp_path / "m", inputs=np.ones((2, 9, 3), "float32")).saved_model.is_dir()


def test_a_file_that_predicts_something_else_is_not_kept(tmp_path, monkeypatch):
    model = mlp()
    kprune.prune(model, "magnitude", 0.5)
    save = keras.Sequential.save

    def spoiled(self, *args, **kwargs):
        self.layers[0].bias.assign(np.ones(12))
        save(self, *args, **kwargs)
        self.layers[0].bias.assign(np.zeros(12))

    monkeypatch.setattr(keras.Sequential, "save", spoiled)
    with pytest.raises(RuntimeError, match=r"the .keras file does not predict"):
        kprune.export(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    assert len(kprune.masked_weights(model)) == 3


def test_masks_survive_an_export_that_fails(tmp_path, monkeypatch):
    model = mlp()
    kprune.prune(model, "magnitude", 0.5)
    kept = [w.kept() for w in kprune.masked_weights(model)]

    def full(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Sequential, "save", full)
    with pytest.raises(OSError, match=r"No space left"):
        kprune.export(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    for mask, weight in zip(kept, kprune.masked_weights(model), strict=True):
        np.testing.assert_array_equal(mask, weight.kept())
    model.compile("adam", "mse")
    model.fit(*data(), verbose=0)
    assert_zero(model)


@pytest.mark.parametrize(("writer", "cause"), [("export", "OutOfRangeError"), ("save", "OSError")])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_what_was_there(tmp_path, monkeypatch, writer, cause):
    model, limits, write = mlp(), resource.getrlimit(resource.RLIMIT_FSIZE), getattr(keras.Sequential, writer)
    kprune.export(model, tmp_path / "m")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fill(self, *args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(keras.Sequential, writer, fill)
    try:
        with pytest.raises(OSError, match=r"not written: File too large: '.*/m'") as failed:
            kprune.export(model, tmp_path / "m", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.filename == str(tmp_path / "m") and type(failed.value.__cause__).__name__ == cause
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_files_that_cannot_be_moved_leave_what_was_there(tmp_path, monkeypatch):
    for name in ("m", "m.keras", "new", "new.keras"):
        (tmp_path / name).write_text(name)
    replace = pathlib.Path.replace

    def fail(self, goal):
        if self.name == "new.keras":
            raise OSError("Input/output error")
        return replace(self, goal)

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        _move({tmp_path / "new": tmp_path / "m", tmp_path / "new.keras": tmp_path / "m.keras"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: name for name in ("m", "m.keras", "new", "new.keras")
    }


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path):
    kprune.export(mlp(), tmp_path / ("x" * 249))
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [249, 255]


def test_of_several_processes_the_chiefs_files_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("kprune.deploy.export"), "is_chief", lambda: False)
    assert kprune.export(mlp(), tmp_path / "plain").keras_bytes > 0
    assert list(tmp_path.iterdir()) == []
