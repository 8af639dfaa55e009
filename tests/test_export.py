"""Export: files that load without kprune, predict the same, and appear only when they do."""

import importlib
import json
import os
import pathlib
import resource

import keras
import numpy as np
import pytest
from helpers import assert_zero, data, mlp, new_process
from keras import layers
from marks import with_slow

import kprune
from kprune.deploy.card import Card, Entry
from kprune.deploy.export import _move
from kprune.report import saved

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


@pytest.mark.slow_on_jax
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


@pytest.mark.slow_on_jax
def test_zeros_make_the_download_smaller(tmp_path):
    sizes = []
    for sparsity in (0.0, 0.95):
        model = keras.Sequential([keras.Input((64,)), layers.Dense(256), layers.Dense(64)])
        kprune.prune(model, "magnitude", sparsity)
        sizes.append(kprune.export(model, tmp_path / f"at{sparsity}").zipped_bytes)
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.parametrize("structure", with_slow(["dict"], ["list"]))
def test_several_inputs_and_outputs(structure, tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    x = layers.Add()([layers.Dense(5)(a), layers.Dense(5)(b)])
    inputs = [a, b] if structure == "list" else {"a": a, "b": b}
    model = keras.Model(inputs, {"one": layers.Dense(2)(x), "two": layers.Dense(3)(x)})
    kprune.prune(model, "magnitude", 0.5)
    assert kprune.export(model, tmp_path / "m").difference < 1e-5


def test_a_plain_model_is_exported_too(tmp_path):
    assert kprune.export(mlp(), tmp_path / "m").saved_model.is_dir()


@pytest.mark.slow_on_jax
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
    with pytest.raises(ValueError, match=r"unknown dimension"):
        kprune.export(model, tmp_path / "m")
    assert kprune.export(model, tmp_path / "m", inputs=np.ones((2, 9, 3), "float32")).saved_model.is_dir()


@pytest.mark.slow_on_jax
def test_a_file_that_predicts_something_else_is_not_kept(tmp_path, monkeypatch):
    model = mlp()
    kprune.prune(model, "magnitude", 0.5)
    save = keras.Sequential.save

    def spoiled(self, *args, **kwargs):
        self.layers[0].bias.assign(np.ones(12))
        save(self, *args, **kwargs)
        self.layers[0].bias.assign(np.zeros(12))

    monkeypatch.setattr(keras.Sequential, "save", spoiled)
    with pytest.raises(RuntimeError, match=r"the .keras file and the masked model produce different"):
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


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(("writer", "cause"), [("write_out", "OutOfRangeError"), ("save", "OSError")])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_what_was_there(tmp_path, monkeypatch, writer, cause):
    model, limits = mlp(), resource.getrlimit(resource.RLIMIT_FSIZE)
    owner = keras.Sequential if writer == "save" else type(keras.export.ExportArchive())
    write = getattr(owner, writer)
    kprune.export(model, tmp_path / "m")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fill(self, *args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(owner, writer, fill)
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


def test_at_any_moment_there_is_a_file_and_it_is_on_the_disk(tmp_path, monkeypatch):
    goal, source, synced = tmp_path / "m.keras", tmp_path / "new.keras", []
    goal.write_text("old")
    source.write_text("new")
    replace, sync = pathlib.Path.replace, os.fsync

    def watched(self, to):
        assert goal.exists() and synced
        replace(self, to)
        assert goal.exists()

    monkeypatch.setattr(pathlib.Path, "replace", watched)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(sync(handle)))
    _move({source: goal})
    assert goal.read_text() == "new" and len(synced) == 2  # the file, and the folder's names


@pytest.mark.slow_on_jax
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path):
    kprune.export(mlp(), tmp_path / ("x" * 245))
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [245, 251, 253, 255]


@pytest.mark.slow_on_jax
def test_of_several_processes_the_chiefs_files_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("kprune.deploy.export"), "is_chief", lambda: False)
    assert kprune.export(mlp(), tmp_path / "plain").keras_bytes > 0
    assert list(tmp_path.iterdir()) == []


def text_model():
    words = layers.TextVectorization(max_tokens=50, output_sequence_length=8)
    words.adapt(["the cat sat on the mat", "a dog ate the cat"])
    return keras.Sequential(
        [keras.Input((), dtype="string"), words, layers.Embedding(50, 8), layers.Flatten(), layers.Dense(99)]
    )


class Ids(keras.Model):
    """A subclassed model on integer ids, for which only a call says what it takes."""

    def __init__(self):
        super().__init__()
        self.embedding, self.logits = layers.Embedding(20, 8), layers.Dense(2)

    def call(self, ids):
        return self.logits(keras.ops.mean(self.embedding(ids), axis=1))


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int64"])
def test_inputs_are_taken_as_predict_takes_them(dtype, tmp_path, rng):
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(2)])
    done = kprune.export(model, tmp_path / "m", "saved_model", inputs=rng.integers(0, 255, (3, 4, 4, 1)).astype(dtype))
    assert done.difference < 1e-5


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("subclassed", [False, True])
def test_integer_ids(subclassed, tmp_path, rng):
    ids = rng.integers(0, 20, (4, 12))
    functional = [keras.Input((12,), dtype="int32"), layers.Embedding(20, 8), layers.Flatten(), layers.Dense(2)]
    model = Ids() if subclassed else keras.Sequential(functional)
    expected = model.predict(ids, verbose=0)
    kprune.prune(model, "magnitude", 0.5)
    expected = model.predict(ids, verbose=0)
    done = kprune.export(model, tmp_path / "m", "saved_model", inputs=ids)
    signature = __import__("tensorflow").saved_model.load(str(done.saved_model)).signatures["serving_default"]
    [given] = signature.structured_input_signature[1].values()
    assert given.dtype.name == ("int64" if subclassed else "int32") and given.shape.as_list() == [None, 12]
    [served] = signature(**{given.name: ids.astype(given.dtype.name)}).values()
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_size_that_the_graph_uses_is_kept(tmp_path):
    fixed = keras.Input(batch_shape=(3, 4))
    model = keras.Model(fixed, layers.Dense(2)(keras.ops.reshape(fixed, (3, 2, 2))))
    assert kprune.export(model, tmp_path / "m", "saved_model").difference < 1e-5


@pytest.mark.slow_on_jax
def test_a_class_that_is_not_registered_is_told_what_to_do(tmp_path):
    class Unknown(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model, x = Unknown(), np.ones((2, 4), "float32")
    model(x)
    with pytest.raises(
        ValueError, match=r'@keras.saving.register_keras_serializable.*format="saved_model".*Received: model='
    ):
        kprune.export(model, tmp_path / "m", inputs=x)
    assert not list(tmp_path.iterdir())
    assert kprune.export(model, tmp_path / "m", "saved_model", inputs=x).saved_model.is_dir()


def test_images_of_any_size(tmp_path, rng, caplog):
    """On JAX the gradient of a convolution of open size cannot be traced, and is not asked for."""
    images = keras.Input((None, None, 3))
    model = keras.Model(images, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(images)))
    done = kprune.export(model, tmp_path / "m", "saved_model", inputs=rng.normal(size=(2, 9, 8, 3)))
    assert done.difference < 1e-5 and "gradient" not in caplog.text


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow's graphs take strings")
@pytest.mark.parametrize("given", [None, ["the cat", "a dog"]])
def test_strings(given, tmp_path):
    model = text_model()
    kprune.prune(model, "magnitude", 0.5)
    inputs = None if given is None else np.array(given)
    assert kprune.export(model, tmp_path / "m", "saved_model", inputs=inputs).difference < 1e-5


@keras.saving.register_keras_serializable("test_export")
class Sampling(layers.Layer):
    """Draws noise at inference, from a seed that its config does not hold."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed)


def vae():
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(8)(Sampling()(layers.Dense(4)(inputs))))


def sampling():
    inputs = keras.Input((8,))
    mean, noise = layers.Dense(4)(inputs), layers.GaussianNoise(1.0, seed=3)(layers.Dense(4)(inputs), training=True)
    return keras.Model(inputs, layers.Dropout(0.5, seed=4)(layers.Add()([mean, noise]), training=True))


def stateful():
    inputs = keras.Input(batch_shape=(2, 3, 4))
    return keras.Model(inputs, layers.Dense(2)(layers.GRU(5, stateful=True)(inputs)))


def augmented():
    inputs = keras.Input((6, 6, 1))
    turned = layers.RandomRotation(0.3, seed=5)(layers.RandomFlip(seed=6)(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(turned)))


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("make", [vae, sampling, stateful, augmented])
def test_seeds_and_states_are_left_as_they_were(make, tmp_path):
    model = make()
    kprune.prune(model, "magnitude", 0.5)
    model(np.ones((2, *model.input_shape[1:]), "float32"), training=False)  # so that the states are not the first ones
    states = [*model.non_trainable_variables, *(v for layer in model.layers for v in getattr(layer, "states", []))]
    before = [np.asarray(v) for v in states]
    assert before and kprune.export(model, tmp_path / "m").difference < 1e-5
    for value, v in zip(before, states, strict=True):
        np.testing.assert_array_equal(value, np.asarray(v))


@pytest.mark.slow_on_jax
def test_each_variable_is_written_once_and_the_optimizer_never(tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(256), layers.BatchNormalization(), layers.Dense(64)])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 64)), np.ones((4, 64)), verbose=0)
    done, weights = kprune.export(model, tmp_path / "m"), 4 * model.count_params()
    assert weights < done.saved_model_bytes < 1.6 * weights  # what JAX compiled is in the graph, too
    assert weights < done.keras_bytes < 1.2 * weights
    assert model.optimizer.iterations == 1 and keras.models.load_model(done.keras_file).compiled


def test_all_targets_that_exist_are_named_before_anything_is_written(tmp_path):
    for name in ("m.keras", "m.card.md"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"m\.keras, .*m\.card\.md exist; .*Received: path="):
        kprune.export(mlp(), tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.card.md", "m.keras"]


@pytest.mark.parametrize("format", ["tflite", [], ["keras", "keras"], 3])
def test_unknown_formats(format, tmp_path):
    with pytest.raises(ValueError, match="Received: format="):
        kprune.export(mlp(), tmp_path / "m", format)


@pytest.mark.slow_on_jax
def test_a_slow_file_is_given_a_reason_only_where_it_is_known():
    def entry(format, network, milliseconds):
        return Entry(format, network, 100 if network == "dense" else 50, 50, 1, 10, milliseconds)

    sparse = [entry(format, "sparse", 2.0) for format in ("litert", "litert_sparse", "litert_int8")]
    card = Card((entry("litert", "dense", 2.0), *sparse), 1, 2, None, None, 1, "a machine")
    assert str(card).splitlines()[-3:] == [
        "litert: as slow as the dense file, because it multiplies by zeros as by any other value",
        "litert_sparse: as slow as the dense file",
        "litert_int8: as slow as the dense file",
    ]


@pytest.mark.slow_on_jax
def test_the_card(tmp_path, capsys, rng):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(128), layers.Dense(10)])
    kprune.prune(model, "magnitude", 0.75)
    x = rng.normal(size=(20, 64))
    labels = model.predict(x, verbose=0).argmax(-1)
    labels[:5] = (labels[:5] + 1) % 10
    done = kprune.export(model, tmp_path / "m", data=(x, labels))
    assert f"{done.card}\n" == capsys.readouterr().out
    size, zeros = 64 * 128 + 128 * 10, int(0.75 * (64 * 128 + 128 * 10))
    for format in ("saved_model", "keras"):
        sparse, dense = done.card.entry(format), done.card.entry(format, "dense")
        assert (sparse.zeros, sparse.size, dense.zeros, dense.size) == (zeros, size, 0, size)
        assert sparse.accuracy == 0.75 and sparse.bytes >= dense.bytes - 100 and sparse.zipped < 0.6 * dense.zipped
    assert (done.card.parameters, done.card.dense_parameters) == (size + 138 - zeros, size + 138)
    assert (done.card.flops, done.card.dense_flops) == (size - zeros, size)
    low, high = done.card.entry("saved_model").spread
    assert 0 < low <= done.card.entry("saved_model").milliseconds <= high
    assert "saved_model: as large as the dense file" in str(done.card)
    assert json.loads((tmp_path / "m.card.json").read_text()) == json.loads(json.dumps(done.to_dict()))
    assert (tmp_path / "m.card.md").read_text() == done.to_markdown() == done.card.to_markdown()
    assert done._repr_html_().count("<tr>") == 5
    with pytest.raises(ValueError, match=r"Received: data="):
        kprune.export(model, tmp_path / "n", data=x)
    with pytest.raises(ValueError, match=r"y.shape=\(3,\)"):
        kprune.export(model, tmp_path / "n", data=(x, labels[:3]))
    with pytest.raises(ValueError, match=r"Received: format='onnx', network='sparse'"):
        done.card.entry("onnx")
    assert (np.asarray(model.layers[0].kernel) == 0).sum() + (np.asarray(model.layers[1].kernel) == 0).sum() == zeros


SERVED = """
import sys
import numpy as np, tensorflow as tf
plain, packed, inputs = sys.argv[1:]
x = tf.constant(np.load(inputs))
loaded = [tf.saved_model.load(folder) for folder in (plain, packed, packed)]
for outputs in zip(*(tf.nest.flatten(model.serve(x)) for model in loaded)):
    assert len({output.numpy().tobytes() for output in outputs}) == 1
expected = loaded[0].serve(x).numpy()
with tf.compat.v1.Session(graph=tf.Graph()) as session:  # as the C API and TensorFlow Serving load it
    graph = tf.compat.v1.saved_model.load(session, ["serve"], packed)
    signature = graph.signature_def["serving_default"]
    [given], [made] = signature.inputs.values(), signature.outputs.values()
    np.testing.assert_array_equal(session.run(made.name, {given.name: x.numpy()}), expected)
assert not any(name.partition(".")[0] == "kprune" for name in sys.modules)
"""


def sparse_images():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(64)(layers.Flatten()(layers.BatchNormalization()(x))))
    kprune.prune(model, "magnitude", 0.9)
    return model


@pytest.mark.slow_on_jax
def test_a_packed_saved_model_is_small_and_equal_to_the_bit(tmp_path, rng):
    model = sparse_images()
    done = kprune.export(model, tmp_path / "m", ("saved_model", "saved_model_packed"))
    plain, packed = done.card.entry("saved_model"), done.card.entry("saved_model_packed")
    assert packed.zeros == plain.zeros == kprune.summary(model).zeros and packed.size == plain.size
    assert packed.bytes < 0.6 * plain.bytes
    rows = [(row.path, row.zeros, row.dead_channels) for row in saved.read(done.files["saved_model_packed"]).rows]
    assert sorted(rows) == sorted((r.path, r.zeros, r.dead_channels) for r in saved.read(done.saved_model).rows)
    np.save(tmp_path / "x.npy", rng.normal(size=(5, 8, 8, 2)).astype("float32"))
    ran = new_process("-c", SERVED, done.saved_model, done.files["saved_model_packed"], tmp_path / "x.npy")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow_on_jax
def test_packed_models_beside_each_other_keep_their_own_weights(tmp_path):
    tf, x, models = pytest.importorskip("tensorflow"), np.ones((2, 8, 8, 2), "float32"), []
    for seed in range(2):
        keras.backend.clear_session()  # so that both have the same names
        keras.utils.set_random_seed(seed)
        model = sparse_images()
        done = kprune.export(model, tmp_path / str(seed), "saved_model_packed", verbose=0)
        models.append((model.predict(x, verbose=0), tf.saved_model.load(str(done.files["saved_model_packed"]))))
    for expected, loaded in models:
        np.testing.assert_allclose(loaded.serve(tf.constant(x)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow_on_jax
def test_what_is_not_sparse_is_not_packed(tmp_path):
    model = mlp()
    model.layers[0].kernel.assign(-0.0 * np.asarray(model.layers[0].kernel))  # zeros, half of them with a sign
    done = kprune.export(model, tmp_path / "m", ("saved_model", "saved_model_packed"))
    assert done.card.entry("saved_model_packed").zeros == 8 * 12
    assert "no kernel is large and sparse enough for packing" in str(done.card)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow's graphs take strings")
def test_tables_and_several_inputs_are_packed_too(tmp_path):
    model = text_model()
    model.layers[-1].kernel.assign(np.eye(64, model.output_shape[-1]))
    kprune.prune(model, "magnitude", 0.9)
    assert kprune.export(model, tmp_path / "m", "saved_model_packed", inputs=np.array(["the cat"])).difference == 0.0
    a, b = keras.Input((99,), name="a"), keras.Input((99,), name="b")
    model = keras.Model({"a": a, "b": b}, {"one": layers.Dense(99)(layers.Add()([a, b])), "two": layers.Dense(3)(b)})
    kprune.prune(model, "magnitude", 0.9)
    done = kprune.export(model, tmp_path / "n", ["saved_model_packed", "saved_model"])
    for folder in done.files.values():
        served = __import__("tensorflow").saved_model.load(str(folder)).signatures["serving_default"]
        assert set(served.structured_input_signature[1]) == {"a", "b"} and set(served.structured_outputs) == {
            "one",
            "two",
        }


@pytest.mark.slow_on_jax
def test_a_shrunk_file_is_held_against_the_whole_network(tmp_path):
    model = keras.Sequential([keras.Input((32,)), layers.Dense(64, "relu"), layers.Dense(10)])
    kprune.prune(model, "magnitude", {"dense/": 0.75}, pattern="channel")
    done = kprune.export(model, tmp_path / "m", shrink=True)
    assert keras.models.load_model(done.keras_file, compile=False).layers[0].units == 16
    assert (done.card.parameters, done.card.dense_parameters) == (16 * 33 + 17 * 10, 64 * 33 + 65 * 10)
    assert done.card.flops * 4 == done.card.dense_flops
    assert done.card.entry("saved_model", "dense").size == 4 * done.card.entry("saved_model").size
    assert model.layers[0].units == 64 and len(kprune.masked_weights(model)) == 2
    with pytest.raises(ValueError, match=r"Received: shrink=2"):
        kprune.export(model, tmp_path / "n", shrink=2)
