"""Patterns under tfmot's wrappers: along each layer's true axes; and what tfmot's own 2:4 and blocks get wrong."""

import itertools

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from helpers import EachBatch, assert_zero, data
from kprune.callbacks import GradualPruning, PruneAtInit
from tf_keras import layers
from tfk_helpers import masked_mlp, outputs, sequential, wrappers

import kprune
from kprune.config import PruningConfig
from kprune.criteria import CRITERIA
from kprune.masks.layout import layout_of
from kprune.pruning import Pruner
from kprune.schedules import PolynomialDecay

SEQUENCE, IMAGE, VOLUME = (6, 10), (6, 6, 10), (3, 3, 3, 6)
# kind: input shape, layer, and for its weights by name: the axes that an output sums over, the axes of the outputs.
DENSE, CONV2D = ((0,), (1,)), ((2,), (3,))
KINDS = {
    "Dense": ((10,), lambda: layers.Dense(7), {"kernel": DENSE}),
    "Conv1D": (SEQUENCE, lambda: layers.Conv1D(7, 3), {"kernel": ((1,), (2,))}),
    "Conv2D": (IMAGE, lambda: layers.Conv2D(7, 3), {"kernel": CONV2D}),
    "Conv3D": (VOLUME, lambda: layers.Conv3D(7, 2), {"kernel": ((3,), (4,))}),
    "Conv2DTranspose": (IMAGE, lambda: layers.Conv2DTranspose(7, 3), {"kernel": ((3,), (2,))}),
    "Conv3DTranspose": (VOLUME, lambda: layers.Conv3DTranspose(7, 2), {"kernel": ((4,), (3,))}),
    "SeparableConv2D": (IMAGE, lambda: layers.SeparableConv2D(7, 3), {"kernel": CONV2D}),
    "LSTM": (SEQUENCE, lambda: layers.LSTM(6), {"kernel": DENSE}),
    "GRU": (SEQUENCE, lambda: layers.GRU(6), {"kernel": DENSE}),
    "MultiHeadAttention": (
        SEQUENCE,
        lambda: lambda x: layers.MultiHeadAttention(2, 4)(x, x),
        {"attention_output/kernel": ((0, 1), (2,)), "kernel": ((0,), (1, 2))},
    ),
}


def masked(kind):
    shape, make, _ = KINDS[kind]
    inputs = tf_keras.Input(shape)
    return kprune.mask(tf_keras.Model(inputs, layers.Flatten()(make()(inputs)))).model


def by_output(kind, weight, mask):
    """(position, output, input): what each output sums over, in the kernel's order."""
    incoming, outgoing = next(axes for name, axes in KINDS[kind][2].items() if weight.path.endswith(name))
    ordered = np.moveaxis(mask, [*outgoing, *incoming], range(-len(outgoing) - len(incoming), 0))
    assert layout_of(weight).shape[-2:] == tuple(
        int(np.prod([mask.shape[a] for a in part])) for part in (incoming, outgoing)
    )
    return ordered.reshape(-1, *layout_of(weight).shape[:-3:-1])


def is_2_of_4(kept):
    return all(kept[..., i : i + 4].sum(-1).max() <= 2 for i in range(0, kept.shape[-1], 4))


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_kind(kind, tmp_path):
    model = masked(kind)
    weights = kprune.masked_weights(model)
    assert weights
    masks = PruningConfig("magnitude", scope="layerwise", pattern="channel").masks(model, 0.5)
    for w in weights:
        filters = np.moveaxis(by_output(kind, w, masks[w.path]), 1, 0)
        filters = filters.reshape(len(filters), -1)
        assert np.all(filters.all(1) | ~filters.any(1)) and np.count_nonzero(~filters.any(1)) == len(filters) // 2
    masks = kprune.prune(model, "magnitude", 0.5, pattern="2:4")
    for w in weights:
        assert np.count_nonzero(~masks[w.path]) == w.size // 2
        assert is_2_of_4(by_output(kind, w, masks[w.path]))
    model.save(tmp_path / "model.keras")
    loaded = kprune.masked_weights(tf_keras.models.load_model(tmp_path / "model.keras"))
    for w, mask in zip(loaded, masks.values(), strict=True):
        np.testing.assert_array_equal(w.kept(), mask)


def test_2_of_4_follows_the_schedule_which_tfmots_does_not():
    def small():
        return sequential((8,), layers.Dense(12, "relu"), layers.Dense(4))

    x, y = data(n=32, outputs=(4,))
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, 0, 8, power=1, frequency=2)
    theirs = tfmot.sparsity.keras.prune_low_magnitude(small(), schedule, sparsity_m_by_n=(2, 4))
    ours = kprune.mask(small()).model
    seen = {theirs: [], ours: []}

    def watch(model):
        seen[model].append(sum(int((~w.kept()).sum()) for w in kprune.masked_weights(model)) / 144)

    for model, pruning in (
        (theirs, tfmot.sparsity.keras.UpdatePruningStep()),
        (ours, GradualPruning(schedule, pattern="2:4")),
    ):
        model.compile("adam", "mse")
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[pruning, EachBatch(watch)])
    assert seen[theirs] == [0.5] * 8  # all at once, in the first step
    assert seen[ours] == [0, 0.125, 0.125, 0.25, 0.25, 0.375, 0.375, 0.5]
    for w in kprune.masked_weights(ours):
        assert is_2_of_4(w.kept().T)
    assert_zero(ours)
    stripped = kprune.strip(ours)
    np.testing.assert_array_equal(outputs(stripped, x)[0], outputs(ours, x)[0])


@pytest.mark.parametrize("pattern, theirs", [("2:4", dict(sparsity_m_by_n=(2, 4))), ("2x2", dict(block_size=(2, 2)))])
@pytest.mark.parametrize("kind", ["Conv1D", "Conv3D", "MultiHeadAttention"])
def test_layers_in_which_tfmots_patterns_fail(kind, pattern, theirs):
    shape, make, _ = KINDS[kind]

    def compiled(wrap=None):
        inputs, attention = tf_keras.Input(shape), kind == "MultiHeadAttention"
        layer = layers.MultiHeadAttention(2, 4) if attention else make()
        layer = wrap(layer) if wrap else layer
        model = tf_keras.Model(inputs, layers.Flatten()(layer(*[inputs] * (1 + attention))))
        model = model if wrap else kprune.mask(model).model
        model.compile("sgd", "mse")
        return model

    def wrapped(layer):
        constant = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
        return tfmot.sparsity.keras.prune_low_magnitude(layer, constant, **theirs)

    def fit(model, callback):
        x = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
        model.fit(x, np.zeros((8, *model.output_shape[1:])), verbose=0, callbacks=[callback])

    with pytest.raises((ValueError, AttributeError), match=r"not supported|2-dimensional|_query_dense"):
        fit(compiled(wrapped), tfmot.sparsity.keras.UpdatePruningStep())
    model = compiled()
    fit(model, PruneAtInit("magnitude", 0.5, pattern=pattern, scope="layerwise"))
    for w in kprune.masked_weights(model):
        block = 4 if pattern == "2x2" else 1
        assert w.size // 2 - block < np.count_nonzero(w.value() == 0) <= w.size // 2


def test_2_of_4_outlives_a_file_which_tfmots_does_not(tmp_path):
    constant = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    theirs = tfmot.sparsity.keras.prune_low_magnitude(
        sequential((8,), layers.Dense(4)), constant, sparsity_m_by_n=(2, 4)
    )
    theirs.save(tmp_path / "theirs.keras")
    with tfmot.sparsity.keras.prune_scope():
        loaded = tf_keras.models.load_model(tmp_path / "theirs.keras")
    assert [wrapper.sparsity_m_by_n for wrapper in (*wrappers(theirs), *wrappers(loaded))] == [(2, 4), None]
    x, y = data(outputs=(4,))
    model = kprune.mask(sequential((8,), layers.Dense(4))).model
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0, callbacks=[GradualPruning(PolynomialDecay(0.0, 0.25, 0, 1), pattern="2:4")])
    model.save(tmp_path / "ours.keras")
    model = tf_keras.models.load_model(tmp_path / "ours.keras")  # and goes on, with no prune_scope
    model.fit(x, y, verbose=0, callbacks=[GradualPruning(PolynomialDecay(0.25, 0.5, 0, 1), pattern="2:4")])
    (w,) = kprune.masked_weights(model)
    assert is_2_of_4(w.kept().T) and np.count_nonzero(w.value() == 0) == 16


# A pattern sees nothing of a criterion but an array: each with one of the others, in turn.
@pytest.mark.parametrize(
    ("criterion", "pattern"), list(zip(CRITERIA, itertools.cycle(["2:4", "channel", "2x3"]), strict=False))
)
def test_every_criterion_and_pattern(criterion, pattern, shared):
    x, y = data()
    plan = Pruner(PruningConfig(criterion, scope="layerwise", pattern=pattern, rounds=2), (x, y))
    plan.begin(shared)
    if plan.tracker is not None:
        rng = np.random.default_rng(0)
        plan.tracker.arrays = [rng.normal(size=w.shape) for w in kprune.masked_weights(shared)]
    masks = plan.masks(shared, 0.75)
    for w in kprune.masked_weights(shared):
        mask = masks[w.path]
        largest = {"2:4": 1, "channel": len(mask), "2x3": 6}[pattern]
        assert mask.size // 4 <= np.count_nonzero(mask) < mask.size // 4 + largest
        if pattern == "2:4":
            assert is_2_of_4(mask.T)
        else:
            h, w = (len(mask), 1) if pattern == "channel" else (2, 3)
            for i, o in np.ndindex(-(-mask.shape[0] // h), -(-mask.shape[1] // w)):
                tile = mask[h * i : h * i + h, w * o : w * o + w]
                assert tile.all() == tile.any()


@pytest.fixture(scope="module")
def shared():
    """No criterion changes it, and no pattern."""
    model = masked_mlp(half=False)
    model.fit(*data(), verbose=0)
    return model
