"""kprune.mask on tf_keras: what is wrapped, what is skipped and why, and models that the user wrapped with tfmot."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from helpers import EachBatch, assert_zero, data, halve
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper
from tf_keras import layers
from tfk_helpers import assert_same, mlp, outputs, sequential, wrappers

import kprune
from kprune.masks import Library, library_of

SERIES = np.random.default_rng(0).normal(size=(6, 5, 4)).astype("float32")
SERIES[:, 3:] = 0
IDS = np.random.default_rng(0).integers(0, 3, (6, 5))


def functional():
    x = tf_keras.Input((5, 4))
    y = layers.BatchNormalization()(layers.Conv1D(3, 2, activation="relu")(x))
    return tf_keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))


def nested():
    inner = sequential((5, 4), layers.Dense(4), layers.ReLU())
    x = tf_keras.Input((5, 4))
    return tf_keras.Model(x, layers.Dense(2)(inner(x) + inner(2 * x)))


def shared():
    dense = layers.Dense(4)
    x = tf_keras.Input((5, 4))
    return tf_keras.Model(x, dense(layers.ReLU()(dense(x))))


def shared_by_models():
    dense = layers.Dense(4)
    one = sequential((5, 4), dense, layers.ReLU())
    two = sequential((5, 4), one, dense)
    x = tf_keras.Input((5, 4))
    return tf_keras.Model(x, one(x) + two(x) + dense(x))


def built_by_its_first_call():
    model = tf_keras.Sequential([layers.Dense(4, "relu"), layers.Dense(2)])
    model(SERIES)
    return model


def states():
    x = tf_keras.Input((5, 4))
    y, h, c = layers.LSTM(3, return_state=True)(x)
    return tf_keras.Model(x, [layers.LSTM(3, go_backwards=True)(x, initial_state=[h, c]), y])


def attention():
    x = tf_keras.Input((5, 4))
    return tf_keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True, return_attention_scores=True))


def mixed():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = sequential((5, 4), layers.Dense(3), layers.LSTM(3))
    tf_keras.mixed_precision.set_global_policy("float32")
    return model


# name: (model, how many weights are masked)
MODELS = {
    "sequential": (lambda: sequential((5, 4), layers.Dense(3), layers.LSTM(2)), 3),
    "built by its first call": (built_by_its_first_call, 2),
    "functional": (functional, 2),
    "nested, used twice": (nested, 2),
    "layer used twice": (shared, 1),
    "layer and model in several models": (shared_by_models, 1),
    "states passed on": (states, 4),
    "stacked cells": (lambda: sequential((5, 4), layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])), 4),
    "attention": (attention, 4),
    "mixed precision, made under another policy": (mixed, 3),
    "a policy of its own": (lambda: sequential((5, 4), layers.Dense(3, dtype="mixed_bfloat16"), layers.Dense(2)), 2),
    "masked steps": (
        lambda: sequential(
            (5, 4), layers.Masking(), layers.Dense(4), layers.LSTM(3, return_sequences=True), layers.GRU(2)
        ),
        5,
    ),
    "masked steps through a convolution": (
        lambda: sequential((5, 4), layers.Masking(), layers.Conv1D(3, 2), layers.GlobalAveragePooling1D()),
        1,
    ),
    "activity regularizer": (lambda: sequential((5, 4), layers.Dense(3, activity_regularizer="l2")), 1),
    "kernel regularizer": (lambda: sequential((5, 4), layers.Dense(3, kernel_regularizer="l2")), 1),
}


def evaluated(model):
    model.compile("sgd", "mse", run_eagerly=True)
    return model.evaluate(SERIES, tf.nest.map_structure(tf.zeros_like, model(SERIES)), verbose=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_masked_model_predicts_and_costs_the_same(name):
    make, count = MODELS[name]
    plain = make()
    expected = outputs(plain, SERIES)
    loss = evaluated(plain) if "attention" not in name else None  # whose loss on the scores is not defined
    masked = kprune.mask(plain).model
    assert len(kprune.masked_weights(masked)) == count
    assert_same(outputs(masked, SERIES), expected)
    if loss is not None:
        assert evaluated(masked) == loss
    halve(masked)
    expected = outputs(masked, SERIES)
    stripped = kprune.strip(masked)
    assert wrappers(stripped) == [] and stripped.built
    assert_same(outputs(stripped, SERIES), expected)


def test_an_embedding_that_masks_steps():
    model = sequential((5,), layers.Embedding(3, 4, mask_zero=True), layers.Dense(4), layers.LSTM(3))
    expected = outputs(model, IDS)
    assert (outputs(model, np.where(IDS == 0, 1, IDS))[0] != expected[0]).any()  # the zeros are skipped indeed
    report = kprune.mask(model, weights=("kernel", "embeddings"))
    assert report.masked == ("embedding/embeddings", "dense/kernel", "lstm/lstm_cell/kernel")
    assert_same(outputs(report.model, IDS), expected)


UNSUPPORTED = {
    "EinsumDense": lambda x: layers.EinsumDense("abc,cd->abd", (None, 4), name="odd")(x),
    "GroupNormalization": lambda x: layers.GroupNormalization(2, name="odd")(x),
    "Attention": lambda x: layers.Attention(use_scale=True, name="odd")([x, x]),
    "Bidirectional": lambda x: layers.Bidirectional(layers.LSTM(2, return_sequences=True), name="odd")(x),
    "TimeDistributed": lambda x: layers.TimeDistributed(layers.Dense(4), name="odd")(x),
    "PReLU": lambda x: layers.PReLU(name="odd")(x),
    "ConvLSTM1D": lambda x: layers.Reshape((5, 4))(
        layers.ConvLSTM1D(2, 1, return_sequences=True, name="odd")(layers.Reshape((5, 2, 2))(x))
    ),
    "Normalization": lambda x: layers.Normalization(name="odd", mean=1.0, variance=4.0)(x),
    "Rescaling": lambda x: layers.Rescaling(0.5, name="odd")(x),
    "the user's own": lambda x: Scale(name="odd")(x),
}
WEIGHTLESS = ("Normalization", "Rescaling")


class Scale(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight("kernel", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.kernel


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_one_unsupported_layer_does_not_abort_the_model(name):
    x = tf_keras.Input((5, 4))
    model = tf_keras.Model(x, layers.Dense(3, name="after")(UNSUPPORTED[name](layers.Dense(4, name="before")(x))))
    with pytest.raises(ValueError, match="supported"):
        tfmot.sparsity.keras.prune_low_magnitude(model)
    expected = outputs(model, SERIES)
    report = kprune.mask(model)
    assert report.masked == ("before/kernel", "after/kernel")
    odd = {path: reason for path, reason in report.skipped.items() if path.startswith("odd")}
    assert len(odd) == len(model.get_layer("odd").weights) and bool(odd) == (name not in WEIGHTLESS)
    for path, reason in odd.items():
        if path.rpartition("/")[2] in ("kernel", "recurrent_kernel"):
            assert f"tfmot does not support this weight of a {type(model.get_layer('odd')).__name__} layer" in reason
        else:
            assert "is not among weights=" in reason
    masked = report.model
    assert_same(outputs(masked, SERIES), expected)
    masked.compile("adam", "mse", run_eagerly=True)
    halve(masked)
    masked.fit(SERIES, np.zeros((6, 5, 3)), batch_size=3, verbose=0, callbacks=[EachBatch(assert_zero)])


def test_the_users_own_layer_is_masked_when_it_says_what_can_be():
    class Prunable(Scale):
        def get_prunable_weights(self):
            return [self.kernel]

    model = sequential((5, 4), Prunable(name="own"), layers.Dense(2, name="dense"))
    masked = kprune.mask(model).model
    assert [w.path for w in kprune.masked_weights(masked)] == ["own/kernel", "dense/kernel"]
    halve(masked)
    masked.compile("adam", "mse")
    masked.fit(SERIES, np.zeros((6, 5, 2)), batch_size=3, verbose=0, callbacks=[EachBatch(assert_zero)])


def test_every_other_weight_has_its_reason():
    x = tf_keras.Input((5, 4))
    y = layers.DepthwiseConv1D(2, name="depthwise")(layers.SeparableConv1D(3, 2, name="separable")(x))
    y = layers.Dense(4, name="frozen", trainable=False)(layers.BatchNormalization(name="bn")(y))
    model = tf_keras.Model(x, layers.Dense(2, name="last")(layers.Dense(3, name="unwanted")(y)))
    report = kprune.mask(model, filters=lambda layer: layer.name != "unwanted")
    assert report.masked == ("separable/pointwise_kernel", "last/kernel")
    assert report.skipped["separable/depthwise_kernel"].startswith("'depthwise_kernel' is not among weights=")
    assert report.skipped["bn/gamma"].startswith("'gamma' is not among weights=")
    assert report.skipped["last/bias"].startswith("'bias' is not among weights=")
    assert report.skipped["unwanted/kernel"] == "the filter function returned False"
    assert "frozen" in report.skipped["frozen/kernel"]
    assert len(report.masked) + len(report.skipped) == len(model.weights)
    named = kprune.mask(model, weights="depthwise_kernel")
    assert named.masked == () and named.model is model
    assert "tfmot does not support this weight of a DepthwiseConv1D" in named.skipped["depthwise/depthwise_kernel"]
    path = kprune.mask(model, filters="^last/")
    assert path.masked == ("last/kernel",) and "does not match filters" in path.skipped["unwanted/kernel"]


def test_an_embedding_is_masked_only_when_it_is_named():
    model = sequential((5,), layers.Embedding(7, 4), layers.LSTM(2))
    assert not any("embeddings" in path for path in kprune.mask(model).masked)
    assert kprune.mask(model, weights=("embeddings",)).masked == ("embedding/embeddings",)


def test_one_weight_of_an_lstm():
    model = sequential((5, 4), layers.LSTM(3))
    report = kprune.mask(model, weights=("kernel",))
    assert report.masked == ("lstm/lstm_cell/kernel",)
    assert report.skipped["lstm/lstm_cell/recurrent_kernel"].startswith("'recurrent_kernel' is not among")
    masked = report.model
    kprune.prune(masked, "magnitude", 0.5)
    cell = model.layers[0].cell
    assert (cell.kernel.numpy() == 0).sum() == cell.kernel.numpy().size // 2
    assert cell.recurrent_kernel.numpy().all()
    masked.compile("adam", "mse")
    masked.fit(SERIES, np.zeros((6, 3)), batch_size=3, verbose=0, callbacks=[EachBatch(assert_zero)])
    assert cell.recurrent_kernel.numpy().all()
    # Asked again without names, the masked model stays as it is; the stripped one is free again.
    again = kprune.mask(masked)
    assert again.masked == report.masked
    assert again.skipped["lstm/lstm_cell/recurrent_kernel"] == "it was excluded when its layer was wrapped"
    assert len(kprune.mask(kprune.strip(masked)).masked) == 2


def test_masking_twice_changes_nothing(caplog):
    first = kprune.mask(mlp())
    model = first.model
    halve(model)
    before = [v.numpy() for v in model.variables]
    constraints = [w.variable.constraint for w in kprune.masked_weights(model)]
    model.compile("sgd", "mse")
    model.fit(*data(), verbose=0)
    compiled = model.train_function
    with caplog.at_level("WARNING", logger="absl"):
        again = kprune.mask(model)
    assert again.model is model and again.masked == first.masked and again.skipped.keys() == first.skipped.keys()
    assert caplog.text == "" and model.train_function is compiled
    assert [w.variable.constraint for w in kprune.masked_weights(model)] == constraints
    assert len(before) == len(model.variables)


def test_masks_of_a_second_clone_rule_the_weights_that_both_share():
    plain = mlp()
    first, second = kprune.mask(plain).model, kprune.mask(plain).model
    halve(first)
    halve(second, seed=1)
    second.compile("adam", "mse")
    second.fit(*data(), batch_size=8, verbose=0, callbacks=[EachBatch(assert_zero)])


def test_what_has_no_weights_to_mask_says_so(caplog):
    model = sequential((4,), layers.PReLU())
    with caplog.at_level("WARNING", logger="absl"):
        report = kprune.mask(model)
    assert report.masked == () and report.model is model
    assert "no weight of 'sequential' can be masked" in caplog.text
    with pytest.raises(ValueError, match=r"unbuilt layers="):
        kprune.mask(tf_keras.Sequential([layers.Dense(2)]))


TFMOT_SCHEDULES = {
    "PolynomialDecay": lambda: tfmot.sparsity.keras.PolynomialDecay(0.1, 0.9, 0, 6, frequency=1),
    "ConstantSparsity": lambda: tfmot.sparsity.keras.ConstantSparsity(0.7, 0, frequency=1),
}


def wrapped_by_tfmot(schedule, **arguments):
    model = sequential((8,), layers.Dense(12), layers.BatchNormalization(), layers.ReLU(), layers.Dense(3))
    model = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule, **arguments)
    model.compile("adam", "mse")
    return model


def masks(model):
    return [mask.numpy() for wrapper in wrappers(model) for _, mask, _ in wrapper.pruning_vars]


@pytest.mark.parametrize("callback", ["without UpdatePruningStep", "with UpdatePruningStep"])
@pytest.mark.parametrize("name", TFMOT_SCHEDULES)
def test_kprune_rules_a_model_that_the_user_wrapped(name, callback, caplog):
    model = wrapped_by_tfmot(TFMOT_SCHEDULES[name]())
    with caplog.at_level("WARNING", logger="absl"):
        report = kprune.mask(model)
    assert report.model is model and report.masked == ("dense/kernel", "dense_1/kernel")
    assert f"own schedule ({name}). kprune takes over" in caplog.text
    halve(model)
    expected = masks(model)
    extra = [tfmot.sparsity.keras.UpdatePruningStep()] if "without" not in callback else []
    check = EachBatch(assert_zero)
    model.fit(*data(), batch_size=8, epochs=3, verbose=0, callbacks=[*extra, check])
    assert check.calls == 12
    assert_same(masks(model), expected)


@pytest.mark.parametrize("jit", [False, True])
def test_kprune_takes_over_in_the_middle_of_tfmots_training(jit):
    model = wrapped_by_tfmot(tfmot.sparsity.keras.PolynomialDecay(0.1, 0.9, 0, 24, frequency=1))
    model.compile("adam", "mse", jit_compile=jit)
    update = tfmot.sparsity.keras.UpdatePruningStep()
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[update])
    before = masks(model)
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[update])
    assert any((a != b).any() for a, b in zip(masks(model), before, strict=True))  # tfmot's schedule was at work
    kprune.mask(model)
    expected = masks(model)
    model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[update, EachBatch(assert_zero)])
    assert_same(masks(model), expected)
    assert 0 < np.concatenate([m.ravel() for m in expected]).mean() < 1


@pytest.mark.parametrize("arguments", [dict(sparsity_m_by_n=(2, 4)), dict(block_size=(2, 2))], ids=["2:4", "blocks"])
def test_tfmots_patterns_do_not_move_the_masks_either(arguments):
    model = wrapped_by_tfmot(tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1), **arguments)
    kprune.mask(model)
    halve(model)
    expected = masks(model)
    update = tfmot.sparsity.keras.UpdatePruningStep()
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[update, EachBatch(assert_zero)])
    assert_same(masks(model), expected)


def test_a_partly_wrapped_model():
    def wrap(layer):
        return tfmot.sparsity.keras.prune_low_magnitude(layer)

    model = sequential((8,), wrap(layers.Dense(12, name="in")), layers.ReLU(), layers.Dense(3, name="out"))
    report = kprune.mask(model)
    assert report.masked == ("in/kernel",)
    assert report.skipped["out/kernel"] == "its layer is not wrapped"
    assert report.skipped["in/bias"].startswith("'bias' is not among")


class Subclassed(tf_keras.Model):
    def __init__(self, wrap):
        super().__init__()
        self.hidden = wrap(layers.Dense(12, "relu", name="hidden"))
        self.logits = wrap(layers.Dense(3, name="logits"))
        self.scale = self.add_weight("scale", shape=(), initializer="ones")

    def call(self, x):
        return self.logits(self.hidden(x)) * self.scale


@pytest.mark.parametrize("jit", [False, True])
def test_a_subclassed_model_with_layers_wrapped_by_hand(jit):
    model = Subclassed(tfmot.sparsity.keras.prune_low_magnitude)
    x, y = data()
    model(x)
    report = kprune.mask(model)
    assert report.model is model and len(report.masked) == 2
    assert report.masked[0].endswith("kernel") and report.masked[1].endswith("kernel")
    halve(model)
    model.compile("adam", "mse", jit_compile=jit)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[EachBatch(assert_zero)])
    with pytest.raises(ValueError, match=r"cannot be removed from a subclassed tf_keras model.*Received: model="):
        kprune.strip(model)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[EachBatch(assert_zero)])  # and goes on as before


def test_a_subclassed_model_that_nobody_wrapped():
    model = Subclassed(lambda layer: layer)
    model(data()[0])
    report = kprune.mask(model)
    assert report.masked == () and report.model is model
    kernels = [reason for path, reason in report.skipped.items() if path.endswith("kernel")]
    assert kernels == ["tfmot cannot wrap the layers of a subclassed model; wrap them where the model creates them"] * 2
    assert len(report.skipped) == len(model.weights)


def test_a_subclassed_model_inside_a_functional_one():
    inner = Subclassed(lambda layer: layer)
    x = tf_keras.Input((8,))
    model = tf_keras.Model(x, layers.Dense(2, name="last")(inner(x)))
    expected = outputs(model, data()[0])
    report = kprune.mask(model)
    assert report.masked == ("last/kernel",)
    assert sum("cannot wrap the layers of a subclassed" in reason for reason in report.skipped.values()) == 2
    assert_same(outputs(report.model, data()[0]), expected)


def test_the_wrappers_are_tfmots():
    model = kprune.mask(mlp()).model
    assert len(pruning_wrapper.collect_prunable_layers(model)) == 3
    plain = tfmot.sparsity.keras.strip_pruning(model)
    assert wrappers(plain) == []
    assert_same(outputs(plain, data()[0]), outputs(model, data()[0]))


def test_pruned_weights_get_no_gradient():
    model = kprune.mask(mlp()).model
    halve(model)
    x, y = data()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    for weight, gradient in zip(
        kprune.masked_weights(model),
        tape.gradient(loss, [w.variable for w in kprune.masked_weights(model)]),
        strict=True,
    ):
        assert not gradient.numpy()[~weight.kept()].any()
        assert gradient.numpy()[weight.kept()].any()


def test_what_was_frozen_and_trains_now_is_said_and_what_is_frozen_now_is_left_alone(caplog):
    model = sequential((5, 4), layers.Dense(3), layers.Dense(3), layers.Dense(2))
    model.layers[0].trainable = False
    masked = kprune.mask(model).model
    kprune.prune(masked, "magnitude", 0.5, verbose=False)
    first, second = kprune.masked_weights(masked)
    assert "now train without masks" not in caplog.text
    model.layers[0].trainable = True
    first.layer.trainable = False
    kept = first.kept()
    with caplog.at_level("WARNING"):
        kprune.prune(masked, "magnitude", 0.8, verbose=False)
    assert "and now train without masks: dense/kernel." in caplog.text
    assert (
        f"masked weights are frozen; they keep their masks but do not count toward the sparsity: {first.path}"
        in caplog.text
    )
    np.testing.assert_array_equal(first.kept(), kept)
    assert int((~second.kept()).sum()) == int(0.8 * second.size)


@pytest.mark.parametrize("model", [keras.layers.Dense(1), tf_keras.layers.Dense(1)], ids=["keras", "tf_keras"])
def test_both_libraries_answer_the_same_questions(model):
    asked = {name for name in vars(Library) if not name.startswith("_")}
    library = library_of(model)
    assert len(asked) > 20 and asked <= set(vars(library))
    for name in asked:
        question, answer = getattr(Library, name), getattr(library, name)
        if callable(question):
            arguments = list(inspect.signature(question).parameters)[1:]
            assert len(inspect.signature(answer).parameters) >= len(arguments), name


def test_values_behind_the_mask_are_refused():
    with pytest.raises(ValueError, match=r"cannot keep the values of pruned weights.*Received: store='latent'$"):
        kprune.mask(mlp(), store="latent")
    model = kprune.mask(mlp()).model
    model.compile("sgd", "mse")
    for callback in (kprune.callbacks.GradualPruning(0.5, margin=1.2), kprune.callbacks.Supermask()):
        with pytest.raises(
            ValueError, match=r"supports Keras 3 models only.*Received: model='.*', library='tf_keras'$"
        ):
            model.fit(*data(), verbose=0, callbacks=[callback])
    assert not any(np.any(weight.value() == 0) for weight in kprune.masked_weights(model))
