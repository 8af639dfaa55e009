"""The contract of the criteria."""

import functools
import random

import keras
import numpy as np
import pytest
from contract_models import (
    MODELS,
    assert_all_equal,
    batch_for,
    count_zeros,
    flat,
    masks_of,
    needed,
    scores_of,
    shared,
    trained,
    two_by_two,
)
from contract_rows import CRITERIA_ROWS, Broken
from helpers import assert_programs_agree, assert_zero
from marks import with_slow
from test_prune import assert_unchanged, snapshot, zeros

import kprune
from kprune.masks.below import all_layers
from kprune.util.ranking import zeros_for

pytestmark = pytest.mark.one_session


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_criterion(name, kind):
    model = shared(kind)
    before = snapshot(model)
    scores = scores_of(model, name)
    assert_unchanged(model, before)

    weights = kprune.masked_weights(model)
    assert len(weights) == (5 if kind == "two by two" else 3)
    assert list(scores) == [w.path for w in weights]
    for w in weights:
        assert scores[w.path].shape == w.shape
        assert np.isfinite(scores[w.path]).all()
        differs = CRITERIA_ROWS[name].differs(w.path, w.shape)
        assert (np.unique(scores[w.path]).size > 1) == differs, f"{w.path}: {scores[w.path]}"

    assert_all_equal(scores_of(model, name), scores)
    if CRITERIA_ROWS[name].seeded:
        other = scores_of(model, name, seed=1)
        assert not any(np.array_equal(other[path], scores[path]) for path in scores)

    total = sum(w.size for w in weights)
    masks = masks_of(model, name, 0.57)
    assert count_zeros(masks) == 57 * total // 100
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_a_criterion_on_a_model_that_is_pruned(name):
    model = two_by_two()
    model.compile("sgd", "mse")
    masks = {}
    for sparsity in (0.3, 0.57, 0.9):
        new = kprune.prune(model, name, sparsity, rounds=2, **needed(model, name))
        assert count_zeros(new) == zeros(model) == zeros_for(80 + 24 + 144 + 27 + 16, sparsity)
        assert all(not np.any(new[path] & ~masks[path]) for path in masks)
        masks = new
        assert_zero(model)


@pytest.mark.parametrize(("kind", "masked"), [("nested", True), ("subclassed", False)], ids=["masked", "plain"])
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_a_criterion_that_raises_in_the_middle_leaves_everything_alone(name, kind, masked, monkeypatch):
    model = shared(kind, masked=masked)
    before = snapshot(model)
    x, _ = batch_for(kind)
    outputs = np.asarray(model(x))
    with monkeypatch.context() as patch:
        CRITERIA_ROWS[name].breaks(patch)
        with pytest.raises(Broken):
            kprune.prune(model, name, 0.5, rounds=3, **needed(model, name))
    assert_unchanged(model, before)
    assert bool(kprune.masked_weights(model)) == masked
    np.testing.assert_array_equal(np.asarray(model(x)), outputs)
    if masked:  # and the next one works
        assert count_zeros(masks_of(model, name, 0.5, rounds=3)) == 197 // 2


@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_scoring_draws_no_random_numbers(name):
    model = flat()
    model.compile("sgd", "mse")
    kprune.mask(model)
    draws = []
    for scores in (False, True):
        keras.utils.set_random_seed(11)
        if scores:
            scores_of(model, name)
        draws.append((random.random(), np.random.random(), float(keras.random.normal(()))))
    assert draws[0] == draws[1]


@functools.cache
def scores_in_float32(name):
    return scores_of(shared("nested"), name)


@pytest.mark.parametrize("policy", with_slow(["mixed_float16"], ["mixed_bfloat16"]))
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_criterion_under_mixed_precision(name, policy):
    model, mixed = shared("nested"), shared("nested", policy=policy)
    values = mixed.get_weights()
    mixed.set_weights(model.get_weights())
    before = snapshot(mixed)
    # The weights are float32 under each policy, so the scores are those of the float32 model.
    for one, other in zip(scores_of(mixed, name).values(), scores_in_float32(name).values(), strict=True):
        assert_programs_agree(one, other, rtol=1e-10)
    assert_unchanged(mixed, before)
    mixed.set_weights(values)


def scores_by_layer(name, make):
    """Layer -> scores, of a network with the weights of the flat one."""
    values, model = {layer.name: layer.get_weights() for layer in shared("flat", masked=False).layers}, make()
    for layer in all_layers(model):
        if values.get(layer.name):
            layer.set_weights(values[layer.name])
    model.compile("sgd", "mse")
    kprune.mask(model)
    return {path.split("/")[-2]: score for path, score in scores_of(model, name).items()}


@functools.cache
def scores_of_flat(name):
    return scores_by_layer(name, flat)


@pytest.mark.parametrize("kind", ["nested", "subclassed"])
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_the_way_a_model_is_written_does_not_matter(name, kind):
    one, other = scores_of_flat(name), scores_by_layer(name, MODELS[kind])
    assert one.keys() == other.keys() == {"hidden1", "hidden2", "logits"}
    for layer, score in one.items():
        if not CRITERIA_ROWS[name].seeded or list(one) == list(other):
            assert_programs_agree(score, other[layer], rtol=1e-12, err_msg=layer)


@pytest.mark.parametrize(
    "how", with_slow([dict(run_eagerly=True), dict(jit_compile=True)], [dict(jit_compile=False)]), ids=str
)
def test_the_way_a_model_is_compiled_does_not_matter(how):
    reference, model = flat(), trained("flat", **how)
    reference.compile("sgd", "mse")
    kprune.mask(reference)
    reference.set_weights(model.get_weights())
    for name in CRITERIA_ROWS:
        scores = [list(scores_of(m, name).values()) for m in (model, reference)]
        for one, other in zip(*scores, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
