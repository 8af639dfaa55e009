"""The contract of scopes and patterns, each with the other, with criteria and with groups."""

import itertools

import keras
import numpy as np
import pytest
from contract_models import assert_all_equal, masks_of, shared, two_by_two
from contract_rows import ALL_PATTERNS, CRITERIA_ROWS, SCOPE_NEEDS, SCOPE_ROWS, STRUCTURED, alive
from helpers import assert_zero, steady
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import kprune
from kprune.patterns import PATTERNS
from kprune.scopes import SCOPES

pytestmark = pytest.mark.one_session

SCORES = arrays(
    np.float64,
    array_shapes(min_dims=1, max_dims=4, max_side=4),
    elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 1.0, 2.0]),
)


@pytest.mark.once
@pytest.mark.parametrize("name", SCOPE_ROWS)
@steady
@given(arrays=st.lists(SCORES, min_size=1, max_size=4), one=st.floats(0, 0.999), other=st.floats(0, 0.999))
def test_scope(name, arrays, one, other):
    scope = SCOPES.get(name)
    scores = {f"layer{i}": array for i, array in enumerate(arrays)}
    copies = [array.copy() for array in arrays]
    low, high = sorted([one, other])
    for sparsity in (low, high):
        if SCOPE_ROWS[name]([array.size for array in arrays], sparsity) < SCOPE_NEEDS.get(name, lambda _: 0)(arrays):
            with pytest.raises(ValueError, match=r"require .* Received: "):
                scope(scores, sparsity)
            return
    many, few = scope(scores, low), scope(scores, high)
    for n_keep, sparsity in [(many, low), (few, high), (scope(scores, 0.0), 0.0)]:
        assert list(n_keep) == list(scores)
        assert all(0 <= n_keep[path] <= score.size for path, score in scores.items())
        assert all(n == int(n) for n in n_keep.values())
        assert sum(n_keep.values()) == SCOPE_ROWS[name]([array.size for array in arrays], sparsity)
    assert all(few[path] <= many[path] for path in scores)
    assert scope(scores, low) == many
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.once
@pytest.mark.parametrize("name", ALL_PATTERNS)
@steady
@given(score=SCORES, draw=st.data())
def test_pattern(name, score, draw):
    pattern, row = PATTERNS.get(name), ALL_PATTERNS[name]
    few, many = sorted([draw.draw(st.integers(0, score.size)), draw.draw(st.integers(0, score.size))])
    copy, block = score.copy(), row.block(score.shape if score.ndim > 1 else (*score.shape, 1))
    masks = [pattern(score, n) for n in (few, many)]
    for n, mask in zip((few, many), masks, strict=True):
        assert mask.dtype == np.bool_ and mask.shape == score.shape
        n = n if row.prunes_again else min(n, alive(score))
        assert n <= np.count_nonzero(mask) <= n + block - 1
        np.testing.assert_array_equal(pattern(score, n), mask)
    assert not np.any(masks[0] & ~masks[1])
    everything = np.ones(score.shape, bool) if row.prunes_again else score > -np.inf
    np.testing.assert_array_equal(pattern(score, score.size), everything)
    assert not pattern(score, 0).any()
    np.testing.assert_array_equal(score, copy)


def most_kept(pattern, weights):
    """By how many entries a pattern may keep more than it is asked to, of all these weights."""
    return sum(ALL_PATTERNS[pattern].block(w.shape) - 1 for w in weights)


# Both work on NumPy's arrays: all pairs on one backend, on the other each scope with one pattern, in turn.
PAIRS = list(itertools.product(SCOPE_ROWS, ALL_PATTERNS))
if keras.backend.backend() != "tensorflow":
    PAIRS = list(zip(SCOPE_ROWS, itertools.cycle(ALL_PATTERNS), strict=False))


@pytest.mark.parametrize(("scope", "pattern"), PAIRS)
def test_scopes_and_patterns_together(scope, pattern):
    model = two_by_two()
    kprune.mask(model)
    weights = kprune.masked_weights(model)
    sizes = [w.size for w in weights]
    needs = SCOPE_NEEDS.get(scope, lambda _: 0)([w.value() for w in weights])
    masks = {}
    for sparsity in (0.3, 0.57, 0.9):
        if SCOPE_ROWS[scope](sizes, sparsity) < needs:
            assert sparsity == 0.9
            with pytest.raises(ValueError, match=r"require .* Received: "):
                kprune.prune(model, "magnitude", sparsity, scope=scope, pattern=pattern)
            break
        new = kprune.prune(model, "magnitude", sparsity, scope=scope, pattern=pattern)
        kept, asked = sum(int(m.sum()) for m in new.values()), SCOPE_ROWS[scope](sizes, sparsity)
        assert asked <= kept <= asked + most_kept(pattern, weights)
        if scope == "global":
            assert kept < asked + max(ALL_PATTERNS[pattern].block(w.shape) for w in weights)
        assert all(not np.any(new[path] & ~masks[path]) for path in masks)
        masks = new
        assert_zero(model)
        # As a fit that is resumed does: to the same sparsity once more, with scores that have changed.
        assert_all_equal(kprune.prune(model, "random", sparsity, scope=scope, pattern=pattern), masks)


def assert_pattern(pattern, weights, masks, sparsity):
    """The pattern's shape, and the number of zeros that its own scope comes to."""
    scope = "layerwise" if ":" in pattern else "global"
    asked = SCOPE_ROWS[scope]([w.size for w in weights], sparsity)
    kept = sum(int(masks[w.path].sum()) for w in weights)
    assert asked <= kept <= asked + most_kept(pattern, weights)
    assert all(ALL_PATTERNS[pattern].holds(masks[w.path]) for w in weights)


# A pattern sees nothing of a criterion but an array: each with one of the others, in turn.
@pytest.mark.parametrize(("criterion", "pattern"), list(zip(CRITERIA_ROWS, itertools.cycle(STRUCTURED), strict=False)))
def test_criteria_and_patterns_together(criterion, pattern):
    model = shared("flat")
    masks = masks_of(model, criterion, 0.8, rounds=3, pattern=pattern)
    assert_pattern(pattern, kprune.masked_weights(model), masks, 0.8)


@pytest.mark.parametrize("pattern", STRUCTURED)
def test_groups_and_patterns_together(pattern):
    model = shared("two by two")
    masks = masks_of(model, "magnitude", {"hidden": 0.9, "logits": 0.8}, pattern=pattern)
    for expression, sparsity in {"hidden": 0.9, "logits": 0.8}.items():
        group = [w for w in kprune.masked_weights(model) if expression in w.path]
        assert_pattern(pattern, group, masks, sparsity)
    assert sum(mask.all() for mask in masks.values()) == 2
