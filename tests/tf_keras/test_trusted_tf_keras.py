"""Files of tf_keras that would run code when loaded: each does so in tf_keras, and kprune refuses it unread."""

import contextlib
import importlib
import json
import pathlib
import re
import resource
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from crafted import entry, functional, hostile, layer, operation, parts_of, rewrite, write
from crafted import sequential as described
from reviewed_layers import TF_KERAS, loadable
from tensorflow.python.util import tf_export
from tf_keras import layers
from tfk_helpers import assert_same, mlp, outputs, sequential

from kprune.cli import main as cli
from kprune.report import operations, saved, trusted


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that hostile configs make, and beside it the module that makes it as it is imported."""
    mark = tmp_path / "mark"
    mark.with_name("source").write_text("x")
    (tmp_path / "hostile_module.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield mark
    sys.modules.pop("hostile_module", None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.keras"
    tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3)]).save(path)
    return path


@pytest.mark.parametrize("kind", sorted(hostile(pathlib.Path("/mark"), "x")))
def test_nothing_in_a_file_runs(kind, mark, plain, tmp_path, capsys):
    file = rewrite(tmp_path / "model.keras", plain, hostile(mark, "hostile_module")[kind])
    with pytest.raises(
        ValueError, match=r"^This \.keras file cannot be loaded: (in|at the top of) config\.json, "
    ) as caught:
        saved.load(file)
    assert str(caught.value).endswith(f"Received: path='{file}'") and len(str(caught.value)) < 800
    assert cli.main(["inspect", str(file)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not mark.exists() and "hostile_module" not in sys.modules
    # The same file, given to tf_keras as it is: so the refusal is of something that runs.
    with contextlib.suppress(Exception), tfmot.sparsity.keras.prune_scope():
        tf_keras.models.load_model(file, compile=False)
    assert mark.exists()


@pytest.mark.one_session
@pytest.mark.parametrize(
    "kind, words",
    [
        ("a layer that is os.system", "'os.system' cannot be part of a model"),
        ("get_file as a layer", "'keras.utils.get_file' cannot be part of a model"),
        ("get_file by a name with dots", "'keras.utils.get_file' is unknown"),
        ("an operation that writes", "TFOpLambda' runs 'io.write_file', which is not a pure operation"),
        ("an operation that writes, said to slice", "SlicingOpLambda' runs 'io.write_file', which"),
        ("a method of a class", "ClassMethod' calls 'io.TFRecordWriter'.'__call__'"),
        (
            "an initializer",
            "in config.json, at config.layers.1.config.kernel_initializer, 'x.anything' is unknown",
        ),
        ("a type", "in config.json, at config.layers.1.config.type_spec, 'x.__typespec__' is unknown"),
    ],
)
def test_the_reason(kind, words):
    with pytest.raises(ValueError, match=re.escape(words)), tfmot.sparsity.keras.prune_scope():
        trusted.check_config(hostile(pathlib.Path("/mark"), "x")[kind], tf_keras)


def test_a_masked_layer_of_keras_3_is_none_here(plain, tmp_path):
    masked = entry(
        "kprune.masks.masked_layers",
        "Masked",
        {"units": 3, "kprune": {"class_name": "Dense", "masked": [], "weights": 2}},
    )
    with pytest.raises(ValueError, match=r"'kprune\.masks\.masked_layers\.Masked' cannot be part of a model"):
        saved.load(rewrite(tmp_path / "masked.keras", plain, described(masked)))


def test_two_files_in_one(mark, plain, tmp_path, monkeypatch):
    """An HDF5 file with a harmless .keras file behind it: by the ending .h5, tf_keras reads the other."""
    monkeypatch.chdir(tmp_path)  # where the layer writes, as it is called
    legacy = tmp_path / "legacy.h5"
    hidden = layers.Lambda(lambda x: (open("mark", "w").close(), x)[1])
    tf_keras.Sequential([tf_keras.Input((4,)), hidden]).save(legacy)
    file = tmp_path / "model.h5"
    file.write_bytes(legacy.read_bytes() + plain.read_bytes())
    mark.unlink()
    with pytest.raises(ValueError, match=r"^The path must be a \.keras file"):
        saved.load(file)
    assert not mark.exists()
    tf_keras.models.load_model(file, compile=False)
    assert mark.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        layer("Dense", units=40_000_000),  # a kernel of 640 MB
        layer("Embedding", input_dim=40_000_000, output_dim=4),
        layer("InputLayer", batch_input_shape=[None, 200_000_000], dtype="float32", name="wide"),
    ],
    ids=lambda config: config["class_name"],
)
def test_layers_that_ask_for_more_than_the_weights_need(hostile, plain, tmp_path):
    config = described(hostile, layer("Dense", units=1))
    if hostile["class_name"] == "InputLayer":
        del config["config"]["layers"][0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="more than the file contains"):
        saved.load(rewrite(tmp_path / "huge.keras", plain, config))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10  # kilobytes


@pytest.mark.parametrize(
    "hostile, words",
    [
        (operation("TFOpLambda", function="split") | {"rest": {"num_or_size_splits": 10**5, "axis": 1}}, "100,000"),
        (operation("TFOpLambda", function="unstack") | {"rest": {"axis": 1}}, "100,000"),
        (operation("TFOpLambda", function="compat.v1.unstack") | {"rest": {"axis": -1}}, "100,000"),
        (operation("TFOpLambda", function="keras.backend.repeat_elements") | {"rest": {"rep": 3, "axis": 1}}, "300,"),
        (layer("LSTM", units=1, unroll=True, name="called") | {"shape": [None, 5000, 1], "rest": {}}, "5,000 steps"),
    ],
    ids=["split", "unstack", "compat unstack", "repeat_elements", "LSTM"],
)
def test_what_is_split_or_unrolled_into_too_much(hostile, words, plain, tmp_path):
    shape, rest = hostile.pop("shape", [None, 100_000]), hostile.pop("rest")
    config = functional(hostile, 0)
    inputs, called = config["config"]["layers"]
    inputs["config"]["batch_input_shape"] = shape
    called["inbound_nodes"] = [["inputs", 0, 0, rest]] if "function" in called["config"] else [[["inputs", 0, 0, {}]]]
    with pytest.raises(ValueError, match=words):
        saved.load(rewrite(tmp_path / "split.keras", plain, config))


def test_operations_on_constants_alone_are_not_computed(plain, tmp_path):
    tiled = functional(operation("TFOpLambda", function="tile"), [0.0], multiples=[10**8])
    with pytest.raises(ValueError, match=r"TFOpLambda' is called on constants only"):
        saved.load(rewrite(tmp_path / "tiled.keras", plain, tiled))


def test_a_constant_that_looks_like_a_tensor_is_none(plain, tmp_path):
    tiled = functional(operation("TFOpLambda", function="tile"), ["inputs", "0", "0"], multiples=[10**8])
    with pytest.raises(ValueError, match=r"TFOpLambda' is called on constants only"):
        saved.load(rewrite(tmp_path / "tiled.keras", plain, tiled))


def connected(*nodes):
    """A model of an input and a Dense layer with these inbound nodes."""
    config = functional(layer("Dense", units=3), 0)
    config["config"]["layers"][1]["inbound_nodes"] = list(nodes)
    return config


@pytest.mark.private_api
@pytest.mark.parametrize("nodes", [[[["called", 0, 0, {}]]], [[["inputs", 0, 0, {}]], [["called", 5, 0, {}]]]])
def test_layers_that_wait_for_each_other_come_to_an_end(nodes, plain, tmp_path):
    with pytest.raises(ValueError, match=r"they wait for each other's outputs"):
        saved.load(rewrite(tmp_path / "loop.keras", plain, connected(*nodes)))


def test_layers_are_put_together_in_any_order(plain, tmp_path):
    """Last layer first, so that each round connects one: as many rounds as there are nodes."""
    x = y = tf_keras.Input((4,))
    for _ in range(9):
        y = layers.Dense(4)(y)
    tf_keras.Model(x, y).save(tmp_path / "model.keras")
    config = json.loads(parts_of(tmp_path / "model.keras")["config.json"])
    config["config"]["layers"].reverse()
    file = write(tmp_path / "turned.keras", parts_of(tmp_path / "model.keras"), **{"config.json": config})
    assert len(saved.load(file).layers) == 10


@tf_keras.saving.register_keras_serializable("kprune_tests")
class Doubled(layers.Layer):
    def call(self, x):
        return 2.0 * x


@tf_keras.saving.register_keras_serializable("kprune_tests")
def shifted(x):
    return x + 1.0


@tf_keras.saving.register_keras_serializable("kprune_tests")
class Net(tf_keras.Model):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units, self.dense = units, layers.Dense(units, shifted)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {"units": self.units}


def with_operations():
    """Every way in which tf_keras saves operations of TensorFlow; activations, initializers and a mixed policy."""
    x = tf_keras.Input((4,))
    y = tf.concat([x[:, 1:3], tf.nn.relu(x) * 2.0 + x, tf.cast(x > 0, "float32")], axis=-1)
    y = layers.Dense(4, tf.nn.relu6, dtype="mixed_float16", kernel_initializer=tf_keras.initializers.Constant(0.1))(y)
    y = tf.reshape(tf.transpose(tf.stack([y, y], 1), (0, 2, 1)), (-1, 8)) / tf.reduce_sum(y, -1, keepdims=True)
    y = layers.Dense(3, shifted, kernel_regularizer="l2", bias_constraint="non_neg")(Doubled()(y))
    return tf_keras.Model(x, [y, tf_keras.activations.relu(y)])


def nested():
    inner = sequential((4,), layers.Dense(5, "relu", kernel_initializer=tf_keras.initializers.Orthogonal(seed=1)))
    inner.compile("sgd", "mse")
    rnn = layers.Bidirectional(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]))
    return sequential((3, 4), layers.TimeDistributed(inner), rnn, layers.BatchNormalization(), layers.Softmax())


def pruned_by_tfmot():
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.1, 0.5, 0, 10)
    return tfmot.sparsity.keras.prune_low_magnitude(mlp(), pruning_schedule=schedule, sparsity_m_by_n=None)


def subclassed():
    model = Net(3)
    model(np.ones((1, 4), "float32"))
    return model


@pytest.mark.parametrize("make", [with_operations, nested, pruned_by_tfmot, subclassed, mlp])
def test_honest_files_load(make, tmp_path):
    model = make()
    model.compile(tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)), "mse")
    model.save(tmp_path / "model.keras")
    loaded = saved.load(tmp_path / "model.keras")
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]) if make is not subclassed else (2, 4))
    assert_same(outputs(loaded, x.astype("float32")), outputs(model, x.astype("float32")))


def test_a_class_that_is_not_registered_is_named_with_the_cure(tmp_path):
    class Unknown(layers.Layer):
        pass

    sequential((4,), Unknown(name="mine")).save(tmp_path / "model.keras")
    cure = "registered with `tf_keras.saving.register_keras_serializable()`"
    with pytest.raises(ValueError, match=re.escape(cure)) as caught:
        saved.load(tmp_path / "model.keras")
    assert "in config.json, at config.layers.1, 'test_trusted_tf_keras.Unknown' is unknown" in str(caught.value)


@pytest.mark.one_session
def test_an_exported_name_is_what_stands_under_that_name_in_the_library():
    """tf_keras looks names up in a table of its own, `check_config` in the library itself: the two agree."""
    exported = {name: thing for name, thing in tf_export._NAME_TO_SYMBOL_MAPPING.items() if name.startswith("keras.")}
    assert len(exported) > 500
    for name, thing in exported.items():
        module, _, last = name.rpartition(".")
        for found in trusted._lookup(last, module, False, tf_keras):
            assert found is thing, name


@pytest.mark.one_session
def test_operations_are_named_as_in_tensorflow():
    """Each listed name is that of a function or property of TensorFlow; a misspelled one would refuse honest files."""
    missing = {
        name
        for name in operations._NAMES
        if tf_export.get_symbol_from_name(name) is None and not hasattr(tf.RaggedTensor, name.rpartition(".")[2])
    }
    assert missing <= {"RaggedTensor.dense_shape", "RaggedTensor.indices"}  # a SparseTensor's


@pytest.mark.one_session
def test_every_layer_that_a_file_may_name_has_been_looked_at():
    found = {layer.__name__ for layer in loadable(tf_keras)}
    assert len(found) > 200 and found <= TF_KERAS, (
        "look at what the others do with their config, see reviewed_layers.py"
    )
