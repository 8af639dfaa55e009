"""Scopes: how a sparsity is shared, in exact integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kprune.patterns import unstructured
from kprune.scopes import SCOPES, global_scope, layerwise, with_floor, zeros_for


@pytest.fixture(autouse=True)
def seeded():
    """In place of conftest's: nothing here touches Keras, whose session takes longer to clear than a test to run."""


steady = settings(max_examples=200, deadline=None, derandomize=True, database=None)

TIED = st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 0.5, 1.0, 1.0009765625, 60000.0])
FINITE = st.sampled_from([0.0, 0.5, 1.0, 3.0])
SHAPES = array_shapes(min_dims=1, max_dims=3, max_side=5)
SPARSITIES = st.one_of(st.integers(0, 999).map(lambda k: k / 1000), st.floats(0, 0.999))


def weights(elements=TIED):
    """1 to 5 weights with their scores."""
    scores = st.lists(arrays(np.float64, SHAPES, elements=elements), min_size=1, max_size=5)
    return scores.map(lambda arrays: {f"layer{i}/kernel": score for i, score in enumerate(arrays)})


def size_of(scores):
    return sum(score.size for score in scores.values())


# zeros_for


def test_zeros_by_hand():
    assert [zeros_for(100, s) for s in (0.0, 0.29, 0.57, 0.58, 0.999)] == [0, 29, 57, 58, 99]
    assert [zeros_for(9, s) for s in (0.5, 1 / 3, 0.111, 0.112)] == [4, 3, 0, 1]
    assert zeros_for(266_200, 0.9) == 239_580
    assert zeros_for(14_715_584, 0.999) == 14_700_868  # 14,700,868.416


@steady
@given(st.integers(0, 10**7), st.integers(1, 6), st.data())
def test_zeros_of_a_decimal_are_those_of_the_exact_fraction(size, digits, data):
    k = data.draw(st.integers(0, 10**digits - 1))
    assert zeros_for(size, k / 10**digits) == k * size // 10**digits


@steady
@given(st.integers(1, 10**7), st.floats(0, 1, exclude_max=True))
def test_never_more_zeros_than_asked_for(size, sparsity):
    exact = Fraction(sparsity) * size
    assert exact - 1 - Fraction(1, 10**6) < zeros_for(size, sparsity) <= exact + Fraction(1, 10**6)


@steady
@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_zeros_are_monotone(size, one, other):
    low, high = sorted([one, other])
    assert zeros_for(size, low) <= zeros_for(size, high)


# global and layerwise


def test_global_by_hand():
    scores = {"a": np.array([[9.0, 1.0], [5.0, 5.0]]), "b": np.array([5.0, 7.0, 0.0, 0.0])}
    assert global_scope(scores, 0.0) == {"a": 4, "b": 4}
    assert global_scope(scores, 0.5) == {"a": 3, "b": 1}  # 9, 7, and of three fives the first two
    assert global_scope(scores, 0.625) == {"a": 2, "b": 1}
    assert global_scope(scores, 0.75) == {"a": 1, "b": 1}
    assert global_scope(scores, 0.875) == {"a": 1, "b": 0}
    assert global_scope(scores, 0.99) == {"a": 1, "b": 0}  # floor(7.92) zeros


def test_layerwise_by_hand():
    scores = {"a": np.zeros((10, 10)), "b": np.ones(7), "c": np.ones(1)}
    assert layerwise(scores, 0.57) == {"a": 43, "b": 4, "c": 1}
    assert layerwise(scores, 0.0) == {"a": 100, "b": 7, "c": 1}


@steady
@given(weights(), SPARSITIES)
def test_global_counts_are_exact_and_the_highest(scores, sparsity):
    n_keep = global_scope(scores, sparsity)
    total = size_of(scores)
    assert list(n_keep) == list(scores)
    assert sum(n_keep.values()) == total - zeros_for(total, sparsity)
    # Sorted by (score downwards, weight, index), the first ones are kept: what each weight then keeps is its own
    # highest, so scope and pattern together are the one global ranking.
    flat = [(-value, i) for i, value in enumerate(np.concatenate([s.reshape(-1) for s in scores.values()]).tolist())]
    kept = {i for _, i in sorted(flat)[: sum(n_keep.values())]}
    start = 0
    for path, score in scores.items():
        expected = np.array([start + i in kept for i in range(score.size)]).reshape(score.shape)
        np.testing.assert_array_equal(unstructured(score, n_keep[path]), expected)
        start += score.size


@steady
@given(weights(), st.integers(0, 999))
def test_layerwise_counts_are_exact(scores, k):
    n_keep = layerwise(scores, k / 1000)
    assert n_keep == {path: score.size - k * score.size // 1000 for path, score in scores.items()}


SCOPED = {"global": global_scope, "layerwise": layerwise, "floor of 1": with_floor("global", 1)}


@pytest.mark.parametrize("name", SCOPED)
@steady
@given(scores=weights(FINITE), one=SPARSITIES, other=SPARSITIES)
def test_masks_are_nested(name, scores, one, other):
    scope = SCOPED[name]
    low, high = sorted([one, other])
    if name == "floor of 1" and size_of(scores) - zeros_for(size_of(scores), high) < len(scores):
        return  # the floor cannot be kept
    many, few = scope(scores, low), scope(scores, high)
    for path, score in scores.items():
        assert few[path] <= many[path]
        assert not np.any(unstructured(score, few[path]) & ~unstructured(score, many[path]))


@pytest.mark.parametrize("name", ["global", "layerwise"])
@steady
@given(scores=weights(), sparsity=SPARSITIES, data=st.data())
def test_counts_do_not_depend_on_the_dtype(name, scores, sparsity, data):
    mixed = {
        path: score.astype(data.draw(st.sampled_from(["float16", "float32", "float64"])))
        for path, score in scores.items()
    }
    assert SCOPED[name](mixed, sparsity) == SCOPED[name](scores, sparsity)


# Floors


def test_floors_by_hand():
    scores = {"a": np.array([9.0, 8.0, 7.0, 6.0]), "b": np.array([4.0, 3.0]), "c": np.array([2.0, 1.0])}
    assert global_scope(scores, 0.5) == {"a": 4, "b": 0, "c": 0}
    assert with_floor("global", 0)(scores, 0.5) == {"a": 4, "b": 0, "c": 0}
    assert with_floor("global", 1)(scores, 0.5) == {"a": 2, "b": 1, "c": 1}
    assert with_floor("global", 0.5)(scores, 0.5) == {"a": 2, "b": 1, "c": 1}
    assert with_floor("global", 1)(scores, 0.25) == {"a": 4, "b": 1, "c": 1}
    assert with_floor("global", 5)(scores, 0.0) == {"a": 4, "b": 2, "c": 2}  # of a smaller weight, all of it
    assert with_floor(layerwise, 2)({"a": np.ones(8), "b": np.ones(2)}, 0.5) == {"a": 3, "b": 2}


@pytest.mark.parametrize(("floor", "least"), [(0.07, 7), (0.14, 14), (0.29, 29), (0.5, 50), (0.505, 51), (0.55, 55)])
def test_a_density_floor_is_exact_too(floor, least):
    scores = {"a": np.ones(200), "b": np.zeros(100)}
    assert with_floor("global", floor)(scores, 0.2) == {"a": 240 - max(40, least), "b": max(40, least)}


def test_a_floor_of_numpys_is_a_number_of_entries_too():
    scores = {"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}
    assert with_floor("global", np.int64(1))(scores, 0.5) == {"a": 1, "b": 1}


@pytest.mark.parametrize("base", ["global", "layerwise"])
@steady
@given(scores=weights(FINITE), sparsity=SPARSITIES, floor=st.one_of(st.integers(0, 6), st.integers(0, 100)))
def test_floors_hold_and_the_budget_stays(base, scores, sparsity, floor):
    floor = floor if floor <= 6 else floor / 100
    least = {
        path: min(s.size, floor if isinstance(floor, int) else math.ceil(Fraction(str(floor)) * s.size))
        for path, s in scores.items()
    }
    plain = SCOPES.get(base)(scores, sparsity)
    if sum(least.values()) > sum(plain.values()):
        with pytest.raises(ValueError, match="floors need"):
            with_floor(base, floor)(scores, sparsity)
        return
    n_keep = with_floor(base, floor)(scores, sparsity)
    assert list(n_keep) == list(scores)
    assert sum(n_keep.values()) == sum(plain.values())
    assert all(least[path] <= n_keep[path] <= scores[path].size for path in scores)
    if all(plain[path] >= least[path] for path in scores):
        assert n_keep == plain


@steady
@given(scores=weights(), sparsity=SPARSITIES, floor=st.integers(1, 4))
def test_a_floor_asks_for_no_more_than_is_alive(scores, sparsity, floor):
    # Pruned entries (-inf) cannot be kept: a floor that counts on them takes the budget from the others for nothing.
    alive = {path: int(np.count_nonzero(score > -np.inf)) for path, score in scores.items()}
    budget = size_of(scores) - zeros_for(size_of(scores), sparsity)
    if budget > sum(alive.values()) or sum(min(floor, n) for n in alive.values()) > budget:
        return
    n_keep = with_floor("global", floor)(scores, sparsity)
    assert sum(min(n_keep[path], alive[path]) for path in scores) == budget
    assert all(n_keep[path] >= min(floor, alive[path]) for path in scores)


def test_floors_that_cannot_be_kept():
    scores = {"a": np.ones(4), "b": np.ones(4)}
    with pytest.raises(ValueError, match=r"floors need 6 entries, sparsity 0.5 leaves 4.*Received: floor=3$"):
        with_floor("global", 3)(scores, 0.5)


@pytest.mark.parametrize("floor", [-1, -0.1, 1.5, math.nan, "1", None], ids=repr)
def test_bad_floors(floor):
    with pytest.raises(ValueError) as error:
        with_floor("global", floor)
    assert str(error.value).partition("Received: ")[2] in (f"floor={floor}", f"floor={floor!r}")


def test_names():
    assert SCOPES.get("global") is global_scope and SCOPES.get("layerwise") is layerwise
    with pytest.raises(ValueError, match=r"'global', 'layerwise'.*Received: scope='local'$"):
        SCOPES.get("local")
    with pytest.raises(ValueError, match=r"'global', 'layerwise'.*Received: scope='local'$"):
        with_floor("local")


def test_a_floor_under_a_scope_of_ones_own():
    def only_the_first(scores, sparsity):
        left = size_of(scores) - zeros_for(size_of(scores), sparsity)
        return {path: left if i == 0 else 0 for i, path in enumerate(scores)}

    scores = {"a": np.ones(4), "b": np.ones(3), "c": np.ones(1)}
    assert only_the_first(scores, 0.5) == {"a": 4, "b": 0, "c": 0}
    assert with_floor(only_the_first, 1)(scores, 0.5) == {"a": 2, "b": 1, "c": 1}
