"""Every layer kind has its patterns along its true axes, which are written down here by hand, kind by kind."""

import re

import keras
import numpy as np
import pytest
from keras import layers
from test_layers import ALL, Block, Projection, attend, grouped

import kprune
from kprune.config import PruningConfig
from kprune.masks.layout import layout_of

SEQUENCE, IMAGE, VOLUME, VECTOR = (6, 10), (6, 6, 10), (3, 3, 3, 6), (10,)
DENSE, CONV1D, CONV2D, DEPTHWISE2D = ((0,), (1,)), ((1,), (2,)), ((2,), (3,)), ((0, 1), (2, 3))
RECURRENT = {"recurrent_kernel$": DENSE, "kernel$": DENSE}
ATTENTION = {"attention_output/kernel$": ((0, 1), (2,)), "kernel$": ((0,), (1, 2))}


def einsum(equation, *shape):
    return lambda: layers.EinsumDense(equation, output_shape=shape)


# kind: input shape, layer, and for its weights by name: the axes that an output sums over, the axes of the outputs.
# Those in neither are positions of a convolution.
KINDS = {
    "Dense": (VECTOR, lambda: layers.Dense(7), {"kernel$": DENSE}),
    "Conv1D": (SEQUENCE, lambda: layers.Conv1D(7, 3), {"kernel$": CONV1D}),
    "Conv2D": (IMAGE, lambda: layers.Conv2D(7, 3), {"kernel$": CONV2D}),
    "Conv2D in groups": (IMAGE, lambda: layers.Conv2D(6, 3, groups=2), {"kernel$": CONV2D}),
    "Conv3D": (VOLUME, lambda: layers.Conv3D(7, 2), {"kernel$": ((3,), (4,))}),
    "Conv1DTranspose": (SEQUENCE, lambda: layers.Conv1DTranspose(7, 3), {"kernel$": ((2,), (1,))}),
    "Conv2DTranspose": (IMAGE, lambda: layers.Conv2DTranspose(7, 3), {"kernel$": ((3,), (2,))}),
    "Conv3DTranspose": (VOLUME, lambda: layers.Conv3DTranspose(7, 2), {"kernel$": ((4,), (3,))}),
    "DepthwiseConv1D": (SEQUENCE, lambda: layers.DepthwiseConv1D(5, depth_multiplier=2), {"kernel$": ((0,), (1, 2))}),
    "DepthwiseConv2D": (IMAGE, lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), {"kernel$": DEPTHWISE2D}),
    "SeparableConv1D": (
        SEQUENCE,
        lambda: layers.SeparableConv1D(7, 5),
        {"depthwise_kernel$": ((0,), (1, 2)), "pointwise_kernel$": CONV1D},
    ),
    "SeparableConv2D": (
        IMAGE,
        lambda: layers.SeparableConv2D(7, 3, depth_multiplier=2),
        {"depthwise_kernel$": DEPTHWISE2D, "pointwise_kernel$": CONV2D},
    ),
    "EinsumDense": (SEQUENCE, einsum("abc,cd->abd", 6, 7), {"kernel$": DENSE}),
    "EinsumDense, ellipsis": (SEQUENCE, einsum("...x,xyz->...yz", 3, 5), {"kernel$": ((0,), (1, 2))}),
    "EinsumDense, outputs first": (SEQUENCE, einsum("abc,dc->abd", 6, 7), {"kernel$": ((1,), (0,))}),
    "EinsumDense over two axes": (SEQUENCE, einsum("abc,bdc->ad", 7), {"kernel$": ((0, 2), (1,))}),
    "EinsumDense by position": (SEQUENCE, einsum("abc,bcd->abd", 6, 7), {"kernel$": ((1,), (0, 2))}),
    "MultiHeadAttention": (SEQUENCE, lambda: attend, ATTENTION),
    "GroupQueryAttention": (SEQUENCE, lambda: grouped, ATTENTION),
    "LSTM": (SEQUENCE, lambda: layers.LSTM(6), RECURRENT),
    "GRU": (SEQUENCE, lambda: layers.GRU(6), RECURRENT),
    "SimpleRNN": (SEQUENCE, lambda: layers.SimpleRNN(6), RECURRENT),
    "Bidirectional": (SEQUENCE, lambda: layers.Bidirectional(layers.LSTM(6)), RECURRENT),
    "ConvLSTM2D": ((2, *IMAGE), lambda: layers.ConvLSTM2D(3, 3), {"kernel$": CONV2D}),
    "TimeDistributed": (SEQUENCE, lambda: layers.TimeDistributed(layers.Dense(7)), {"kernel$": DENSE}),
    "Embedding": ((5,), lambda: layers.Embedding(10, 6), {"embeddings$": DENSE}),
    "the user's own": (VECTOR, lambda: Projection(7), {"kernel$": DENSE}),
    "the user's own of layers": (VECTOR, lambda: Block(7), {"kernel$": DENSE}),
}


def model_of(kind):
    shape, make, _ = KINDS[kind]
    inputs = keras.Input(shape, dtype="int32" if kind == "Embedding" else "float32")
    model = keras.Model(inputs, layers.Flatten()(make()(inputs)))
    assert kprune.mask(model, weights=ALL).masked
    return model


def axes_of(kind, weight):
    return next(axes for name, axes in KINDS[kind][2].items() if re.search(name, weight.path))


def by_output(array, axes):
    """(position, output, input): what each output sums over, in the kernel's order."""
    incoming, outgoing = axes
    ordered = np.moveaxis(array, [*outgoing, *incoming], range(-len(outgoing) - len(incoming), 0))
    outputs = np.prod([array.shape[axis] for axis in outgoing])
    inputs = np.prod([array.shape[axis] for axis in incoming])
    return ordered.reshape(-1, outputs, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_kind(kind, tmp_path):
    model = model_of(kind)
    weights = kprune.masked_weights(model)
    for w in weights:
        assert_layout(w, axes_of(kind, w))
    for pattern, holds in HOLDS.items():
        # Layerwise, for equal counts; n:m is so by default.
        plan = PruningConfig("magnitude", scope=None if pattern == "2:4" else "layerwise", pattern=pattern)
        masks = plan.masks(model, 0.5)
        for w in weights:
            holds(by_output(masks[w.path], axes_of(kind, w)), by_output(np.abs(w.value()), axes_of(kind, w)))
    masks = kprune.prune(model, "magnitude", 0.5, pattern="2:4")
    model.save(tmp_path / "model.keras")
    loaded = kprune.masked_weights(keras.saving.load_model(tmp_path / "model.keras"))
    assert len(loaded) == len(masks)
    for w, mask in zip(loaded, masks.values(), strict=True):
        np.testing.assert_array_equal(w.kept(), mask)


def assert_layout(weight, axes):
    layout, value = layout_of(weight), np.arange(weight.size).reshape(weight.shape)
    canonical = layout.canonical(value)
    assert canonical.shape == layout.shape
    assert canonical.shape[-2:] == tuple(np.prod([weight.shape[a] for a in part]) for part in axes)
    np.testing.assert_array_equal(layout.original(canonical), value)


def holds_2_of_4(kept, values):
    assert np.count_nonzero(~kept) == kept.size // 2
    for start in range(0, kept.shape[-1], 4):
        group, value = kept[..., start : start + 4], values[..., start : start + 4]
        assert np.all(group.sum(-1) <= 2)
        if kept.shape[-1] % 4 == 0:  # then the sparsity leaves exactly two in each: the largest
            np.testing.assert_array_equal(np.sort(np.where(group, value, 0))[..., -2:], np.sort(value)[..., -2:])


def holds_channels(kept, values):
    filters, sizes = (np.moveaxis(array, 1, 0).reshape(kept.shape[1], -1) for array in (kept, values))
    alive = filters.any(1)
    assert np.array_equal(alive, filters.all(1)) and np.count_nonzero(~alive) == len(filters) // 2
    assert sizes[alive].mean(1).min() > sizes[~alive].mean(1).max()


def holds_tiles(kept, values):
    """4 inputs x 2 outputs, smaller at the edges."""
    assert kept.size // 2 - 8 < np.count_nonzero(~kept) <= kept.size // 2
    for outputs, inputs in np.ndindex(-(-kept.shape[1] // 2), -(-kept.shape[2] // 4)):
        tile = kept[:, 2 * outputs : 2 * outputs + 2, 4 * inputs : 4 * inputs + 4]
        assert np.array_equal(tile.all((1, 2)), tile.any((1, 2)))


HOLDS = {"2:4": holds_2_of_4, "channel": holds_channels, "4x2": holds_tiles}


def test_a_low_rank_kernel_beside_the_one_of_an_einsum():
    model = model_of("EinsumDense")
    kprune.strip(model)
    model.layers[1].enable_lora(2)
    report = kprune.mask(model, weights=("lora_kernel_a", "lora_kernel_b"))
    assert [layout_of(w).shape for w in kprune.masked_weights(model)] == [(10, 2), (2, 7)]
    assert len(report.masked) == 2


def test_scopes_see_the_weights_own_shapes():
    seen = []

    def scope(scores, sparsity):
        seen.append([score.shape for score in scores.values()])
        return {path: score.size // 2 for path, score in scores.items()}

    model = model_of("MultiHeadAttention")
    for pattern in ("unstructured", "2:4", "4x2", "channel"):
        PruningConfig("magnitude", scope=scope, pattern=pattern).masks(model, 0.5)
    assert seen == [[(10, 2, 4)] * 3 + [(2, 4, 10)]] * 4


def test_a_convolution_with_a_group_per_channel_is_depthwise():
    """As in ConvNeXt: not masked unless named, and each output sees one channel through a window."""
    model = keras.Sequential(
        [
            keras.Input((5, 5, 4)),
            keras.layers.Conv2D(8, 3, groups=4, name="depthwise"),
            keras.layers.Conv2D(4, 3, groups=2, name="grouped"),
            keras.layers.Conv2D(2, 1, name="dense"),
        ]
    )
    report = kprune.mask(model)
    assert [path.split("/")[-2] for path in report.masked] == ["grouped", "dense"]
    assert "'depthwise_kernel' is not among weights" in report.skipped[model.get_layer("depthwise").kernel.path]
    kprune.strip(model)
    kprune.mask(model, weights=("depthwise_kernel",))
    (weight,) = kprune.masked_weights(model)
    assert (weight.shape, layout_of(weight).shape) == ((3, 3, 1, 8), (9, 8))
