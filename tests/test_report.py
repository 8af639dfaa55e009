"""The report against numbers worked out by hand, on Keras 3 with whichever backend runs the tests."""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import json

import keras
import numpy as np
import pytest
from helpers import mlp
from keras import layers

import kprune
from kprune.masks import library_of
from kprune.report.summary import Row, Summary
from kprune.util.plotting import short_paths

pytestmark = pytest.mark.slow_on_jax


def sequential(shape, *stack, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack])


def flops(model) -> list[int | None]:
    return [row.flops for row in kprune.summary(model).rows]


class Twice(keras.layers.Layer):
    """Calls its one layer twice, once on a batch with the time axis folded into it."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, x):
        return self.dense(x) + keras.ops.reshape(self.dense(keras.ops.reshape(x, (-1, 3))), (-1, 6, 4))


class Subclassed(keras.Model):
    def __init__(self, fail=False):
        super().__init__()
        self.conv = layers.Conv2D(4, 3)
        self.head = keras.Sequential([layers.Flatten(), layers.Dense(2)])
        self.unused = layers.Dense(3)
        self.unused.build((None, 7))
        self.fail = fail

    def call(self, x, training=None):
        x = self.head(self.conv(x))
        if self.fail:
            raise ValueError("this model needs real values\nand more")
        return x


class OwnKernel(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return x @ self.kernel


class Tied(layers.Dense):
    """Has another layer's kernel."""

    def __init__(self, kernel):
        super().__init__(int(kernel.shape[-1]), use_bias=False)
        self._kernel, self.bias = kernel, None

    def build(self, shape):
        self.built = True


def attention():
    x = keras.Input((6, 8))
    return keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x))


def grouped_query_attention():
    x = keras.Input((6, 8))
    return keras.Model(x, layers.GroupQueryAttention(head_dim=3, num_query_heads=4, num_key_value_heads=2)(x, x))


def shared():
    dense = layers.Dense(3)
    x = keras.Input((5, 3))
    return keras.Model(x, dense(dense(x)))


def nested():
    inner = keras.Sequential([keras.Input((4, 3)), layers.Dense(2)])
    x = keras.Input((4, 3))
    return keras.Model(x, inner(x) + inner(2 * x))


def subclassed():
    model = Subclassed()
    model(np.zeros((2, 5, 5, 2), "float32"))
    return model


HAND_COUNTED = {
    "dense": (lambda: sequential((7,), layers.Dense(3)), [21]),
    "dense on a sequence": (lambda: sequential((4, 7), layers.Dense(3)), [4 * 21]),
    "conv1d, valid": (lambda: sequential((9, 2), layers.Conv1D(3, 3)), [7 * 18]),
    "conv1d, causal, dilated": (
        lambda: sequential((9, 2), layers.Conv1D(3, 3, padding="causal", dilation_rate=2)),
        [9 * 18],
    ),
    "conv2d, same": (lambda: sequential((5, 5, 2), layers.Conv2D(4, 3, padding="same")), [25 * 72]),
    "conv2d, strided": (lambda: sequential((5, 5, 2), layers.Conv2D(4, 3, strides=2, padding="same")), [9 * 72]),
    "conv2d, two groups": (lambda: sequential((5, 5, 4), layers.Conv2D(6, 3, groups=2)), [9 * (9 * 2 * 6)]),
    "conv3d": (lambda: sequential((4, 4, 4, 2), layers.Conv3D(3, 2)), [27 * (8 * 2 * 3)]),
    "conv2d transposed": (lambda: sequential((5, 4, 2), layers.Conv2DTranspose(3, 3, strides=2)), [20 * (9 * 3 * 2)]),
    "conv1d transposed": (lambda: sequential((5, 2), layers.Conv1DTranspose(3, 4)), [5 * (4 * 3 * 2)]),
    "separable conv2d: pointwise": (lambda: sequential((5, 5, 2), layers.SeparableConv2D(4, 3)), [9 * 8]),
    "separable conv1d: pointwise": (lambda: sequential((5, 2), layers.SeparableConv1D(4, 3, strides=2)), [2 * 8]),
    "einsum": (lambda: sequential((5, 6), layers.EinsumDense("abc,cde->abde", (None, 2, 3))), [5 * (6 * 2 * 3)]),
    "einsum, two dims": (lambda: sequential((5, 6), layers.EinsumDense("abc,bcd->ad", (7,))), [5 * 6 * 7]),
    "einsum, ellipsis": (
        lambda: sequential((4, 5, 6), layers.EinsumDense("...x,xy->...y", 3)),
        [20 * 18],
    ),
    "lstm": (lambda: sequential((6, 3), layers.LSTM(2)), [6 * (3 * 8), 6 * (2 * 8)]),
    "gru": (lambda: sequential((6, 3), layers.GRU(2, return_sequences=True)), [6 * (3 * 6), 6 * (2 * 6)]),
    "stacked cells": (
        lambda: sequential((6, 3), layers.RNN([layers.SimpleRNNCell(2), layers.SimpleRNNCell(4)])),
        [6 * 6, 6 * 4, 6 * 8, 6 * 16],
    ),
    "convlstm2d": (lambda: sequential((3, 5, 5, 2), layers.ConvLSTM2D(2, 3)), [3 * 9 * (9 * 2 * 8)] * 2),
    "convlstm1d, sequences": (
        lambda: sequential((3, 5, 2), layers.ConvLSTM1D(2, 3, return_sequences=True)),
        [3 * 3 * (3 * 2 * 8)] * 2,
    ),
    "bidirectional": (lambda: sequential((6, 3), layers.Bidirectional(layers.LSTM(2))), [6 * 24, 6 * 16] * 2),
    "time distributed": (
        lambda: sequential((6, 5, 5, 2), layers.TimeDistributed(layers.Conv2D(4, 3))),
        [6 * 9 * 72],
    ),
    "attention": (attention, [6 * (8 * 6)] * 4),
    "grouped query attention": (grouped_query_attention, [6 * 8 * 12, 6 * 8 * 6, 6 * 8 * 6, 6 * 12 * 8]),
    "shared layer": (shared, [2 * 5 * 9]),
    "nested model, used twice": (nested, [2 * 4 * 6]),
    "layers in a layer": (lambda: sequential((6, 3), Twice()), [2 * 6 * 12]),
    "subclassed, one layer unused": (subclassed, [9 * 72, 36 * 2, 0]),
}


@pytest.mark.parametrize("name", HAND_COUNTED)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_multiply_adds_are_those_worked_out_by_hand(name, masked):
    make, expected = HAND_COUNTED[name]
    model = make()
    if masked:
        kprune.prune(model, "random", sparsity=0.5, scope="layerwise", verbose=False)
    report = kprune.summary(model)
    assert report.note == ""
    assert [row.flops for row in report.rows] == expected
    for row in report.rows:
        assert row.zeros == (row.size // 2 if masked else 0)
        assert row.effective_flops * row.size == row.flops * (row.size - row.zeros)
    assert report.other_flops == (5 * 5 - 16) * (9 * 2) * ("separable conv2d" in name) + 2 * 6 * ("conv1d: " in name)


def test_depthwise_kernels_and_embeddings_have_rows_when_they_are_masked():
    names = ("depthwise_kernel", "pointwise_kernel", "embeddings")
    model = sequential(
        (12,),
        layers.Embedding(10, 4),
        layers.Reshape((4, 3, 4)),
        layers.DepthwiseConv2D(2, depth_multiplier=2),
        layers.SeparableConv2D(5, 2, depth_multiplier=3),
        dtype="int32",
    )
    assert kprune.summary(model).other_flops == 3 * 2 * (4 * 8) + 2 * 1 * (4 * 24)
    kprune.mask(model, weights=names)
    rows = kprune.summary(model).rows
    assert [row.flops for row in rows] == [0, 6 * 4 * 8, 2 * 4 * 24, 2 * 24 * 5]
    assert [row.layer for row in rows] == ["Embedding", "DepthwiseConv2D", "SeparableConv2D", "SeparableConv2D"]


def test_a_kernel_tied_to_two_layers_is_one_row_and_counts_twice():
    first = layers.Dense(3)
    first.build((None, 3))
    (row,) = kprune.summary(sequential((3,), first, Tied(first.kernel))).rows
    assert (row.size, row.flops) == (9, 18)


def test_several_inputs_by_name_and_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    a, b = keras.Input((4, 3), name="a"), keras.Input((2,), name="b")
    x = layers.Concatenate()([layers.Flatten()(layers.Dense(2)(a)), b])
    model = keras.Model({"a": a, "b": b}, layers.Dense(5)(x))
    assert flops(model) == [4 * 6, 10 * 5]
    kprune.mask(model)
    assert flops(model) == [4 * 6, 10 * 5]


def test_channels_first_counts_the_same():
    first = sequential((2, 5, 6), layers.Conv2D(4, 3, data_format="channels_first"))
    transposed = sequential((2, 5, 4), layers.Conv2DTranspose(3, 3, data_format="channels_first"))
    assert flops(first) == [3 * 4 * 72]
    assert flops(transposed) == [20 * (9 * 3 * 2)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequential((None, 3), layers.Dense(2)),
        lambda: sequential((4,), OwnKernel()),
        lambda: _called(Subclassed(), np.zeros((1, 5, 5, 2), "float32"), fail=True),
    ],
    ids=["shape not fixed", "unknown kind of layer", "a model that raises"],
)
def test_what_cannot_be_counted_is_a_question_mark_with_its_reason(make):
    report = kprune.summary(make())
    assert report.flops is None and report.effective_flops is None and report.size > 0
    assert " ? " in str(report) and report.note in str(report) and "\n" not in report.note
    json.dumps(report.to_dict(), allow_nan=False)


def _called(model, x, fail):
    model(x)
    model.fail = fail
    return model


def test_the_reason_is_the_models_own_message():
    model = Subclassed(fail=False)
    assert kprune.summary(_called(model, np.zeros((1, 5, 5, 2), "float32"), fail=True)).note == (
        "this model needs real values"
    )


def test_nothing_in_the_model_changes_also_when_it_raises():
    model = Subclassed()
    model(np.ones((1, 5, 5, 2), "float32"))
    model.head.add(layers.Dropout(0.5, seed=1))
    model.head.add(layers.BatchNormalization())
    model.head.add(layers.Dense(3, activity_regularizer="l2"))
    model(np.ones((1, 5, 5, 2), "float32"))
    kprune.prune(model, "magnitude", sparsity=0.5, verbose=False)
    everything = [layer for layer, _ in library_of(model).owned_weights(model)]

    def state():
        values = [v.numpy().tobytes() for v in model.variables]
        own = [(id(layer), sorted(vars(layer)), type(layer), layer.call.__func__) for layer in everything]
        return values, own, len(model.losses), keras.config.floatx()

    before = state()
    assert kprune.summary(model).flops == 9 * 72 + 36 * 2 + 6
    assert state() == before
    model.fail = True
    assert kprune.summary(model).flops is None
    assert state() == before


def test_rows_and_totals():
    model = sequential((2,), layers.Dense(3, name="a"), layers.BatchNormalization(), layers.Dense(2, name="b"))
    kprune.mask(model)
    first, second = (weight.path for weight in kprune.masked_weights(model))
    kept = np.array([[True, False, False], [True, False, True]])
    kprune.set_masks(model, {first: kept, second: np.zeros((3, 2), bool)})
    report = kprune.summary(model)
    a, b = report.rows
    assert a == Row(first, "Dense", (2, 3), 6, 3, 6, 3, dead_channels=1)
    assert (a.sparsity, a.density, a.collapsed) == (0.5, 0.5, False)
    assert b == Row(second, "Dense", (3, 2), 6, 6, 6, 0, dead_channels=2)
    assert (b.sparsity, b.density, b.collapsed) == (1.0, 0.0, True)
    assert (report.size, report.zeros, report.sparsity, report.density, report.compression) == (12, 9, 0.75, 0.25, 4.0)
    assert (report.flops, report.effective_flops) == (12, 3)
    assert report.other_size == 3 + 4 * 3 + 2 and report.other_flops == 0 and report.masked
    table = str(report).splitlines()
    assert "1 dead channel" in table[2] and table[3].endswith("COLLAPSED") and table[5].endswith("4x compression")
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][1]["collapsed"] is True


@pytest.mark.parametrize(
    ("layer", "shape", "dead"),
    [
        (layers.Conv2D(4, 2), (3, 3, 2), lambda k: k[..., 1]),
        (layers.Conv2DTranspose(4, 2), (3, 3, 2), lambda k: k[..., 1, :]),
        (layers.DepthwiseConv2D(2, depth_multiplier=3), (3, 3, 2), lambda k: k[..., 1, 2]),
        (layers.EinsumDense("abc,dce->abde", (3, 2, 4)), (3, 5), lambda k: k[1, :, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_channel_is_dead_when_its_every_incoming_weight_is_zero(layer, shape, dead):
    model = sequential(shape, layer)
    kprune.mask(model, weights=("kernel", "depthwise_kernel"))
    (weight,) = kprune.masked_weights(model)
    kept = np.ones(weight.shape, bool)
    dead(kept)[...] = False
    kprune.set_masks(model, {weight.path: kept})
    assert kprune.summary(model).rows[0].dead_channels == 1


def test_stripped_and_reloaded_models_are_counted_in_their_weights(tmp_path):
    model = nested()
    kprune.prune(model, "random", sparsity=0.4, verbose=False)
    rows = kprune.summary(model).rows
    kprune.strip(model)
    assert kprune.summary(model).rows == rows and not kprune.summary(model).masked
    model.save(tmp_path / "model.keras")
    loaded = kprune.summary(keras.models.load_model(tmp_path / "model.keras")).rows
    # Keras leaves the name of a nested model out of the paths when it loads.
    assert [dataclasses.replace(row, path="") for row in loaded] == [dataclasses.replace(row, path="") for row in rows]
    model.trainable = False
    assert kprune.summary(model).rows == rows


def test_a_model_with_nothing_to_prune_and_one_with_nothing_left():
    report = kprune.summary(sequential((4,), layers.LayerNormalization()))
    assert report.rows == () and (report.sparsity, report.compression, report.flops) == (0.0, 1.0, 0)
    assert "total" in str(report) and kprune.plot_sparsity(report)
    gone = Summary((Row("a/kernel", "Dense", (2,), 2, 2, 2, 0, 1),), True, 0, 0)
    assert gone.compression == float("inf") and gone.to_dict()["compression"] is None
    assert kprune.plot_sparsity(gone)


def test_the_table_does_not_depend_on_the_terminal(monkeypatch):
    model = sequential((4,), layers.Dense(3, name="a_layer_with_a_very_long_name_that_would_not_fit_in_forty_columns"))
    plain = str(kprune.summary(model))
    for name, value in (("COLUMNS", "40"), ("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("JUPYTER_COLUMNS", "9")):
        monkeypatch.setenv(name, value)
    assert str(kprune.summary(model)) == plain
    assert plain.isascii() and "\x1b" not in plain and "forty_columns/kernel" in plain


def test_sparsity_is_rounded_down_so_that_100_per_cent_means_collapsed():
    assert " 99.99% " in str(Summary((Row("a", "Dense", (10**6,), 10**6, 10**6 - 1, 0, 0, 0),), True, 0, 0))


@pytest.mark.parametrize("model", [sequential, keras.Sequential([layers.Dense(2)]), 3])
def test_bad_models_are_refused(model):
    with pytest.raises(ValueError, match="Received: model="):
        kprune.summary(model)


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("SVG", b"<?xml"), ("pdf", b"%PDF")])
def test_the_figure_is_written(tmp_path, suffix, begins):
    path = tmp_path / f"figure.{suffix}"
    model = sequential((4,), layers.Dense(3), layers.Dense(2))
    kprune.prune(model, "magnitude", sparsity=0.5, verbose=False)
    figure = kprune.plot_sparsity(model, path)
    assert path.read_bytes().startswith(begins)
    assert figure.get_suptitle() == "sparsity 50.00%, compression 2x: 9 of 18 kept"


def test_a_figure_of_another_kind_is_refused_before_anything_is_done():
    with pytest.raises(ValueError, match=r"Received: path='figure.jpeg'$"):
        kprune.plot_sparsity(3, "figure.jpeg")


def test_no_two_labels_of_a_large_figure_overlap():
    rows = tuple(
        Row(f"net/encoder_{i}/a_rather_long_attention_name/output_projection/kernel", "Dense", (n,), n, zeros, 0, 0, 0)
        for i, (n, zeros) in enumerate([(1, 0), (1, 1), (10**7, 10**7 - 1), (10**7, 10**7), (300, 1)] * 6)
    )
    figure = kprune.plot_sparsity(Summary(rows, True, 0, 0))
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    texts = [[text for text in group if text.get_text()] for group in (axes.texts, axes.get_yticklabels())]
    whole = figure.bbox
    for group in texts:
        boxes = [text.get_window_extent() for text in group]
        assert len(boxes) == len(rows)
        assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
        assert all(box.x0 >= whole.x0 and box.x1 <= whole.x1 for box in boxes)
    assert [text.get_text() for text in axes.texts[:5]] == ["100 %", "collapsed", "0.00001 %", "collapsed", "99.7 %"]


def test_paths_are_shortened_in_the_middle():
    long = f"net/{'a' * 50}/kernel"
    assert short_paths([long, "net/b/kernel"]) == ["aaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaa/kernel", "b/kernel"]
    assert short_paths(["kernel"]) == ["kernel"]
    assert short_paths([]) == []


def test_reports_show_their_tables_in_a_notebook():
    model = mlp()
    for report in (kprune.mask(model), kprune.summary(model)):
        shown = report._repr_html_()
        assert shown == f"<pre>{html.escape(str(report))}</pre>" and len(shown) > 100
    for kind in (kprune.Sensitivity, kprune.Sweep, kprune.LotteryRuns, kprune.analysis.LinearPath):
        assert kind._repr_html_ is type(report)._repr_html_


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras takes strings on TensorFlow alone")
def test_multiply_adds_of_a_model_that_takes_strings():
    """What is cut into words has lost the size of the batch."""
    words = layers.TextVectorization(max_tokens=50, output_sequence_length=8)
    words.adapt(["the cat sat on the mat", "a dog ate the cat"])
    pooled = [layers.Embedding(50, 8), layers.GlobalAveragePooling1D(), layers.Dense(16, "relu"), layers.Dense(1)]
    model = keras.Sequential([keras.Input((), dtype="string"), words, *pooled])
    report = kprune.summary(model)
    assert (report.flops, report.note) == (8 * 16 + 16, "")
