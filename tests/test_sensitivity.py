"""`kprune.sensitivity`: what it measures, against pruning by hand, and a model that is as it was afterwards."""

import functools
import itertools
import json

import keras
import numpy as np
import pytest
from helpers import data, halve, mlp
from keras import layers
from test_prune import assert_unchanged, snapshot, trained

import kprune
from kprune.experiments.sensitivity import Sensitivity, SensitivityRow
from kprune.util.ranking import zeros_for

pytestmark = pytest.mark.slow_on_jax

CHEAP = dict(jit_compile=keras.backend.backend() == "jax")
SPARSITIES = (0.0, 0.5, 0.9, 0.99)


@pytest.fixture(autouse=True)
def seeded():
    """In place of conftest's: without `clear_session`, which takes longer than most of these tests."""
    keras.utils.set_random_seed(0)


def zeros_by_weight(model):
    return tuple(int((w.value() == 0).sum()) for w in kprune.masked_weights(model))


# What it measures


def test_by_hand():
    inputs = keras.Input((4,), name="inputs")
    x = layers.Dense(1, use_bias=False, name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="second")(x), name="net")
    model.set_weights([np.array([[1.0], [-4.0], [3.0], [2.0]]), np.array([[1.0, 5.0]])])
    ones = np.ones((1, 4), "float32")
    report = kprune.sensitivity(model, lambda m: float(keras.ops.sum(m(ones))), sparsities=(0.5, 0.25), verbose=False)
    # (1 - 4 + 3 + 2) * (1 + 5); of 1, -4, 3, 2 half leaves -4 + 3, a quarter -4 + 3 + 2; of 1, 5 half leaves 5.
    assert report == Sensitivity(
        (
            SensitivityRow("first/kernel", 4, {0.5: -6.0, 0.25: 6.0}),
            SensitivityRow("second/kernel", 2, {0.5: 10.0, 0.25: 12.0}),
        ),
        12.0,
        "value",
    )
    assert report.sparsities == (0.5, 0.25)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "pruned"])
def test_each_weight_is_pruned_alone(masked):
    model, seen = mlp(), []
    if masked:
        kprune.mask(model)
        halve(model)
        before = zeros_by_weight(model)
    else:
        before = (0, 0, 0)

    def look(model):
        assert [w.path for w in kprune.masked_weights(model)] == paths
        for w in kprune.masked_weights(model):
            np.testing.assert_array_equal(w.value() == 0, ~w.kept())
        seen.append(zeros_by_weight(model))
        return len(seen)

    paths = [v.path for v in model.trainable_variables if v.name == "kernel"]
    report = kprune.sensitivity(model, look, (0.3, 0.9), verbose=False)
    expected = [before]
    for sparsity, i in itertools.product((0.3, 0.9), range(3)):
        expected.append(
            tuple(max(n, zeros_for((96, 144, 36)[j], sparsity)) if j == i else n for j, n in enumerate(before))
        )
    assert seen == expected
    assert report.dense == 1.0 and [row.values for row in report.rows] == [{0.3: k, 0.9: k + 3} for k in (2, 3, 4)]
    assert [(row.path, row.size) for row in report.rows] == list(zip(paths, (96, 144, 36), strict=True))


@pytest.fixture(scope="module")
def digits():
    """(a small network that knows the digits, test images, test labels)"""
    keras.utils.set_random_seed(0)
    loaded = kprune.data.load("digits")
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(inputs)
    # What `idle` says reaches the classifier only by a factor of 1e-6.
    useful, idle = layers.Dense(32, "relu", name="useful")(x), layers.Dense(32, "tanh", name="idle")(x)
    x = layers.Add()([useful, layers.Rescaling(1e-6)(idle)])
    model = keras.Model(inputs, layers.Dense(10, name="classifier")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["sparse_categorical_accuracy", "accuracy"], **CHEAP)
    model.fit(*loaded.train, epochs=12, verbose=0)
    return model, *loaded.test


@pytest.mark.slow
def test_digits_rank_sensibly_and_as_pruned_by_hand(digits):
    model, x, y = digits
    before = snapshot(model)
    report = kprune.sensitivity(model, (x, y), SPARSITIES, verbose=False)
    assert_unchanged(model, before)
    assert report.metric == "sparse_categorical_accuracy"
    assert report.dense > 0.9
    rows = {row.path.split("/")[-2]: row for row in report.rows}
    assert set(rows) == {"useful", "idle", "classifier"}
    assert set(rows["idle"].values.values()) == {report.dense}
    for name in ("useful", "classifier"):
        values = list(rows[name].values.values())
        assert values[0] == report.dense and values[1] > report.dense - 0.1 and values[3] < report.dense - 0.3
    # The same by kprune.prune, which knows nothing of this scan.
    for name, sparsity in itertools.product(rows, SPARSITIES):
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
        kprune.mask(other, filters=name)
        kprune.prune(other, "magnitude", sparsity, verbose=False)
        accuracy = np.mean(np.argmax(other.predict(x, verbose=0), axis=1) == y)
        assert rows[name].values[sparsity] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
def test_all_kinds_of_data_say_the_same(digits):
    import tensorflow as tf

    model, x, y = digits
    model = keras.models.clone_model(model)
    model.set_weights(digits[0].get_weights())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"], **CHEAP)
    x, y = x[:96], y[:96]
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 96, 32)]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return batches[i]

    def by_hand(model):
        return np.mean(np.argmax(model.predict_on_batch(x), axis=1) == y)

    reports = [
        kprune.sensitivity(model, evaluate, (0.9,), verbose=False)
        for evaluate in (
            (x, y),
            (x, y, np.ones(96)),
            batches,
            Batches(),
            tf.data.Dataset.from_tensor_slices((x, y)).batch(32),
            by_hand,
        )
    ]
    assert [report.metric for report in reports] == ["accuracy"] * 5 + ["by_hand"]
    for report in reports:
        assert report.dense == pytest.approx(reports[0].dense, abs=1e-6)
        for row, first in zip(report.rows, reports[0].rows, strict=True):
            assert row.values[0.9] == pytest.approx(first.values[0.9], abs=1e-6)


def test_the_first_compiled_metric_counts_not_the_first_by_name():
    model = mlp()
    model.compile("sgd", "mse", metrics=["mse", "mae"])
    x, y = data()
    report = kprune.sensitivity(model, (x, y), (0.5,), verbose=False)
    assert report.metric in ("mse", "mean_squared_error")
    assert report.dense == pytest.approx(np.mean((model.predict(x, verbose=0) - y) ** 2), rel=1e-5)


@pytest.mark.parametrize("criterion", ["random", "synflow"])
def test_the_criterion_is_asked_once(criterion):
    model, calls = mlp(), []

    def counting(context):
        calls.append(zeros_by_weight(context.model))
        return kprune.criteria.CRITERIA.get(criterion)(context)

    seen = []
    kprune.sensitivity(model, lambda m: seen.append(zeros_by_weight(m)) or 0.0, (0.5, 0.75), criterion=counting, seed=3)
    assert calls == [(0, 0, 0)]
    assert seen[1:] == [(48, 0, 0), (0, 72, 0), (0, 0, 18), (72, 0, 0), (0, 108, 0), (0, 0, 27)]


def test_the_seed_and_the_pattern_are_passed_on():
    def first_entries(score, n_keep):
        return (np.arange(score.size) < n_keep).reshape(score.shape)

    def masks(**arguments):
        found = []
        kprune.sensitivity(
            model, lambda m: found.append([w.kept() for w in kprune.masked_weights(m)]) or 0, (0.5,), **arguments
        )
        return np.concatenate([mask.ravel() for mask in found[1]])

    model = mlp()
    one, again, other = (masks(criterion="random", seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    np.testing.assert_array_equal(masks(pattern=first_entries)[:96], np.arange(96) < 48)


# The model afterwards


class Broken(Exception):
    pass


def breaking_at(call):
    """An `evaluate` that spoils what it can and raises in its n-th call."""
    calls = []

    def evaluate(model):
        calls.append(1)
        model(np.ones((2, 8), "float32"), training=True)  # draws from the seed generator, moves the statistics
        model.evaluate(*data(), verbose=0)
        if len(calls) == call:
            raise Broken
        return 0.5

    return evaluate


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "pruned"])
@pytest.mark.parametrize("call", [0, 1, 5], ids=["never", "at once", "in the middle"])
def test_the_model_is_as_it_was(call, masked):
    model = trained(**CHEAP)
    if masked:
        kprune.prune(model, "random", 0.4)
        model.fit(*data(), batch_size=16, verbose=0)
    before, x = snapshot(model), data()[0]
    outputs = np.asarray(model(x))
    if call:
        with pytest.raises(Broken):
            kprune.sensitivity(model, breaking_at(call), (0.5, 0.9), verbose=False)
    else:
        kprune.sensitivity(model, breaking_at(0), (0.5, 0.9), verbose=False)
    assert_unchanged(model, before)
    assert bool(kprune.masked_weights(model)) == masked
    np.testing.assert_array_equal(np.asarray(model(x)), outputs)
    model.fit(*data(), batch_size=16, verbose=0)  # and it trains on


def test_the_model_is_as_it_was_when_the_data_raise_in_the_middle_of_an_evaluation():
    # JAX takes the variables' values away from the model while it evaluates.
    model, passes = trained(**CHEAP), []
    x, y = data()

    class Fails(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            if i == 0:
                passes.append(1)
            if len(passes) >= 3 and i == 2:
                raise Broken
            return x[:8], y[:8]

    before = snapshot(model)
    with pytest.raises(Exception):  # noqa: B017  # TensorFlow wraps it
        kprune.sensitivity(model, Fails(), (0.5, 0.9), verbose=False)
    assert len(passes) >= 3
    assert_unchanged(model, before)
    assert kprune.masked_weights(model) == []
    model.fit(x, y, batch_size=16, verbose=0)


def test_metrics_that_the_scan_makes_are_left_empty():
    model = mlp()
    model.compile("sgd", "mse", metrics=["mae"], **CHEAP)
    kprune.sensitivity(model, data(), (0.5,), verbose=False)
    assert len(model.metrics_variables) >= 4
    assert all(float(v.numpy()) == 0 for v in model.metrics_variables)


def test_a_masked_model_is_not_compiled_again():
    traces = []

    class Counting(layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), Counting(), layers.Dense(3)])
    kprune.mask(model)
    model.compile("sgd", "mse", metrics=["mae"], **CHEAP)
    x, y = data()
    model.evaluate(x, y, verbose=0)
    before = len(traces)
    report = kprune.sensitivity(model, (x, y), (0.5, 0.9), verbose=False)
    assert len(traces) == before
    assert len({value for row in report.rows for value in row.values.values()}) == 4  # the masks were seen


# What is refused


@functools.cache
def unchanged():
    """A trained model, made once: the test that shares it holds that it does not change."""
    return trained(**CHEAP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sparsities=0.5), r"Received: sparsities=0.5$"),
        (dict(sparsities=()), r"Received: sparsities=\[\]$"),
        (dict(sparsities=(0.5, 0.5)), r"Received: sparsities=\[0.5, 0.5\]$"),
        (dict(sparsities=(0.5, 1.0)), r"Received: sparsity=1.0$"),
        (dict(sparsities="0.5"), r"Received: sparsities='0.5'$"),
        (dict(criterion="magnitud"), r"Received: criterion='magnitud'$"),
        (dict(criterion="movement"), r"Received: criterion='movement'$"),
        (dict(criterion="large_init"), r"Received: criterion='large_init'$"),
        (dict(pattern="magnitude"), r"Received: pattern='magnitude'$"),
        (dict(seed=-1), r"Received: seed=-1$"),
        (dict(evaluate=None), r"Received: evaluate=None$"),
        (dict(evaluate="accuracy"), r"Received: evaluate='accuracy'$"),
        (dict(evaluate=(1,)), r"Received: length=1$"),
        (dict(evaluate=iter([data()])), r"read more than once.*Received: evaluate=<list_iterator"),
        (dict(evaluate=lambda model: "0.5"), r"Received: evaluate=<lambda>, result='0.5'$"),
        (dict(evaluate=lambda model: {"accuracy": 0.5}), r"Received: evaluate=<lambda>, result=\{"),
        (dict(evaluate=lambda model: None), r"Received: evaluate=<lambda>, result=None$"),
        (
            dict(criterion=lambda context: {w.path: np.full(w.shape, np.nan) for w in context.weights}),
            r"infinite or NaN",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    model = unchanged()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        kprune.sensitivity(model, **{"evaluate": lambda model: 0.5, "verbose": False, **arguments})
    assert_unchanged(model, before)
    assert kprune.masked_weights(model) == []


def test_a_model_that_cannot_tell_its_metric():
    model = mlp()
    with pytest.raises(ValueError, match=rf"Received: model='{model.name}'$"):
        kprune.sensitivity(model, data())
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=rf"no metric.*Received: model='{model.name}', metrics=\['loss'\]$"):
        kprune.sensitivity(model, data())
    assert kprune.masked_weights(model) == []
    two = keras.Model(model.inputs, {"a": model.outputs[0], "b": layers.Dense(1)(model.outputs[0])})
    two.compile("sgd", {"a": "mse", "b": "mse"})  # whose losses are reported as metrics
    x, y = data()
    with pytest.raises(ValueError, match="no metric besides the loss"):
        kprune.sensitivity(two, (x, {"a": y, "b": y[:, :1]}))


def test_a_model_with_nothing_to_prune():
    model = keras.Sequential([keras.Input((8,)), layers.Activation("relu")])
    with pytest.raises(ValueError, match="no weights that can be masked"):
        kprune.sensitivity(model, lambda model: 0.5)


# The report

REPORT = Sensitivity(
    (
        SensitivityRow("net/first/kernel", 12345, {0.5: 0.96, 0.99: 0.125}),
        SensitivityRow("net/second/kernel", 10, {0.5: 0.97, 0.99: float("nan")}),
    ),
    0.975,
    "accuracy",
)


def test_the_table():
    assert str(REPORT).splitlines() == [
        " weight                size      0.5     0.99",
        " --------------------------------------------",
        " net/first/kernel    12,345   0.9600   0.1250",
        " net/second/kernel       10   0.9700      nan",
        "accuracy with only that weight pruned to that sparsity; the unchanged model has 0.9750",
    ]


def test_the_report_as_a_dict():
    report = REPORT.to_dict()
    assert list(report) == ["metric", "dense", "sparsities", "rows"]
    assert report["sparsities"] == [0.5, 0.99]
    assert report["rows"][0] == {"path": "net/first/kernel", "size": 12345, "values": [0.96, 0.125]}
    json.dumps(report)


def test_the_figure(tmp_path):
    figure = REPORT.plot(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.96", "0.125", "0.97", "nan"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first/kernel", "second/kernel"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "0.99"]
    assert figure.get_suptitle() == "accuracy; the unchanged model has 0.975"
    assert figure.axes[1].get_ylabel() == "accuracy"  # of the color bar
    np.testing.assert_array_equal(axes.images[0].get_array()[0], [0.96, 0.125])
    with pytest.raises(ValueError, match=r"Received: path='scan.jpeg'$"):
        REPORT.plot("scan.jpeg")
    one = Sensitivity((SensitivityRow("a", 1, {0.5: 1.0}),), 1.0, "accuracy")
    assert one.plot()  # nothing to span the colors
