"""The report on tf_keras models, plain and under tfmot's wrappers, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import kprune
from kprune.masks import library_of


def sequential(shape, *stack, dtype="float32"):
    return tf_keras.Sequential([tf_keras.Input(shape, dtype=dtype), *stack])


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3)
        self.head = tf_keras.Sequential([layers.Flatten(), layers.Dense(2)])
        self.unused = layers.Dense(3)
        self.unused.build((None, 7))

    def call(self, x, training=None):
        if tf.reduce_sum(x) > 0:  # needs AutoGraph
            x = 2 * x
        return self.head(self.conv(x))


class Raises(layers.Layer):
    def call(self, x):
        if not tf.executing_eagerly() and x.shape[0] == 1:
            raise ValueError("this model needs real values")
        return x


def attention():
    x = tf_keras.Input((6, 8))
    return tf_keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x))


def shared():
    dense = layers.Dense(3)
    x = tf_keras.Input((5, 3))
    return tf_keras.Model(x, dense(dense(x)))


def nested():
    inner = tf_keras.Sequential([tf_keras.Input((4, 3)), layers.Dense(2)])
    x = tf_keras.Input((4, 3))
    return tf_keras.Model(x, inner(x) + inner(2 * x))


def subclassed():
    model = Subclassed()
    model(np.zeros((2, 5, 5, 2), "float32"))
    return model


WRAPPABLE = {
    "dense on a sequence": (lambda: sequential((4, 7), layers.Dense(3)), [4 * 21]),
    "conv1d": (lambda: sequential((9, 2), layers.Conv1D(3, 3)), [7 * 18]),
    "conv2d, same": (lambda: sequential((5, 5, 2), layers.Conv2D(4, 3, padding="same")), [25 * 72]),
    "conv2d, strided": (lambda: sequential((5, 5, 2), layers.Conv2D(4, 3, strides=2, padding="same")), [9 * 72]),
    "conv2d transposed": (lambda: sequential((5, 4, 2), layers.Conv2DTranspose(3, 3, strides=2)), [20 * (9 * 3 * 2)]),
    "separable conv2d: pointwise": (lambda: sequential((5, 5, 2), layers.SeparableConv2D(4, 3)), [9 * 8]),
    "lstm": (lambda: sequential((6, 3), layers.LSTM(2)), [6 * (3 * 8), 6 * (2 * 8)]),
    "shared layer": (shared, [2 * 5 * 9]),
    "nested model, used twice": (nested, [2 * 4 * 6]),
}
PLAIN_ONLY = {
    "conv2d, two groups": (lambda: sequential((5, 5, 4), layers.Conv2D(6, 3, groups=2)), [9 * (9 * 2 * 6)]),
    "conv3d": (lambda: sequential((4, 4, 4, 2), layers.Conv3D(3, 2)), [27 * (8 * 2 * 3)]),
    "einsum": (lambda: sequential((5, 6), layers.EinsumDense("abc,cde->abde", (None, 2, 3))), [5 * (6 * 2 * 3)]),
    "gru, time major": (lambda: sequential((3,), layers.Reshape((1, 3)), layers.GRU(2)), [3 * 6, 2 * 6]),
    "convlstm2d": (lambda: sequential((3, 5, 5, 2), layers.ConvLSTM2D(2, 3)), [3 * 9 * (9 * 2 * 8)] * 2),
    "bidirectional": (lambda: sequential((6, 3), layers.Bidirectional(layers.LSTM(2))), [6 * 24, 6 * 16] * 2),
    "time distributed": (
        lambda: sequential((6, 5, 5, 2), layers.TimeDistributed(layers.Conv2D(4, 3))),
        [6 * 9 * 72],
    ),
    "time distributed lstm": (
        lambda: sequential((6, 5, 3), layers.TimeDistributed(layers.LSTM(2))),
        [6 * 5 * 24, 6 * 5 * 16],
    ),
    "attention": (attention, [6 * (8 * 6)] * 4),
    "subclassed, one layer unused": (subclassed, [9 * 72, 36 * 2, 0]),
}


@pytest.mark.parametrize("name", [*WRAPPABLE, *PLAIN_ONLY])
def test_multiply_adds_of_plain_models(name):
    make, expected = (WRAPPABLE | PLAIN_ONLY)[name]
    report = kprune.summary(make())
    assert report.note == ""
    assert [row.flops for row in report.rows] == expected
    assert not report.masked and report.zeros == 0


@pytest.mark.parametrize("name", WRAPPABLE)
def test_multiply_adds_of_wrapped_models_and_of_what_is_stripped(name):
    make, expected = WRAPPABLE[name]
    plain = make()
    model = kprune.mask(plain).model
    kprune.prune(model, "random", sparsity=0.5, scope="layerwise", verbose=False)
    report = kprune.summary(model)
    assert report.note == "" and report.masked
    assert [row.flops for row in report.rows] == expected
    assert [row.layer for row in report.rows] == [row.layer for row in kprune.summary(plain).rows]
    for row in report.rows:
        assert row.zeros == row.size // 2
        assert row.effective_flops * row.size == row.flops * (row.size - row.zeros)
    stripped = kprune.summary(kprune.strip(model))
    assert [(row.zeros, row.effective_flops, row.dead_channels) for row in stripped.rows] == [
        (row.zeros, row.effective_flops, row.dead_channels) for row in report.rows
    ]
    assert (stripped.other_size, stripped.other_flops) == (report.other_size, report.other_flops)


def test_totals_and_dead_channels():
    plain = sequential((3, 3, 2), layers.Conv2DTranspose(4, 2), layers.DepthwiseConv2D(2), layers.BatchNormalization())
    model = kprune.mask(plain).model
    (weight,) = kprune.masked_weights(model)
    kept = np.ones(weight.shape, bool)
    kept[:, :, 1, :] = False
    kprune.set_masks(model, {weight.path: kept})
    report = kprune.summary(model)
    assert [row.dead_channels for row in report.rows] == [1]
    assert (report.size, report.zeros, report.sparsity, report.compression) == (32, 8, 0.25, 32 / 24)
    assert (report.flops, report.effective_flops) == (9 * 32, 9 * 24)
    assert report.other_size == 4 + (16 + 4) + 4 * 4
    assert report.other_flops == 9 * 16
    assert "1 dead channel" in str(report)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequential((None, 3), layers.Dense(2)),
        lambda: sequential((4,), layers.Dense(2), Raises()),
        lambda: sequential((5, 3), layers.LocallyConnected1D(2, 3)),
    ],
    ids=["shape not fixed", "a model that raises", "unknown kind of layer"],
)
def test_what_cannot_be_counted_is_a_question_mark_with_its_reason(make):
    report = kprune.summary(make())
    assert report.flops is None and report.effective_flops is None and report.size > 0
    assert " ? " in str(report) and report.note in str(report)


@pytest.mark.parametrize("last", [lambda: layers.Dropout(0.5), Raises], ids=["runs", "raises"])
@pytest.mark.parametrize("how", ["wrapped", "stale weights", "plain", "subclassed"])
def test_nothing_in_the_model_changes(how, last):
    time = layers.TimeDistributed(layers.Dense(3, activity_regularizer="l2"))
    model = sequential((6, 5), time, layers.Dense(2), layers.BatchNormalization(), last())
    if how == "subclassed":
        model = subclassed()
    elif how != "plain":
        model = kprune.mask(model).model
        kprune.prune(model, "magnitude", sparsity=0.5, verbose=False)
    if how == "stale weights":
        for weight in kprune.masked_weights(model):
            weight.variable.assign(np.ones(weight.shape))
    objects = [model, time, *(layer for layer, _ in library_of(model).owned_weights(model))]

    def state():
        values = [v.numpy().tobytes() for v in model.variables]
        own = [(id(thing), sorted(vars(thing)), type(thing), thing.call.__func__) for thing in objects]
        return values, own, len(model.losses), time._always_use_reshape, str(model._saved_model_inputs_spec)

    before = state()
    kprune.summary(model)
    assert state() == before


def test_models_without_weights_yet_are_refused():
    with pytest.raises(ValueError, match=r"unbuilt layers="):
        kprune.summary(tf_keras.Sequential([layers.Dense(2)]))


def test_the_figure_of_a_wrapped_model(tmp_path):
    model = kprune.mask(sequential((4,), layers.Dense(3))).model
    kprune.plot_sparsity(model, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
