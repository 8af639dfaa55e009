"""Group lasso and weight elimination on models that are built already, masked and unmasked."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, assert_zero, mlp
from keras import layers, ops

import kprune
from kprune.masks import strip
from kprune.regularizers import GroupLasso, WeightElimination, regularize


def penalty(regularizer, weight):
    return float(regularizer(ops.convert_to_tensor(np.array(weight, "float32"))))


def test_group_lasso_by_hand():
    weight = [[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]]
    assert penalty(GroupLasso(0.5), weight) == pytest.approx(0.5 * 2**0.5 * (5 + 0 + 1))
    assert penalty(GroupLasso(0.5, axes=[0]), weight) == pytest.approx(0.5 * 3**0.5 * (10**0.5 + 4))
    assert penalty(GroupLasso(1.0, axes=(0, 1)), weight) == pytest.approx(8.0)  # each entry: L1


def test_weight_elimination_by_hand():
    assert penalty(WeightElimination(2.0, scale=0.5), [0.0, 0.5, -1.5]) == pytest.approx(2 * (0 + 0.5 + 0.9))


def kernel_after_a_step(regularizer, masked):
    """A dense layer of kernel [[3, 0, 1], [4, 0, 2]] after a step of SGD(0.1) whose loss has no gradient."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1), "mse", **CHEAP)
    x, y = np.zeros((1, 2)), np.zeros((1, 3))
    model.fit(x, y, verbose=0)  # compiled without it
    model.set_weights([np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 2.0]])])
    if masked:
        kprune.mask(model)
        mask = np.ones((2, 3), bool)
        mask[0, 0] = False
        kprune.set_masks(model, {kprune.masked_weights(model)[0].path: mask})
    regularize(model, regularizer)
    model.fit(x, y, verbose=0)
    if masked:
        assert_zero(model)
    return np.asarray(model.layers[0].kernel)


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_under_a_penalty_by_hand(masked):
    """d/dw of sqrt(2) * ||w|| is sqrt(2) * w / ||w||; a unit of zeros stays, and what is pruned is in no norm."""
    kernel = kernel_after_a_step(GroupLasso(1.0), masked)
    first = np.array([0.0, 4.0]) if masked else np.array([3.0, 4.0])
    for column, before in zip(kernel.T, [first, np.zeros(2), np.array([1.0, 2.0])], strict=True):
        norm = np.linalg.norm(before) or 1.0
        np.testing.assert_allclose(column, before - 0.1 * 2**0.5 * before / norm, rtol=1e-5)


def test_a_step_of_weight_elimination_by_hand():
    """d/dw is 2 w / (1 + w^2)^2: it pulls small weights harder than large ones."""
    kernel, before = kernel_after_a_step(WeightElimination(1.0), False), np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 2.0]])
    np.testing.assert_allclose(kernel, before - 0.1 * 2 * before / (1 + before**2) ** 2, rtol=1e-5)


def test_units_are_those_of_each_layer():
    inputs = keras.Input((4, 6))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    x = layers.Conv1DTranspose(5, 2, name="up")(x)
    model = keras.Model(inputs, layers.GRU(2, name="gru")(x), name="net")
    found = regularize(model, GroupLasso(0.1))
    axes = {v.path: v.regularizer.axes for v in model.trainable_variables if v.path in found}
    assert axes == {
        "attention/query/kernel": (1, 2),
        "attention/key/kernel": (1, 2),
        "attention/value/kernel": (1, 2),
        "attention/attention_output/kernel": (2,),
        "up/kernel": (1,),
        **dict.fromkeys([path for path in found if "gru" in path], (1,)),
    }
    assert len(found) == 7 and len(model.losses) == 7


def test_it_lasts_through_masks_and_files_and_can_be_taken_away(tmp_path):
    model = mlp()
    assert len(regularize(model, GroupLasso(0.1), filters="hidden")) == 2
    expected = [float(loss) for loss in model.losses]
    kprune.mask(model)
    assert [float(loss) for loss in model.losses] == expected
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [float(loss) for loss in loaded.losses] == pytest.approx(expected)
    assert [float(loss) for loss in strip(model).losses] == expected
    regularize(model, None)
    assert model.losses == [] and model.layers[0].kernel_regularizer is None


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: GroupLasso(-1.0), "strength=-1.0$"),
        (lambda: GroupLasso("a"), "strength='a'$"),
        (lambda: GroupLasso(1.0, axes=()), r"axes=\(\)$"),
        (lambda: GroupLasso(1.0, axes=0), "axes=0$"),
        (lambda: WeightElimination(1.0, scale=0.0), "scale=0.0$"),
        (lambda: regularize(mlp(), 0.1), "regularizer=0.1$"),
        (lambda: regularize(mlp(), GroupLasso(0.1), filters="none"), r"filters='none', weights=\('kernel'"),
        (lambda: regularize(mlp(), GroupLasso(0.1), filters="("), r"filters='\('"),
        (lambda: regularize(mlp(kernel_regularizer="l2"), GroupLasso(0.1)), "regularizer=GroupLasso$"),
    ],
)
def test_wrong_arguments_are_refused(make, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        make()
