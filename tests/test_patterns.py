"""Patterns: exact counts and ties by index, against a sort that states the order in one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kprune.patterns import PATTERNS, nth_highest, unstructured


@pytest.fixture(autouse=True)
def seeded():
    """In place of conftest's: nothing here touches Keras, whose session takes longer to clear than a test to run."""


steady = settings(max_examples=200, deadline=None, derandomize=True, database=None)

# Few values, so that most scores have many ties; each is exact in float16.
TIED = st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 0.5, 1.0, 1.0009765625, 60000.0])
SCORES = arrays(np.float64, array_shapes(min_dims=1, max_dims=4, max_side=5), elements=TIED)


@st.composite
def scores_and_count(draw):
    score = draw(SCORES)
    return score, draw(st.integers(0, score.size))


def by_sorting(score, n_keep):
    """The definition: the first `n_keep` of all entries ordered by (score downwards, index upwards)."""
    flat = score.reshape(-1).astype("float64")
    mask = np.zeros(flat.size, bool)
    mask[sorted(range(flat.size), key=lambda i: (-flat[i], i))[:n_keep]] = True
    return mask.reshape(score.shape)


def test_by_hand():
    score = np.array([[3.0, 1.0, 2.0], [2.0, 2.0, -np.inf]])
    kept = [np.flatnonzero(unstructured(score, n)).tolist() for n in range(7)]
    assert kept == [[], [0], [0, 2], [0, 2, 3], [0, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


def test_all_equal_and_all_pruned_scores_are_cut_exactly():
    for value in (0.0, 1.0, -np.inf, 1e-300):
        for n in (0, 1, 50, 99, 100):
            mask = unstructured(np.full((10, 10), value), n)
            assert mask.reshape(-1).tolist() == [True] * n + [False] * (100 - n)


def test_order_is_that_of_the_indices_not_of_the_memory():
    score = np.array([[1.0, 0.0], [1.0, 1.0]])
    for layout in (score, np.asfortranarray(score), np.stack([score, score], axis=-1)[..., 0]):
        np.testing.assert_array_equal(unstructured(layout, 2), [[True, False], [True, False]])


@steady
@given(scores_and_count())
def test_is_what_sorting_gives(case):
    score, n_keep = case
    before = score.copy()
    mask = unstructured(score, n_keep)
    assert mask.dtype == np.bool_ and mask.shape == score.shape
    assert np.count_nonzero(mask) == n_keep
    np.testing.assert_array_equal(mask, by_sorting(score, n_keep))
    np.testing.assert_array_equal(score, before)


@steady
@given(scores_and_count(), st.sampled_from(["float16", "float32", "bfloat16"]))
def test_does_not_depend_on_the_dtype(case, dtype):
    score, n_keep = case
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
        score = score.astype(dtype).astype("float64")
    np.testing.assert_array_equal(unstructured(score.astype(dtype), n_keep), unstructured(score, n_keep))


@steady
@given(SCORES, st.data())
def test_keeping_less_keeps_a_subset(score, data):
    few, many = sorted([data.draw(st.integers(0, score.size)), data.draw(st.integers(0, score.size))])
    assert not np.any(unstructured(score, few) & ~unstructured(score, many))


@steady
@given(scores_and_count())
def test_a_pruned_entry_is_kept_only_when_there_is_no_other(case):
    score, n_keep = case
    alive = score > -np.inf
    mask = unstructured(score, n_keep)
    assert np.count_nonzero(mask & alive) == min(n_keep, np.count_nonzero(alive))


LARGE = {
    "normal": lambda rng, n: rng.normal(size=n),
    "tied": lambda rng, n: rng.integers(0, 50, n),
    "mostly pruned": lambda rng, n: np.where(rng.random(n) < 0.9, -np.inf, rng.normal(size=n)),
    "all equal": lambda rng, n: np.zeros(n),
    "sorted": lambda rng, n: np.arange(n),
    "sorted down": lambda rng, n: -np.arange(n),
    # Seen at every 10th or 100th entry only, it looks like another vector.
    "periodic": lambda rng, n: np.where(np.arange(n) % 10 == 0, 1e6 + np.arange(n), rng.normal(size=n)),
    "low at every 10th": lambda rng, n: np.where(np.arange(n) % 10 == 0, -1e6, rng.normal(size=n)),
    "one spike": lambda rng, n: np.eye(1, n, n - 1)[0],
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("size", [4095, 4096, 8193, 40_960, 100_001])
def test_large_vectors(kind, size, rng):
    flat = LARGE[kind](rng, size).astype("float32")
    order = np.lexsort((np.arange(size), -flat))
    for n_keep in (1, 2, size // 1000, size // 10, size // 10 + 1, size // 2, size - 1, size):
        expected = np.zeros(size, bool)
        expected[order[:n_keep]] = True
        np.testing.assert_array_equal(unstructured(flat, n_keep), expected)


def assert_nth_highest(vectors, n):
    value, counts = nth_highest(vectors, n)
    assert value == np.sort(np.concatenate(vectors))[-n]
    assert counts == [(np.count_nonzero(v > value), np.count_nonzero(v == value)) for v in vectors]


@steady
@given(st.lists(SCORES, min_size=1, max_size=4), st.data())
def test_nth_highest_of_several_vectors(scores, data):
    vectors = [score.reshape(-1) for score in scores]
    n = data.draw(st.integers(1, sum(v.size for v in vectors)))
    assert_nth_highest(vectors, n)


def test_nth_highest_of_vectors_of_unlike_sizes_and_scales(rng):
    vectors = [rng.normal(size=n) * scale for n, scale in [(50_000, 1e-3), (3, 1e9), (20_000, 1.0), (1, 0.0)]]
    for n in (1, 2, 3, 4, 5, 100, 10_000, 35_000, 70_003, 70_004):
        assert_nth_highest(vectors, n)


@pytest.mark.parametrize("n_keep", [-1, 7])
def test_a_count_that_cannot_be(n_keep):
    with pytest.raises(ValueError, match=rf"from 0 to 6\. Received: n_keep={n_keep}$"):
        unstructured(np.zeros((2, 3)), n_keep)


def test_names():
    assert PATTERNS.get("unstructured") is unstructured
    assert PATTERNS.get(by_sorting) is by_sorting
    with pytest.raises(ValueError, match=r"'unstructured'.*Received: pattern='diagonal'$"):
        PATTERNS.get("diagonal")
    with pytest.raises(ValueError, match=r"registered already.*Received: name='unstructured'$"):
        PATTERNS.register("unstructured")(by_sorting)
    assert PATTERNS.get("unstructured") is unstructured
