"""`.keras` files of Keras 3: what may be loaded, what is refused unread, and which error says so."""

from pathlib import Path

import keras
import numpy as np
import pytest
from crafted import entry, hostile, layer, parts_of, sequential, write
from keras import layers
from reviewed_layers import KERAS, loadable

import kprune
from kprune.report import saved
from kprune.report.trusted import check_config


@keras.saving.register_keras_serializable("kprune_tests")
class Tripled(layers.Layer):
    def call(self, x):
        return 3.0 * x


@keras.saving.register_keras_serializable("kprune_tests")
def raised(x):
    return x + 1.0


def network():
    """Functional, with operations, a nested model, functions and classes of the user's own, and a mixed policy."""
    x = keras.Input((4,))
    y = keras.ops.concatenate([keras.ops.relu(x)[:, 1:3], x * 2.0, keras.ops.mean(x, axis=-1, keepdims=True)], axis=-1)
    inner = keras.Sequential([keras.Input((7,)), layers.Dense(5, raised, kernel_regularizer="l2", name="inner")])
    drawn = keras.initializers.RandomNormal(seed=keras.random.SeedGenerator(1))
    y = layers.Dense(4, kernel_initializer=drawn)(Tripled()(layers.Dropout(0.1)(inner(y))))
    y = layers.Dense(3, keras.ops.tanh, dtype="mixed_float16", kernel_initializer=keras.initializers.Constant(0.5))(y)
    return keras.Model(x, layers.LeakyReLU()(y))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.keras"
    keras.Sequential([keras.Input((4,)), layers.Dense(3)]).save(path)
    return path


def refusal(file):
    with pytest.raises(ValueError) as caught:
        saved.load(file)
    words = str(caught.value)
    assert words.startswith("This .keras file cannot be loaded: ") and len(words) < 800
    assert words.endswith(f"Received: path={str(file)!r}")
    return words


def test_an_honest_file_loads(tmp_path):
    model = network()
    kprune.mask(model)
    kprune.prune(model, "magnitude", 0.5)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 5)), "mse", metrics=["mae"])
    model.save(tmp_path / "model.keras")
    loaded = saved.load(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert saved.read(tmp_path / "model.keras").zeros == kprune.summary(model).zeros


@pytest.mark.one_session
@pytest.mark.parametrize("kind", sorted(hostile(Path("/mark"), "x")))
def test_what_runs_in_tf_keras_is_refused_here_too(kind):
    with pytest.raises(ValueError, match=r"(in|at the top of) config\.json, "):
        check_config(hostile(Path("/mark"), "x")[kind], keras)


@pytest.mark.one_session
@pytest.mark.parametrize(
    "config, words",
    [
        (layer("Lambda", function="x"), "a 'Lambda' layer contains arbitrary code"),
        (layer("TFSMLayer", filepath="x"), "a 'TFSMLayer' layer runs another SavedModel"),
        (
            layer("FlaxLayer"),
            "a 'JaxLayer' layer contains arbitrary code|a 'FlaxLayer' layer contains arbitrary code",
        ),
        (layer("TorchModuleWrapper", module={"class_name": "__bytes__", "value": "x"}), "contains a pickled object"),
        (entry("keras.utils", "FeatureSpace"), "a 'FeatureSpace' layer reads other files"),
        (layer("StringLookup", vocabulary="/etc/passwd"), "reads its vocabulary from another file, '/etc/passwd'"),
        (layer("TextVectorization", vocabulary="gs://x"), "reads its vocabulary from another file"),
        (entry(None, "__lambda__", {"value": ["x", None, None]}), "'__lambda__' is unknown"),
        (entry("builtins", "__typespec__", [], spec_name="x"), "is unknown"),
        (entry("builtins", "function", "exec"), "'builtins.exec' is unknown"),
        (entry("builtins", "function", "exec", registered_name="builtins>exec"), "is unknown"),
        (entry("keras.config", "function", "enable_unsafe_deserialization"), "cannot be part of a model"),
        (entry("keras.models", "function", "load_model"), "cannot be part of a model"),
        (entry("keras.activations", "function", "deserialize"), "cannot be part of a model"),
        (entry("keras.utils", "get_file"), "cannot be part of a model"),
        (entry("keras․layers", "Dense"), "is unknown"),  # noqa: RUF001  # a dot that is none
        (entry("keras.layers", "Dеnse"), "is unknown"),  # noqa: RUF001  # a Cyrillic e
        (entry("keras.layers", "Dense", registered_name="kprune_tests>Tripled"), "the name of another class"),
        (entry("keras.layers", "Lambda", registered_name="kprune>Masked"), "contains arbitrary code"),
        (entry("keras.initializers", "Lambda", registered_name="Zeros"), "contains arbitrary code"),
        (entry("keras.src.layers.core.lambda_layer", "Lambda"), "contains arbitrary code"),
        (entry("pathlib", "Path"), "'pathlib.Path' cannot be part of a model"),
        (entry("keras.layers", "Layer.from_config"), "is unknown"),
        (entry(["keras"], "Dense"), "is not a string"),
        (entry("keras.layers", {"class_name": "Dense"}), "is not a string"),
        (entry("keras.layers", "function", {"a": 1}), "a function has no name"),
        (entry(None, "__numpy__", "x"), "has an unknown dtype"),
        (entry("keras", "function", "kprune_tests>Tripled"), "cannot be part of a model"),
        (entry("keras.activations", "function", "relu", registered_name="get"), "cannot be part of a model"),
        (entry("hostile", "function", "relu", registered_name="relu"), "is unknown"),
        (entry(None, "__numpy__", {"value": 1, "dtype": "V1000000000"}), "has an unknown dtype"),
    ],
)
def test_refused(config, words):
    with pytest.raises(ValueError, match=rf"^in config\.json, at config\.layers\.1, .*({words})"):
        check_config(sequential(config), keras)
    masked = layer("Dense", units=3, kprune={**config, "masked": [0], "weights": 2})
    with pytest.raises(ValueError, match=r"(in|at the top of) config\.json, "):
        check_config(sequential(masked), keras)


TENSOR = {"class_name": "__keras_tensor__", "config": {"keras_history": ["x", 0, 0]}}
ONE = {"class_name": "__numpy__", "config": {"value": [1.0], "dtype": "float32"}}


@pytest.mark.one_session
@pytest.mark.parametrize(
    "node, refused",
    [
        ({"args": [ONE], "kwargs": {}}, True),
        ({"args": [{**ONE, "more": TENSOR}], "kwargs": {}}, True),
        ({"args": [{"class_name": "__numpy__", "config": {**ONE["config"], "x": TENSOR}}], "kwargs": {}}, True),
        ({"args": [ONE], "kwargs": {"x": {"class_name": "__slice__", "config": {"start": TENSOR}}}}, True),
        ({"args": [["a", "b", "c"]], "kwargs": {}}, True),
        ({"args": [ONE], "kwargs": {}, "more": TENSOR}, True),
        ([["_CONSTANT_VALUE", -1, ["a", "b", "c"], {}]], True),
        ([["_CONSTANT_VALUE", -1, 1.0, {"x": {**TENSOR, "config": {}}}]], True),
        ([], True),
        ({"args": [ONE, [TENSOR]], "kwargs": {}}, False),
        ({"args": [ONE], "kwargs": {"x": {"y": [TENSOR]}}}, False),
        ([["_CONSTANT_VALUE", -1, 1.0, {"x": [["net", 0, 0]]}]], False),
        ([["net", 0, 0, {}]], False),
    ],
)
def test_a_tensor_that_is_taken_for_a_constant_hides_no_operation(node, refused):
    """With constants only, the operation would be computed as the file is loaded, at any size that it asks for."""
    tile = entry("keras.src.ops.numpy", "Tile", {"repeats": [10**10]}, inbound_nodes=[node])
    if refused:
        with pytest.raises(
            ValueError,
            match=r"'keras\.src\.ops\.numpy\.Tile' is called on constants only, without an input of the model$",
        ):
            check_config(sequential(tile), keras)
    else:
        check_config(sequential(tile), keras)


@pytest.mark.parametrize("nest", [lambda x: [x], lambda x: {"config": x}, lambda x: {"kprune": x, "config": x}])
def test_nesting_without_end(nest, plain, tmp_path):
    config = 0
    for _ in range(900):
        config = nest(config)
    with pytest.raises(ValueError, match=r"nested more than 200 levels deep|is not a string"):
        check_config(sequential(config), keras)
    text = b'{"class_name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert "nested too deep" in refusal(write(tmp_path / "deep.keras", parts_of(plain), **{"config.json": text}))


@pytest.mark.one_session
def test_every_layer_that_a_file_may_name_has_been_looked_at():
    found = {layer.__name__ for layer in loadable(keras)}
    assert len(found) > 140 and found <= KERAS, "look at what the others do with their config, see reviewed_layers.py"
