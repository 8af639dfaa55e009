"""Export's files for LiteRT, ONNX Runtime and OpenVINO: right to the last output, or refused.

Each test takes the packages of one extra, and is skipped without them; `make test-formats` installs them all.
"""

import errno
import importlib.util
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import mlp
from keras import layers
from marks import with_slow

import kprune
from kprune.deploy import interchange
from kprune.deploy.formats import FORMATS
from kprune.deploy.memory import peak_of

pytest.importorskip("tensorflow")


def needs(*packages):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


LITERT, ONNX, OPENVINO = needs("ai_edge_litert"), needs("tf2onnx", "onnx", "onnxruntime"), needs("openvino")
# What is tried is LiteRT's kernels, which know nothing of a backend.
ONCE = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the same on every backend")
EACH = [
    pytest.param("litert", marks=LITERT),
    pytest.param("litert_sparse", marks=LITERT),
    pytest.param("onnx", marks=ONNX),
    pytest.param("openvino", marks=OPENVINO),
]


def wide(sparsity=0.9, inputs=64, units=256, dtype=None):
    """64 -> 256 -> 10, its first kernel sparse."""
    model = keras.Sequential(
        [keras.Input((inputs,)), layers.Dense(units, "relu", dtype=dtype), layers.Dense(10, dtype=dtype)]
    )
    if sparsity:
        kprune.prune(model, "magnitude", {"dense/": sparsity, "dense_1/": 0.5}, scope="uniform")
    return model


def in_blocks(model, block, sparsity=0.9):
    """Give the first kernel zeros in whole blocks (inputs, outputs)."""
    kernel = model.layers[0].kernel
    kept = np.random.default_rng(0).random([n // b for n, b in zip(kernel.shape, block, strict=True)]) >= sparsity
    kernel.assign(np.asarray(kernel) * np.kron(kept, np.ones(block)))
    return model


@pytest.mark.parametrize("format", EACH)
def test_each_file_runs_in_its_own_runtime_and_holds_the_zeros(format, tmp_path):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3)(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(5, "softmax")(layers.Flatten()(x)))
    kprune.prune(model, "magnitude", 0.9)
    done = kprune.export(model, tmp_path / "net", format, verbose=0)
    assert done.difference < 1e-5
    files = {"net.card.json", "net.card.md", *(file.name for file in FORMATS[format].files(done.files[format]))}
    assert {file.name for file in tmp_path.iterdir()} == files
    sparse, dense = done.card.entry(format), done.card.dense_of(done.card.entry(format))
    assert sparse.zeros == kprune.summary(model).zeros and dense.zeros == 0
    assert (
        0 <= sparse.size - (9 * 4 * 16 + 9 * 16 + 576 * 5) <= 16 and dense.size == sparse.size
    )  # a bias as (1, 16, 1, 1)
    assert sparse.milliseconds > 0 and sparse.difference == done.difference
    assert sparse.bytes == sum(file.stat().st_size for file in FORMATS[format].files(done.files[format]))
    assert len(kprune.masked_weights(model)) == 2


@pytest.mark.parametrize("format", [EACH[0], *EACH[2:]])
def test_several_inputs_and_outputs_keep_their_order(format, tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    x = layers.Dense(3)(a) - layers.Dense(3)(b)
    model = keras.Model({"b": b, "a": a}, [x * (i + 1) for i in range(11)])  # "output_10" sorts before "output_2"
    assert kprune.export(model, tmp_path / "m", format, verbose=0).difference < 1e-5


@LITERT
@ONCE
@pytest.mark.parametrize(("inputs", "sparsity"), [(64, 0.9), (62, 0.9), (63, 0.97), (66, 0.99)])
def test_unstructured_sparse_kernels_are_right_or_refused(inputs, sparsity, tmp_path):
    assert_right_or_refused(wide(sparsity, inputs), tmp_path, must=inputs % 4 == 0)


@LITERT
@ONCE
@pytest.mark.parametrize(
    ("dtype", "block"), [("float32", (4, 1)), ("float32", (16, 1)), ("float16", (4, 1)), ("mixed_float16", (4, 1))]
)
def test_sparse_blocks_are_right_or_refused(dtype, block, tmp_path):
    assert_right_or_refused(in_blocks(wide(0, dtype=dtype), block), tmp_path, must=dtype == "float32")


@LITERT
@ONCE
@pytest.mark.parametrize("block", [(16, 1)])
def test_sparse_blocks_of_a_quantized_model_are_right_or_refused(block, tmp_path):
    model = in_blocks(wide(0), block)
    model.quantize("int8")
    assert_right_or_refused(model, tmp_path, must=False)


@LITERT
@ONCE
@pytest.mark.parametrize(("block", "types"), [((4, 1), ["float16"]), ((16, 1), [])])
def test_blocks_of_which_litert_computes_garbage_are_refused(block, types, tmp_path, monkeypatch):
    """NaN from kernels stored in float16, garbage where they are quantized and activations are not; never asked for."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter
    make = converter.from_saved_model

    def from_saved_model(*args, **kwargs):
        made = make(*args, **kwargs)
        convert = made.convert

        def shorter():
            if made.optimizations:  # not the dense one
                made.optimizations = [*made.optimizations, tf.lite.Optimize.DEFAULT]
                made.target_spec.supported_types = [tf.as_dtype(name) for name in types]
            return convert()

        made.convert = shorter
        return made

    monkeypatch.setattr(converter, "from_saved_model", from_saved_model)
    with pytest.raises(RuntimeError, match=r"sparse LiteRT file .*nothing was written.*wrong results without an error"):
        kprune.export(in_blocks(wide(0), block), tmp_path / "m", "litert_sparse", verbose=0)
    assert list(tmp_path.iterdir()) == []


def assert_right_or_refused(model, folder, must):
    """Export either raises and writes nothing, or its file, run by itself on other inputs, is right."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        done = kprune.export(model, folder / "m", "litert_sparse", verbose=0)
    except RuntimeError as refused:
        assert not must and "nothing was written" in str(refused)
        assert list(folder.iterdir()) == []
        return
    x = np.random.default_rng(5).normal(size=(7, *model.input_shape[1:])).astype("float32")
    run = Interpreter(model_path=str(done.files["litert_sparse"])).get_signature_runner("serving_default")
    [actual] = run(**{next(iter(run.get_input_details())): x}).values()
    expected = np.asarray(model(x)).astype("float32")
    close = 1e-4 if model.layers[0].compute_dtype == "float32" else 0.02
    np.testing.assert_allclose(actual.astype("float32"), expected, atol=close * np.abs(expected).max())


@LITERT
@ONCE
def test_blocks_along_the_inputs_make_a_small_file(tmp_path):
    done = kprune.export(in_blocks(wide(0, 256, 256), (4, 1)), tmp_path / "m", ["litert", "litert_sparse"], verbose=0)
    sparse, plain = done.card.entry("litert_sparse"), done.card.entry("litert")
    assert sparse.zeros == plain.zeros and sparse.bytes < 0.25 * plain.bytes


@LITERT
@ONCE
def test_a_file_without_weights_is_refused(tmp_path, monkeypatch):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter

    def from_functions(folder, signature_keys):
        loaded = tf.saved_model.load(folder)
        return converter.from_concrete_functions([loaded.signatures[key] for key in signature_keys])

    monkeypatch.setattr(converter, "from_saved_model", from_functions)
    with pytest.raises(RuntimeError, match="nothing was written"):
        kprune.export(wide(), tmp_path / "m", "litert", verbose=0)
    assert list(tmp_path.iterdir()) == []


@LITERT
@ONCE
def test_8_bit_integers_keep_the_zeros(tmp_path, rng):
    model, x = wide(), rng.normal(size=(40, 64))
    labels = model.predict(x, verbose=0).argmax(-1)
    done = kprune.export(
        model, tmp_path / "m", ["litert", "litert_int8"], representative=x, data=(x, labels), verbose=0
    )
    int8, plain = done.card.entry("litert_int8"), done.card.entry("litert")
    assert int8.zeros >= plain.zeros == kprune.summary(model).zeros and int8.bytes < 0.4 * plain.bytes
    assert 0 < int8.difference < 0.05 and int8.accuracy > 0.9 and done.files["litert_int8"].name == "m.int8.tflite"
    # One hidden unit is so large that 8 bits leave nothing of the others.
    first, last = model.layers
    first.kernel.assign(np.asarray(first.kernel) * np.where(np.arange(256) == 1, 1e5, 1.0))
    last.kernel.assign(np.asarray(last.kernel) * np.where(np.arange(256) == 1, 1e-5, 1.0)[:, None])
    with pytest.raises(RuntimeError, match=r"8-bit LiteRT file and the masked .*`representative`"):
        kprune.export(model, tmp_path / "n", "litert_int8", representative=x, verbose=0)


@pytest.mark.parametrize(
    ("format", "given"), [pytest.param("litert_int8", None, marks=LITERT), ("keras", np.ones((2, 8)))]
)
def test_representative_examples_go_with_8_bit_integers(format, given, tmp_path):
    with pytest.raises(ValueError, match=r"for format='litert_int8'.*Received: format=\('\w+',\), representative="):
        kprune.export(mlp(), tmp_path / "m", format, representative=given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "package", "cure"),
    [
        ("litert_sparse", "ai_edge_litert", r"pip install 'kprune\[litert\]'"),
        ("onnx", "tf2onnx", r"pip install 'kprune\[onnx\]'"),
        ("openvino", "openvino", r"pip install 'kprune\[openvino\]'"),
    ],
)
def test_a_missing_package_is_one_clear_line(format, package, cure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"^format='{format}' requires {package}, which.*{cure}[^\n]*$"):
        kprune.export(mlp(), tmp_path / "m", format)
    assert list(tmp_path.iterdir()) == []


@LITERT
@ONCE
@pytest.mark.parametrize("kind", with_slow(["Bidirectional"], ["LSTM"]))
def test_recurrent_layers_take_batches_of_any_size(kind, tmp_path, rng):
    from ai_edge_litert.interpreter import Interpreter

    layer = layers.LSTM(4) if kind == "LSTM" else layers.Bidirectional(layers.GRU(3, return_sequences=True))
    model = keras.Sequential([keras.Input((3, 2)), layer, layers.Flatten(), layers.Dense(2)])
    kprune.prune(model, "magnitude", 0.5)
    done = kprune.export(model, tmp_path / "m", ["saved_model", "litert"], verbose=0)
    assert done.difference < 1e-5 and done.card.entry("litert").zeros == kprune.summary(model).zeros
    x = rng.normal(size=(7, 3, 2)).astype("float32")
    run = Interpreter(model_path=str(done.files["litert"])).get_signature_runner("serving_default")
    [actual] = run(**{next(iter(run.get_input_details())): x}).values()
    np.testing.assert_allclose(actual, model.predict(x, verbose=0), rtol=1e-4, atol=1e-6)
    assert not any(getattr(part, "unroll", False) for part in (layer, getattr(layer, "forward_layer", layer)))


@LITERT
@ONCE
def test_recurrent_layers_of_any_number_of_steps_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((None, 2)), layers.SimpleRNN(2)])
    with pytest.raises(RuntimeError, match=r"nothing was written.*fix the number of steps"):
        kprune.export(model, tmp_path / "m", "litert", inputs=np.ones((2, 3, 2), "float32"), verbose=0)
    assert list(tmp_path.iterdir()) == []


@LITERT
@ONCE
def test_what_a_converter_cannot_write_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4, 4)), layers.Lambda(keras.ops.linalg.det)])
    with pytest.raises(RuntimeError, match="LiteRT's converter cannot convert this model, so nothing was written"):
        kprune.export(model, tmp_path / "m", "litert", verbose=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="TensorFlow's own graph takes any layer")
@OPENVINO
def test_from_jax_a_layer_of_ones_own_is_refused(tmp_path):
    class Doubled(layers.Layer):
        def call(self, x):
            return 2 * x

    model = keras.Sequential([keras.Input((4,)), Doubled(), layers.Dense(2)])
    with pytest.raises(RuntimeError, match=r"converted from a TensorFlow graph.*Doubled"):
        kprune.export(model, tmp_path / "m", "openvino", verbose=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free, number", [(0, errno.ENOSPC), (2**30, errno.EIO)])
def test_what_openvino_cannot_write_is_an_os_error(free, number, tmp_path, monkeypatch):
    """All that its C++ says, here or in a process of its own, is "iostream error"."""
    cause = "RuntimeError: basic_ios::clear: iostream error"

    def export(*_, **__):
        raise RuntimeError(cause)

    monkeypatch.setattr(interchange.keras_file, "write", lambda *_: None)
    monkeypatch.setattr(interchange.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=cause))
    monkeypatch.setattr(interchange.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(OSError, match=r"net\.xml'$") as caught:
        interchange.write_openvino(SimpleNamespace(export=export), tmp_path / "net.xml", SimpleNamespace(specs={}))
    assert caught.value.errno == number


def test_peak_memory_is_what_the_work_took():
    size, (result, peak) = 50_000_000, peak_of(lambda: np.ones(50_000_000, "uint8").sum())
    assert result == size
    if peak is not None:  # where the system says
        assert 0.9 * size < peak < 1.5 * size
        assert peak_of(lambda: None)[1] < 0.2 * size
