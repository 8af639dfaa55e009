"""Every layer kind that tfmot can wrap: pruned, trained, saved, loaded, trained on, stripped."""

import json
import zipfile

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from helpers import EachBatch, assert_zero, halve
from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry
from tf_keras import layers
from tfk_helpers import assert_same, outputs, pruned_fraction, sequential, wrappers

import kprune
from kprune.report.keras_file import describe
from kprune.report.trusted import check_config

MAX_NORM = tf_keras.constraints.MaxNorm(0.9)


def self_attention(**constraint):
    x, other = tf_keras.Input((5, 4)), layers.Dense(4)
    return tf_keras.Model(x, layers.MultiHeadAttention(2, 3, **constraint)(x, other(x)))


def embedding(**constraint):
    return sequential((5,), layers.Embedding(7, 4, **constraint), layers.Flatten(), layers.Dense(2))


def one(shape, layer, **arguments):
    return lambda **constraint: sequential(shape, layer(**arguments, **constraint), layers.Flatten(), layers.Dense(2))


# name: (model, shape of its input, the layer's argument for the constraint of what is masked)
KINDS = {
    "Dense": (one((4,), layers.Dense, units=6), (4,), "kernel_constraint"),
    "Conv1D": (one((6, 2), layers.Conv1D, filters=3, kernel_size=2), (6, 2), "kernel_constraint"),
    "Conv2D": (one((5, 5, 2), layers.Conv2D, filters=3, kernel_size=2), (5, 5, 2), "kernel_constraint"),
    "Conv3D": (one((3, 3, 3, 2), layers.Conv3D, filters=3, kernel_size=2), (3, 3, 3, 2), "kernel_constraint"),
    "Conv2DTranspose": (
        one((3, 3, 2), layers.Conv2DTranspose, filters=3, kernel_size=2),
        (3, 3, 2),
        "kernel_constraint",
    ),
    "Conv3DTranspose": (
        one((2, 2, 2, 2), layers.Conv3DTranspose, filters=3, kernel_size=2),
        (2, 2, 2, 2),
        "kernel_constraint",
    ),
    "SeparableConv1D": (one((6, 2), layers.SeparableConv1D, filters=4, kernel_size=2), (6, 2), "pointwise_constraint"),
    "SeparableConv2D": (
        one((4, 4, 2), layers.SeparableConv2D, filters=4, kernel_size=2),
        (4, 4, 2),
        "pointwise_constraint",
    ),
    "LocallyConnected1D": (
        one((6, 2), layers.LocallyConnected1D, filters=3, kernel_size=2),
        (6, 2),
        "kernel_constraint",
    ),
    "LocallyConnected2D": (
        one((4, 4, 2), layers.LocallyConnected2D, filters=3, kernel_size=2),
        (4, 4, 2),
        "kernel_constraint",
    ),
    "LSTM": (one((5, 4), layers.LSTM, units=3), (5, 4), "recurrent_constraint"),
    "GRU": (one((5, 4), layers.GRU, units=3), (5, 4), "kernel_constraint"),
    "SimpleRNN": (one((5, 4), layers.SimpleRNN, units=3), (5, 4), "kernel_constraint"),
    "RNN": (
        lambda: sequential((5, 4), layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]), layers.Dense(2)),
        (5, 4),
        None,
    ),
    "MultiHeadAttention": (self_attention, (5, 4), "kernel_constraint"),
    "Embedding": (embedding, None, "embeddings_constraint"),
}
RANK = {"RNN": 5, "LSTM": 3, "GRU": 3, "SimpleRNN": 3, "MultiHeadAttention": 5}


def masked(name, constraint=None):
    """A half pruned model of this kind, the plain one that it was made of, and inputs."""
    make, shape, argument = KINDS[name]
    plain = make(**({argument: constraint} if constraint and argument else {}))
    report = kprune.mask(plain, weights=("kernel", "recurrent_kernel", "pointwise_kernel", "embeddings"))
    assert len(report.masked) == RANK.get(name, 2)
    halve(report.model)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (6, 5)) if shape is None else rng.normal(size=(6, *shape)).astype("float32")
    return report.model, plain, x


def train(model, x, epochs=1, **compile_args):
    check = EachBatch(assert_zero)
    if compile_args or model.optimizer is None:
        model.compile(tf_keras.optimizers.AdamW(0.02, weight_decay=0.1), "mse", **compile_args)
    before = [w.value() for w in kprune.masked_weights(model)]
    y = np.ones((len(x), *model.output_shape[1:]), "float32")
    model.fit(x, y, batch_size=3, epochs=epochs, verbose=0, callbacks=[check])
    assert check.calls == 2 * epochs
    for weight, old in zip(kprune.masked_weights(model), before, strict=True):
        assert (weight.value() != old).any()


def test_every_kind_is_listed():
    weighted = {cls.__name__ for cls, names in PruneRegistry._LAYERS_WEIGHTS_MAP.items() if names}
    assert weighted | {cls.__name__ for cls in PruneRegistry._RNN_LAYERS} == set(KINDS)


# Every kind compiled by XLA here, and eagerly in the next test; TensorFlow's own graphs differ for the RNNs only.
@pytest.mark.parametrize("name, jit", [*((name, True) for name in KINDS), ("LSTM", False), ("GRU", False)])
def test_pruned_entries_are_zero_at_every_batch_end(name, jit):
    model, _, x = masked(name)
    train(model, x, jit_compile=jit)
    assert_zero(model)


@pytest.mark.parametrize("name", KINDS)
def test_saved_loaded_trained_on_and_stripped(name, tmp_path):
    model, plain, x = masked(name, MAX_NORM)
    train(model, x, run_eagerly=True)
    expected = outputs(model, x)
    model.save(tmp_path / "masked.keras")
    check_config(describe(tmp_path / "masked.keras").config, tf_keras)
    loaded = tf_keras.models.load_model(tmp_path / "masked.keras")  # no prune_scope
    assert_same(outputs(loaded, x), expected)
    again = kprune.mask(loaded)
    assert again.model is loaded
    for old, new in zip(kprune.masked_weights(model), kprune.masked_weights(loaded), strict=True):
        assert old.path == new.path
        np.testing.assert_array_equal(old.kept(), new.kept())
        np.testing.assert_array_equal(old.value(), new.value())
    train(loaded, x, run_eagerly=True)
    for kept in (model, loaded):
        expected, fraction = outputs(kept, x), pruned_fraction(kept)
        stripped = kprune.strip(kept)
        assert_same(outputs(stripped, x), expected)
        assert wrappers(stripped) == [] and kprune.masked_weights(stripped) == []
        names = [(w.name, w.shape, type(w.constraint)) for w in plain.weights]
        assert [shape for _, shape, _ in names] == [w.shape for w in stripped.weights]
        assert [type(w.constraint) for w in stripped.weights] == [constraint for *_, constraint in names]
        assert name == "RNN" or any(isinstance(w.constraint, tf_keras.constraints.MaxNorm) for w in stripped.weights)
        assert 0.2 < fraction < 0.8


FORMATS = [
    (name, file, scope)
    for name in ("Conv2D", "LSTM", "MultiHeadAttention")
    for file in ("masked.keras", "masked.h5", "saved_model")
    for scope in ("outside prune_scope", "inside prune_scope")
    if (name, file) != ("MultiHeadAttention", "saved_model")  # loads for predictions only, see below
    if file == "masked.keras" or "outside" in scope
]


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
@pytest.mark.parametrize("name, file, scope", FORMATS)
def test_file_formats(name, file, scope, tmp_path):
    model, _, x = masked(name)
    expected = outputs(model, x)
    model.save(tmp_path / file)
    if "inside" in scope:
        with tfmot.sparsity.keras.prune_scope():
            loaded = tf_keras.models.load_model(tmp_path / file)
    else:
        loaded = tf_keras.models.load_model(tmp_path / file)
    assert_same(outputs(loaded, x), expected)
    kprune.mask(loaded)
    assert [w.path for w in kprune.masked_weights(loaded)] == [w.path for w in kprune.masked_weights(model)]
    assert pruned_fraction(loaded) == pruned_fraction(model)
    train(loaded, x, run_eagerly=True)


def test_a_saved_model_of_masked_attention_predicts(tmp_path):
    model, _, x = masked("MultiHeadAttention")
    model.save(tmp_path / "saved_model")
    loaded = tf_keras.models.load_model(tmp_path / "saved_model")
    assert_same(outputs(loaded, x), outputs(model, x))


@pytest.mark.parametrize("file", ["masked.weights.h5", "checkpoint"])
@pytest.mark.parametrize("name", ["Conv2D", "LSTM", "MultiHeadAttention"])
def test_weights_alone(name, file, tmp_path):
    model, _, x = masked(name)
    model.save_weights(tmp_path / file)
    other, _, _ = masked(name)
    kprune.set_masks(other, {w.path: np.ones(w.shape, bool) for w in kprune.masked_weights(other)})
    other.load_weights(tmp_path / file)
    assert_same(outputs(other, x), outputs(model, x))
    assert pruned_fraction(other) == pruned_fraction(model)
    train(other, x, run_eagerly=True)


def test_what_is_left_out_stays_out_after_loading(tmp_path):
    plain = sequential((5, 4), layers.LSTM(3))
    model = kprune.mask(plain, weights=("kernel",)).model
    halve(model)
    model.save(tmp_path / "masked.keras")
    loaded = tf_keras.models.load_model(tmp_path / "masked.keras")
    assert kprune.mask(loaded).masked == ("lstm/lstm_cell/kernel",)
    assert_zero(loaded)


def test_a_masked_file_needs_only_tfmot(tmp_path):
    """Inside prune_scope; kprune's wrapper goes by tfmot's name and holds tfmot's configuration."""
    model, _, _ = masked("Dense")
    model.save(tmp_path / "masked.keras")
    with zipfile.ZipFile(tmp_path / "masked.keras") as file:
        layer = json.loads(file.read("config.json"))["config"]["layers"][1]
    assert layer["registered_name"] == "PruneLowMagnitude"
    schedule = layer["config"]["pruning_schedule"]
    assert schedule["class_name"] == "ConstantSparsity" and schedule["config"]["begin_step"] == 2**62


def test_a_file_that_tfmot_wrote_goes_on_as_tfmots_until_kprune_takes_over(tmp_path):
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    model = tfmot.sparsity.keras.prune_low_magnitude(one((4,), layers.Dense, units=6)(), pruning_schedule=schedule)
    model.save(tmp_path / "tfmot.keras")
    loaded = tf_keras.models.load_model(tmp_path / "tfmot.keras")
    loaded.compile("sgd", "mse")
    x, update = np.ones((6, 4), "float32"), tfmot.sparsity.keras.UpdatePruningStep()
    loaded.fit(x, np.ones((6, 2)), batch_size=3, verbose=0, callbacks=[update])
    assert pruned_fraction(loaded) == 0.5
    kprune.mask(loaded)
    halve(loaded)
    fraction = pruned_fraction(loaded)
    train(loaded, x)
    assert pruned_fraction(loaded) == fraction
