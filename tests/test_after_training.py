"""Wanda and SparseGPT: hand-computed steps, and what holds of any layer that they take."""

import keras
import numpy as np
import pytest
from helpers import assert_zero
from keras import layers

import kprune
from kprune.after_training import compensated
from kprune.criteria import Context, wanda
from kprune.criteria.engines.calls import calls_of
from kprune.criteria.engines.features import features

HESSIAN = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])


def keep(*rows):
    """What chooses given rows of a mask, whatever the scores."""
    return lambda start, scores: np.array(rows, bool)[start : start + len(scores)]


def test_a_step_of_sparsegpt_by_hand():
    """3 inputs, 2 outputs. H^-1 = [[2, -1, 0], [-1, 2, 0], [0, 0, 3]] / 3, so U_00^2 = 2/3, U_11^2 = 1/2, U_22 = 1."""
    weights = np.array([[1.0, 3.0], [2.0, 1.0], [1.0, 1.0]])
    seen = []

    def choose(start, scores):
        seen.append(scores)
        return scores >= np.sort(scores, axis=0)[-2:][0]  # two of each output

    new, kept = compensated(weights, HESSIAN, np.ones((3, 2), bool), choose, [0])
    np.testing.assert_allclose(seen[0], [[1.5, 13.5], [8.0, 2.0], [1.0, 1.0]])
    assert kept.tolist() == [[True, True], [True, True], [False, False]]
    np.testing.assert_array_equal(new, [[1.0, 3.0], [2.0, 1.0], [0.0, 0.0]])  # what is last has no one to help
    # Input 0 of output 0 goes: input 1, with <x0, x1> / <x1, x1> = 1/2, takes over half of it.
    new, _ = compensated(weights, HESSIAN, np.ones((3, 2), bool), keep([0, 1], [1, 1], [1, 0]), [0])
    np.testing.assert_allclose(new, [[0.0, 3.0], [2.5, 1.0], [1.0, 0.0]], rtol=1e-12)


def test_errors_reach_later_blocks_before_they_choose():
    weights, seen = np.array([[1.0], [-0.4], [1.0]]), []

    def choose(start, scores):
        seen.append(scores.ravel().tolist())
        return np.array([[start != 0]])

    new, _ = compensated(weights, HESSIAN, np.ones((3, 1), bool), choose, [0, 1, 2])
    np.testing.assert_allclose(np.ravel(seen), [1.5, 0.1**2 * 2, 1.0])  # -0.4 + 0.5
    np.testing.assert_allclose(new.ravel(), [0.0, 0.1, 1.0])


@pytest.mark.parametrize("edges", [[0], [0, 2], [0, 1, 2, 3, 4]])
def test_what_is_kept_is_the_best_that_later_inputs_can_do(edges):
    """Each pruned input in turn: least squares over those after it."""
    rng = np.random.default_rng(0)
    x, weights, mask = rng.normal(size=(20, 5)), rng.normal(size=(5, 3)), rng.random((5, 3)) < 0.5
    new, kept = compensated(weights, x.T @ x, np.ones((5, 3), bool), keep(*mask), edges)
    np.testing.assert_array_equal(kept, mask)
    for o in range(3):
        expected = weights[:, o].copy()
        for i in range(5):
            if not mask[i, o]:
                expected[i + 1 :] += np.linalg.lstsq(x[:, i + 1 :], x[:, i], rcond=None)[0] * expected[i]
                expected[i] = 0.0
        np.testing.assert_allclose(new[:, o], expected, atol=1e-10)


def test_a_hessian_of_inputs_that_are_alike_is_refused():
    with pytest.raises(ValueError, match=r"raise `damping`, or pass more data\. Cause: "):
        compensated(np.ones((2, 1)), np.ones((2, 2)), np.ones((2, 1), bool), keep([1], [1]), [0])


def transformer():
    """A block of attention and two dense layers, tokens mixed by a convolution before it."""
    inputs = keras.Input((6, 4))
    x = layers.Conv1D(8, 3, padding="same", name="conv")(inputs)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = layers.Dense(12, "gelu", name="wide")(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3, name="top")(layers.GlobalAveragePooling1D()(x)), name="net")


def tokens(n=64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6, 4)).astype("float32") @ rng.normal(size=(4, 4)).astype("float32")


def inputs_of(model, x):
    """path -> the inputs of each weight, as one matrix."""
    weights = kprune.masked_weights(model)
    calls = calls_of(Context(model, weights, {w.path: w.kept() for w in weights}), {"": x})
    return {w.path: np.concatenate(list(features(calls, w))) for w in weights}


@pytest.mark.slow_on_jax
def test_sparsegpt_of_a_transformer():
    keras.utils.set_random_seed(3)
    model, x = transformer(), tokens()
    report = kprune.mask(model)
    assert len(report.masked) == 7
    before, outputs = {w.path: w.value() for w in kprune.masked_weights(model)}, model.predict(x, verbose=0)
    others = [np.asarray(v) for v in model.weights if "kernel" not in v.path and v.dtype != "bool"]
    masks = kprune.prune_after_training(model, 0.5, data=(x[:48],), block=5, verbose=0)
    for w in kprune.masked_weights(model):
        assert int((~masks[w.path]).sum()) == w.size // 2
        assert not np.array_equal(w.value()[w.kept()], before[w.path][w.kept()])
    assert_zero(model)
    after = [np.asarray(v) for v in model.weights if "kernel" not in v.path and v.dtype != "bool"]
    assert all(map(np.array_equal, others, after))

    error = np.square(model.predict(x[48:], verbose=0) - outputs[48:]).mean()
    magnitude = transformer()
    for w, v in zip(kprune.masked_weights(kprune.mask(magnitude).model), before.values(), strict=True):
        w.variable.assign(v)
    kprune.prune(magnitude, "magnitude", 0.5, scope="layerwise")
    assert error < np.square(magnitude.predict(x[48:], verbose=0) - outputs[48:]).mean()


def test_two_of_four_along_the_inputs_of_every_kind_of_layer():
    model = keras.Sequential(
        [keras.Input((5, 5, 6)), layers.Conv2D(3, 2, strides=2, name="conv"), layers.Flatten(), layers.Dense(5)]
    )
    x = np.random.default_rng(0).normal(size=(40, 5, 5, 6))
    masks = kprune.prune_after_training(model, 0.5, data=(x,), pattern="2:4", verbose=0)
    conv, dense = masks.values()
    # Six channels: a group of four and one of two at each of four positions.
    assert (conv[:, :, :4].sum(2) == 2).all() and conv[:, :, 4:].all()
    assert (dense.reshape(3, 4, 5).sum(1) == 2).all()
    with pytest.raises(ValueError, match=r"must be 0.5 for the pattern 2:4. Received: sparsity=0.6$"):
        kprune.prune_after_training(model, 0.6, data=(x,), pattern="2:4")


def test_pruned_weights_stay_pruned_and_groups_have_their_own_sparsity():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="one"), layers.Dense(2, name="two")], name="net")
    x = np.random.default_rng(0).normal(size=(30, 4))
    kprune.mask(model)
    first = np.ones((4, 4), bool)
    first[2] = False
    kprune.set_masks(model, {"net/one/kernel": first})
    masks = kprune.prune_after_training(model, {"one": 0.5}, data=(x,), block=2, verbose=0)
    assert not masks["net/one/kernel"][2].any() and int((~masks["net/one/kernel"]).sum()) == 8
    assert masks["net/two/kernel"].all()
    again = kprune.prune_after_training(model, {"one": 0.25}, data=(x,), verbose=0)
    np.testing.assert_array_equal(again["net/one/kernel"], masks["net/one/kernel"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0$"),
        ({"block": 0}, "block=0$"),
        ({"damping": 0.0}, "damping=0.0$"),
        ({"pattern": "channel"}, r"must be \"unstructured\" or an n:m pattern.*pattern='channel'$"),
        ({"batches": 0}, "batches=0$"),
        ({"data": (np.full((4, 8), np.nan),)}, "The inputs of .*infinite or NaN.*model='net'$"),
    ],
)
def test_bad_arguments_change_nothing(arguments, message):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3), layers.Dense(2)], name="net")
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        kprune.prune_after_training(model, **{"sparsity": 0.5, "data": (np.ones((4, 8)),), "verbose": 0, **arguments})
    assert not kprune.masked_weights(model)
    assert all(map(np.array_equal, before, model.get_weights()))


def pruned_below(value=0.0, store="zero"):
    """Two inputs and two outputs; what reads the second input is pruned, and stored as `value`."""
    dense = layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense])
    kprune.mask(model, store=store)
    dense.set_weights([np.array([[1.0, 2.0], [value, value]], "float32")])
    (weight,) = kprune.masked_weights(model)
    kprune.set_masks(model, {weight.path: np.array([[True, True], [False, False]])})
    return model, dense


def test_what_later_blocks_have_pruned_already_counts():
    model, dense = pruned_below()
    masks = kprune.prune_after_training(model, 0.5, data=(np.eye(2),), block=1, verbose=0)
    assert [mask.tolist() for mask in masks.values()] == [[[True, True], [False, False]]]
    np.testing.assert_array_equal(dense.kernel, [[1, 2], [0, 0]])


def test_values_behind_the_masks_play_no_part():
    model, _ = pruned_below(value=5.0, store="latent")
    x = np.array([[1.0, 1.0]])
    before = model.predict(x, verbose=0)
    kprune.prune_after_training(model, 0.5, data=(x,), verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)


def test_layers_whose_inputs_are_not_known_are_named_before_anything_changes():
    model = keras.Sequential([keras.Input((4, 2)), layers.Dense(3, name="first"), layers.GRU(3, name="gru")])
    before = model.get_weights()
    for prune in (
        lambda: kprune.prune_after_training(model, 0.5, data=(np.ones((4, 4, 2)),), verbose=0),
        lambda: kprune.prune(model, "wanda", 0.5, data=(np.ones((4, 4, 2)),)),
    ):
        with pytest.raises(ValueError, match=r"Cannot record the inputs of .*gru.*class=GRU"):
            prune()
        assert all(map(np.array_equal, before, model.get_weights()))


def test_wanda_by_hand():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, use_bias=False)])
    model.set_weights([np.array([[1.0, -2.0], [3.0, 1.0], [1.0, 2.0]])])
    kprune.mask(model)
    [weight] = kprune.masked_weights(model)
    batches = [(np.array([[3.0, 1.0, 0.0]]), None, None), (np.array([[-4.0, 0.0, 2.0]]), None, None)]
    scores = wanda(Context(model, [weight], {weight.path: weight.kept()}, data=batches))
    np.testing.assert_allclose(scores[weight.path], [[5.0, 10.0], [3.0, 1.0], [2.0, 4.0]])  # norms 5, 1, 2
    masks = kprune.prune(model, "wanda", 2 / 3, pattern="fan_in", data=[b[:1] for b in batches], batches=None)
    assert masks[weight.path].tolist() == [[True, True], [False, False], [False, False]]


KERNELS = {
    "strides": (layers.Conv2D(2, (2, 3), strides=2, use_bias=False), (5, 7, 3)),
    "dilated same": (layers.Conv2D(2, 3, dilation_rate=2, padding="same", use_bias=False), (5, 6, 2)),
    "strided same": (layers.Conv2D(2, 3, strides=2, padding="same", use_bias=False), (6, 5, 2)),
    "causal": (layers.Conv1D(2, 3, padding="causal", use_bias=False), (6, 2)),
    "one by one": (layers.Conv3D(3, 1, use_bias=False), (2, 2, 3, 4)),
    "einsum": (layers.EinsumDense("abcd,dce->abe", (4, 3)), (4, 3, 5)),
    "einsum, any rank": (layers.EinsumDense("...x,xyz->...yz", (3, 2)), (4, 5)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_layer_is_the_product_of_its_inputs_and_its_weights(name):
    """X W are the layer's own outputs, and Wanda's norms those of X."""
    layer, shape = KERNELS[name]
    model = keras.Sequential([keras.Input(shape), layer.__class__.from_config(layer.get_config())])
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    kprune.mask(model)
    [weight] = kprune.masked_weights(model)
    [matrix] = inputs_of(model, x).values()
    kernel = kprune.masks.layout.layout_of(weight).canonical(weight.value())
    outputs = model.predict(x, verbose=0)
    product = matrix @ kernel.reshape(-1, kernel.shape[-1])
    np.testing.assert_allclose(product, outputs.reshape(-1, kernel.shape[-1]), rtol=1e-4, atol=1e-5)
    score = wanda(Context(model, [weight], {weight.path: weight.kept()}, data=[(x, None, None)]))[weight.path]
    norms = np.linalg.norm(matrix, axis=0).reshape(*kernel.shape[:-1], 1)
    expected = kprune.masks.layout.layout_of(weight).original(np.abs(kernel) * norms)
    np.testing.assert_allclose(score, expected, rtol=1e-5)
