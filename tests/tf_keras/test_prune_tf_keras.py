"""`kprune.prune` on tf_keras models: the same counts, and a model that is as it was when anything is wrong."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from helpers import EachBatch, assert_zero, data
from tfk_helpers import masked_mlp, mlp, state

import kprune


def zeros(model):
    return sum(int((~w.kept()).sum()) for w in kprune.masked_weights(model))


@pytest.mark.parametrize("criterion", ["magnitude", "random", "synflow"])
@pytest.mark.parametrize("sparsity", [0.0, 0.57, 0.999])
def test_the_number_of_zeros_is_exact(criterion, sparsity):
    model = masked_mlp(half=False)
    masks = kprune.prune(model, criterion, sparsity, rounds=2)
    expected = round(1000 * sparsity) * 276 // 1000
    assert zeros(model) == sum(int((~m).sum()) for m in masks.values()) == expected
    for w in kprune.masked_weights(model):
        np.testing.assert_array_equal(w.value()[~masks[w.path]], 0.0)


def test_an_all_equal_kernel_is_pruned_exactly():
    ours = kprune.mask(mlp(kernel_initializer="ones")).model
    kprune.prune(ours, "magnitude", 0.5)
    flat = np.concatenate([w.kept().reshape(-1) for w in kprune.masked_weights(ours)])
    np.testing.assert_array_equal(flat, np.arange(276) < 138)


def test_what_tfmot_makes_of_an_all_equal_kernel():
    # Why the test above is worth its name: at a threshold that all reach, tfmot keeps all.
    theirs = tfmot.sparsity.keras.prune_low_magnitude(
        mlp(kernel_initializer="ones"), tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    )
    theirs.compile(tf_keras.optimizers.SGD(0.0), "mse")
    theirs.fit(*data(), verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    assert zeros(theirs) == 0
    kprune.prune(theirs, "magnitude", 0.5)
    assert zeros(theirs) == 138


def test_pruning_again_prunes_survivors_only():
    model = masked_mlp("adam", half=False)
    x, y = data()
    model.fit(x, y, batch_size=16, verbose=0)
    half = kprune.prune(model, "magnitude", 0.5)
    more = kprune.prune(model, "random", 0.8)
    assert zeros(model) == 220
    assert not any(np.any(more[path] & ~half[path]) for path in half)
    before = state(model)
    kprune.prune(model, "magnitude", 0.3)
    assert state(model) == before
    check = EachBatch(assert_zero)
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[check])
    assert check.calls == 2 and zeros(model) == 220


def test_a_model_that_the_user_wrapped_is_adopted():
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.9, 0, 4, frequency=1)
    model = tfmot.sparsity.keras.prune_low_magnitude(mlp(), schedule)
    kprune.prune(model, "magnitude", 0.5)
    model.compile("sgd", "mse")
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[EachBatch(assert_zero)])
    assert zeros(model) == 138


def test_a_model_without_masks_is_refused_with_the_remedy():
    model = mlp()
    model.compile("adam", "mse")
    model.fit(*data(), verbose=0)
    before, kinds = state(model), [type(layer) for layer in model.layers]
    message = rf"`model = kprune\.mask\(model\)\.model`.*Received: model='{model.name}'$"
    with pytest.raises(ValueError, match=message):
        kprune.prune(model, "magnitude", 0.5)
    for callback in (kprune.callbacks.PruneAtInit("magnitude", 0.5), kprune.callbacks.SynFlow(0.5)):
        with pytest.raises(ValueError, match=message):
            model.fit(*data(), verbose=0, callbacks=[callback])
    assert state(model) == before and [type(layer) for layer in model.layers] == kinds
    remedied = kprune.mask(model).model
    kprune.prune(remedied, "magnitude", 0.5)
    assert zeros(remedied) == 138


@pytest.mark.parametrize("how", ["functional", "sequential"])
def test_synflow_is_float64_also_in_a_model_inside_the_model(how):
    # Their gain, 1e58, is beyond float32.
    scores = []
    for nest in (None, how):
        dense = [tf_keras.layers.Dense(8, use_bias=False, name=f"dense{i}") for i in range(16)]
        x = inputs = tf_keras.Input((8,))
        for layer in dense[:-1]:
            x = layer(x)
        inner = tf_keras.Input((8,))
        if nest == "sequential":
            x = tf_keras.Sequential([inner, dense[-1]])(x)
        else:
            x = (tf_keras.Model(inner, dense[-1](inner)) if nest else dense[-1])(x)
        model = kprune.mask(tf_keras.Model(inputs, x)).model
        rng = np.random.default_rng(0)
        for w in kprune.masked_weights(model):
            w.variable.assign(1e3 * rng.normal(size=w.shape))
        weights = kprune.masked_weights(model)
        context = kprune.criteria.Context(model, weights, {w.path: w.kept() for w in weights})
        scores.append([*kprune.criteria.synflow(context).values()])
    for one, other in zip(*scores, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


class OwnError(Exception):
    pass


def raising(context):
    raise OwnError


def with_a_nan(context):
    return {w.path: np.full(w.shape, np.nan) for w in context.weights}


def missing(context):
    return {}


WRONG = {
    "sparsity": (dict(sparsity=1.0), ValueError, "Received: sparsity=1.0$"),
    "rounds": (dict(rounds=0), ValueError, "Received: rounds=0$"),
    "name": (
        dict(criterion="nonesuch"),
        ValueError,
        "'magnitude', .*'random', .*'synflow'.*Received: criterion='nonesuch'$",
    ),
    "raises": (dict(criterion=raising), OwnError, "^$"),
    "NaN": (dict(criterion=with_a_nan), ValueError, "hidden1/kernel.*Received: criterion='with_a_nan'"),
    "missing": (dict(criterion=missing), ValueError, "hidden1/kernel.*Received: criterion='missing'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_leaves_the_model_as_it_was(case):
    model = masked_mlp("adam")
    model.fit(*data(), batch_size=16, verbose=0)
    before = state(model)
    arguments, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        kprune.prune(model, **{"criterion": "magnitude", "sparsity": 0.9, **arguments})
    assert state(model) == before
