"""Patterns: hand-computed masks, exact counts and ties by index, against definitions written as plain loops."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kprune.patterns import PATTERNS, block, channel, fan_in, n_of_m, pooled, unstructured
from kprune.util.ranking import nth_highest
from kprune.util.registry import Registry


def test_fan_in_of_two_outputs_by_hand():
    score = np.array([[9.0, 1.0], [8.0, 2.0], [7.0, 3.0]])
    # In order: 9 and 3 (the best of each), 8 and 2, 7 and 1.
    kept = [sorted(score[fan_in(score, n)].tolist()) for n in range(1, 7)]
    assert kept == [
        [9.0],
        [3.0, 9.0],
        [3.0, 8.0, 9.0],
        [2.0, 3.0, 8.0, 9.0],
        [2.0, 3.0, 7.0, 8.0, 9.0],
        [1, 2, 3, 7, 8, 9],
    ]


@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_fan_in_of_scores_that_have_no_sign(dtype):
    assert fan_in(np.array([[0], [3]], dtype), 1).tolist() == [[False], [True]]


def test_fan_in_counts_over_all_positions_and_what_is_pruned_already():
    score = np.zeros((2, 2, 3))  # two positions, two inputs, three outputs: four inputs each
    score[0, :, 0] = score[1, 0, 0] = -np.inf
    assert fan_in(score, 6).reshape(4, 3).sum(0).tolist() == [1, 3, 2]
    assert fan_in(score, 12).reshape(4, 3).sum(0).tolist() == [1, 4, 4]


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


# n:m

COLUMN = np.array([[4.0, 3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 9.0, 0.5, 0.0]]).T  # groups of 4, 4 and 2


def test_2_of_4_by_hand():
    kept = [np.flatnonzero(n_of_m(2, 4)(COLUMN, n)).tolist() for n in range(11)]
    assert kept == [
        [],
        [7],
        [4, 7],
        [0, 4, 7],
        [0, 1, 4, 7],
        [0, 1, 4, 7, 8],
        [0, 1, 4, 7, 8, 9],  # all winners, sparsity 0.4; of the three 5s the first wins
        [0, 1, 4, 5, 7, 8, 9],  # and then the best of the others
        [0, 1, 4, 5, 6, 7, 8, 9],
        [0, 1, 2, 4, 5, 6, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    ]
    np.testing.assert_array_equal(n_of_m(2, 4)(COLUMN[:, 0], 6), n_of_m(2, 4)(COLUMN, 6)[:, 0])  # a vector: one output


def test_1_of_3_takes_what_is_pruned_for_padding():
    score = np.array([[-np.inf, 1.0], [-np.inf, 3.0], [-np.inf, 3.0], [7.0, 0.0]])
    mask = n_of_m(1, 3)(score, 3)
    np.testing.assert_array_equal(mask, [[False, False], [False, True], [False, False], [True, True]])
    np.testing.assert_array_equal(n_of_m(1, 3)(score, 8), score > -np.inf)


def test_groups_are_inputs_of_one_output_at_one_position():
    score = np.zeros((2, 4, 3))
    score[0, :2], score[1, 2:] = 1.0, 1.0  # at one position the first two inputs, at the other the last two
    np.testing.assert_array_equal(n_of_m(2, 4)(score, 12), score == 1)


@steady
@given(scores_and_count(), st.integers(1, 5), st.integers(1, 5))
def test_n_of_m_is_what_counting_gives(case, n, more):
    score, n_keep = case
    m, before = n + more, score.copy()
    mask = n_of_m(n, m)(score, n_keep)
    columns = np.moveaxis(score if score.ndim > 1 else score[:, None], -2, 0)
    winners = np.zeros(columns.shape, bool)
    for i, *rest in np.ndindex(columns.shape):
        group = columns[(slice(i // m * m, i // m * m + m), *rest)]
        better = sum(s > group[i % m] or (s == group[i % m] and j < i % m) for j, s in enumerate(group))
        winners[(i, *rest)] = better < n and group[i % m] > -np.inf
    winners = np.moveaxis(winners, 0, -2).reshape(score.shape)
    assert mask.dtype == np.bool_ and mask.shape == score.shape
    assert np.count_nonzero(mask) == min(n_keep, np.count_nonzero(score > -np.inf))
    assert not np.any(mask & (score == -np.inf))
    assert not np.any(mask & ~winners) or not np.any(winners & ~mask)  # winners first
    for part in (winners, ~winners & (score > -np.inf)):
        assert min(score[part & mask], default=np.inf) >= max(score[part & ~mask], default=-np.inf)
    np.testing.assert_array_equal(score, before)


# Blocks and channels


def test_block_by_hand():
    score = np.array(
        [
            [1.0, 1.0, 3.0, 3.0, 0.0],
            [1.0, 1.0, 3.0, 5.0, 0.0],
            [2.0, 2.0, 2.0, 2.0, 9.0],
        ]
    )
    tiles = np.array([[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]])  # means 1, 3.5, 0, 2, 2, 9
    best = [5, 1, 3, 4, 0, 2]  # with 1, 4, 2, 2, 4 and 2 entries
    for n_keep, n_tiles in {0: 0, 1: 1, 2: 2, 5: 2, 6: 3, 7: 3, 8: 4, 9: 4, 10: 5, 11: 5}.items():
        np.testing.assert_array_equal(block(2, 2)(score, n_keep), np.isin(tiles, best[:n_tiles]))
    for n_keep in (12, 13, 14, 15):  # what is too much is less than the largest tile
        assert block(2, 2)(score, n_keep).all()


def test_block_at_each_position_of_a_convolution():
    score = np.zeros((2, 1, 4, 4))
    score[0, 0, :2, 2:], score[1, 0, 2:, :2] = 1.0, 2.0
    np.testing.assert_array_equal(block(2, 2)(score, 8), score > 0)
    np.testing.assert_array_equal(block(2, 2)(score, 4), score == 2)
    np.testing.assert_array_equal(block(1, 1)(score, 4), unstructured(score, 4))


def test_channel_by_hand():
    score = np.zeros((2, 3, 3))
    score[..., 1], score[0, 0, 0], score[..., 2] = 1.0, 5.0, -np.inf
    score[1, 2, 2] = 2.0  # of a filter that is pruned but for one entry, that entry counts
    kept = [channel(score, n) for n in (0, 1, 2, 7, 8)]
    assert [np.unique(np.nonzero(mask)[-1]).tolist() for mask in kept] == [[], [2], [1, 2], [1, 2], [0, 1, 2]]
    assert not np.any(kept[-1] & (score == -np.inf))


def test_pooled_scores_are_means_of_what_is_left():
    score = np.array([[1, 5, 2], [3, 7, 4]], "float32")
    pool, largest = pooled(np.where(score == 7, -np.inf, score), block(2, 2).blocks)
    np.testing.assert_array_equal(pool, [[3, 3, 3], [3, -np.inf, 3]])
    assert largest == 3
    assert pooled(score.astype(int), channel.blocks)[0].tolist() == [[2, 6, 3], [2, 6, 3]]


WHOLE = {"channel": channel, "2x2": block(2, 2), "1x3": block(1, 3), "9x1": block(9, 1)}


@pytest.mark.parametrize("name", WHOLE)
@steady
@given(scores_and_count(), st.data())
def test_whole_blocks(name, case, data):
    pattern, (score, n_keep) = WHOLE[name], case
    mask, living = pattern(score, n_keep), score > -np.inf
    shape = score.shape if score.ndim > 1 else (*score.shape, 1)
    numbers = pattern.blocks(shape).reshape(score.shape)
    parts = [numbers == i for i in range(numbers.max() + 1)]
    largest = max(np.count_nonzero(part & living) for part in parts)
    n_keep = min(n_keep, np.count_nonzero(living))
    assert n_keep <= np.count_nonzero(mask) < n_keep + max(largest, 1)
    means = {"kept": [], "pruned": []}
    for part in parts:
        if np.any(part & living):
            assert np.array_equal(mask[part], living[part]) or not mask[part].any()
            means["kept" if mask[part].any() else "pruned"].append(score[part & living].mean())
    assert min(means["kept"], default=np.inf) >= max(means["pruned"], default=-np.inf)
    # Whatever the scores are then, cut to the same count again it stays as it is.
    other = np.where(mask, data.draw(arrays(np.float64, score.shape, elements=st.floats(-2, 2))), -np.inf)
    np.testing.assert_array_equal(pattern(other, n_keep), mask)
    assert not np.any(pattern(score, data.draw(st.integers(0, n_keep))) & ~mask)


def test_blocks_of_a_shape():
    np.testing.assert_array_equal(block(2, 3).blocks((3, 4)), [[0, 0, 0, 1], [0, 0, 0, 1], [2, 2, 2, 3]])
    np.testing.assert_array_equal(block(2, 2).blocks((2, 1, 3)), [[[0, 0, 1]], [[2, 2, 3]]])
    np.testing.assert_array_equal(channel.blocks((2, 1, 3)), [[[0, 1, 2]], [[0, 1, 2]]])


@pytest.mark.parametrize("n, m", [(0, 4), (4, 4), (5, 4), (2.0, 4), (2, "4"), (-1, 4), (True, 4)])
def test_what_is_no_n_of_m(n, m):
    with pytest.raises(ValueError, match=rf"Received: n={n!r}, m={m!r}$"):
        n_of_m(n, m)


@pytest.mark.parametrize("h, w", [(0, 4), (4, 0), (2.0, 4), ("2", 4), (2, None)])
def test_what_is_no_block(h, w):
    with pytest.raises(ValueError, match=rf"Received: h={h!r}, w={w!r}$"):
        block(h, w)


@pytest.mark.parametrize("name", ["2:4", "1:4", "2x3", "channel"])
@pytest.mark.parametrize("n_keep", [-1, 7])
def test_a_count_that_no_pattern_can_keep(name, n_keep):
    with pytest.raises(ValueError, match=rf"from 0 to 6\. Received: n_keep={n_keep}$"):
        PATTERNS.get(name)(np.zeros((2, 3)), n_keep)


def test_names_with_numbers():
    for name, same in {"1:4": n_of_m(1, 4), "2:4": n_of_m(2, 4), "12x3": block(12, 3)}.items():
        assert PATTERNS.get(name).__name__ == PATTERNS.name_of(PATTERNS.get(name)) == same.__name__ == name
        score = np.random.default_rng(0).normal(size=(24, 12))
        np.testing.assert_array_equal(PATTERNS.get(name)(score, 100), same(score, 100))
    for name, received in {"4:4": "n=4, m=4", "0x4": "h=0, w=4"}.items():
        with pytest.raises(ValueError, match=f"Received: {received}$"):
            PATTERNS.get(name)
    for name in ("2:4 ", "2:4:8", "a:4", "2x", "-1:4"):
        with pytest.raises(
            ValueError, match=r"'2:4', 'channel', 'fan_in', 'unstructured', 'n:m', 'hxw'.*Received: pattern="
        ):
            PATTERNS.get(name)


def test_names():
    assert PATTERNS.get("unstructured") is unstructured
    assert PATTERNS.get(by_sorting) is by_sorting
    with pytest.raises(ValueError, match=r"'unstructured'.*Received: pattern='diagonal'$"):
        PATTERNS.get("diagonal")
    with pytest.raises(ValueError, match=r"already registered.*Received: name='unstructured'$"):
        PATTERNS.register("unstructured")(by_sorting)
    assert PATTERNS.get("unstructured") is unstructured


def test_a_function_that_is_defined_again_takes_its_own_place():
    """As the cell of a notebook does that is run again."""
    kinds = Registry("shape")
    for sides in (3, 4):
        cell = f"@kinds.register('polygon')\ndef polygon():\n    return {sides}"
        exec(cell, {"kinds": kinds, "__name__": "__main__"})
    assert kinds.get("polygon")() == 4
    with pytest.raises(ValueError, match=r"already registered.*Received: name='polygon'$"):
        kinds.register("polygon")(by_sorting)
    with pytest.raises(ValueError, match="already registered"):
        kinds.register("polygon")(functools.partial(by_sorting))
    kinds.register("line")(lambda: 1)
    with pytest.raises(ValueError, match="already registered"):
        kinds.register("line")(lambda: 2)
    assert kinds.get("polygon")() == 4
