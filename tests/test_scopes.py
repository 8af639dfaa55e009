"""Scopes: how many entries each weight keeps at an overall sparsity, in exact integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import steady
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kprune.patterns import unstructured
from kprune.scopes import (
    SCOPES,
    erk,
    global_scope,
    kept_out,
    layerwise,
    per_layer,
    uniform,
    uniform_plus,
    with_ceiling,
    with_floor,
)
from kprune.util.ranking import in_proportion, scaled, zeros_for

pytestmark = pytest.mark.one_session
steady = settings(steady, max_examples=200)

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


def living(score):
    return int(np.count_nonzero(score > -np.inf))


def left(scores, sparsity):
    return size_of(scores) - zeros_for(size_of(scores), sparsity)


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


# In proportion


def entry_by_entry(budget, amounts, caps):
    """Each entry has a price, (k + 1/2) / amount for a weight's k-th; the cheapest are bought, of equals the first."""
    prices = [(Fraction(2 * k + 1) / amount, i) for i, amount in enumerate(amounts) for k in range(caps[i])]
    bought = [i for _, i in sorted(prices)[:budget]]
    return [bought.count(i) for i in range(len(amounts))]


@steady
@given(weights(), SPARSITIES, st.data())
def test_in_proportion_is_the_cheapest_purchase(scores, sparsity, data):
    relative = {path: data.draw(st.integers(0, 8)) / 4 for path in scores}
    n_keep = in_proportion(scores, sparsity, relative)
    sizes, caps = [s.size for s in scores.values()], [living(s) for s in scores.values()]
    amounts = [Fraction(d) * size for d, size in zip(relative.values(), sizes, strict=True)]
    budget, expected = left(scores, sparsity), np.zeros(len(sizes), int)
    for some, most in [
        (amounts, [cap if amount else 0 for cap, amount in zip(caps, amounts, strict=True)]),
        (sizes, [0 if amount else cap for cap, amount in zip(caps, amounts, strict=True)]),
        (sizes, [size - cap for size, cap in zip(sizes, caps, strict=True)]),
    ]:
        amount = min(budget, sum(most))
        expected += entry_by_entry(amount, some, most)
        budget -= amount
    assert list(n_keep) == list(scores) and list(n_keep.values()) == expected.tolist()


def test_uniform_by_hand():
    scores = {"a": np.zeros((10, 10)), "b": np.ones(7), "c": np.ones(1)}
    assert uniform(scores, 0.57) == {"a": 44, "b": 3, "c": 0}  # 47 of 108: 43.5, 3.05, 0.44
    assert uniform(scores, 0.0) == {"a": 100, "b": 7, "c": 1}
    assert uniform({"a": np.ones(3), "b": np.ones(3)}, 0.5) == {"a": 2, "b": 1}
    # What is pruned already keeps nothing; the others take its share, and a model sparser than asked stays as it is.
    half = {"a": np.array([1.0, -np.inf, -np.inf, -np.inf]), "b": np.ones(4)}
    assert uniform(half, 0.5) == {"a": 1, "b": 3}
    assert uniform(half, 0.375) == {"a": 1, "b": 4}
    assert uniform(half, 0.25) == {"a": 2, "b": 4}


def test_erk_by_hand():
    # 1.0 c, 0.5 c and 0.25 c; 42 of 84 entries: 4 + 8 c + 16 c = 42
    scores = {"a": np.ones((2, 2)), "b": np.ones((4, 4)), "c": np.ones((8, 8))}
    assert erk(scores, 0.5) == {"a": 4, "b": 13, "c": 25}  # 12.67, 25.33
    assert erk(scores, 0.75) == {"a": 3, "b": 6, "c": 12}  # 21 = (4 + 8 + 16) c


def resnet50():
    """The shapes of ResNet-50's kernels for 1000 classes: 25.5 million entries."""
    shapes, inputs = [(7, 7, 3, 64)], 64
    for width, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        for block in range(blocks):
            shapes += [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                shapes.append((1, 1, inputs, 4 * width))
            inputs = 4 * width
    return [*shapes, (2048, 1000)]


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
def test_erk_densities_of_resnet50(sparsity):
    shapes = resnet50()
    sizes = np.array([math.prod(shape) for shape in shapes])
    assert len(shapes) == 54 and sizes.sum() == 25_502_912
    scores = {f"layer{i}/kernel": np.zeros(shape, "float16") for i, shape in enumerate(shapes)}
    raw = np.array([sum(shape) / math.prod(shape) for shape in shapes])
    low, high = 0.0, 1e6
    for _ in range(200):
        c = (low + high) / 2
        if (np.minimum(1, c * raw) * sizes).sum() < (1 - sparsity) * sizes.sum():
            low = c
        else:
            high = c
    exact = np.minimum(1, low * raw)
    budget = sizes.sum() - math.floor(round(sparsity * sizes.sum(), 6))
    np.testing.assert_allclose(scaled(budget, raw * sizes, sizes) / sizes, exact, rtol=0, atol=1e-6)
    n_keep = np.array(list(erk(scores, sparsity).values()))
    assert n_keep.sum() == sizes.sum() - math.floor(round(sparsity * sizes.sum(), 6))
    # Rounded, with a factor that makes up for what is lost in rounding: a few entries of millions.
    assert (np.abs(n_keep - exact * sizes) <= 0.5 + 1e-5 * exact * sizes).all()
    np.testing.assert_allclose(n_keep / sizes, exact, rtol=2e-4)  # the smallest weight keeps some 4,000
    dense = exact == 1
    assert 0 < dense.sum() < 54 and (n_keep[dense] == sizes[dense]).all()


def test_uniform_plus_by_hand():
    scores = {"a": np.ones(10), "b": np.ones(50), "c": np.ones(40)}
    assert uniform_plus(scores, 0.5) == {"a": 10, "b": 22, "c": 18}  # 40 of 90
    assert uniform_plus(scores, 0.8) == {"a": 10, "b": 2, "c": 8}  # uniform would leave the last 10 / 90
    assert uniform_plus(scores, 0.82) == {"a": 10, "b": 0, "c": 8}
    with pytest.raises(
        ValueError, match=r"first weight and 20 % of the last require 18 entries, but sparsity 0.83 leaves only 17"
    ):
        uniform_plus(scores, 0.83)
    pruned = {**scores, "a": np.full(10, -np.inf)}  # cannot be kept, so nothing is reserved for it
    assert uniform_plus(pruned, 0.9) == {"a": 0, "b": 2, "c": 8}


# Densities of one's own


def test_per_layer_keeps_the_densities_that_are_given():
    scores = {"conv_1/kernel": np.ones(100), "conv_2/kernel": np.ones(200), "logits/kernel": np.ones(50)}
    scope = per_layer({"conv_1": 0.5, "conv": 0.1, "logits": 1})
    assert scope(scores, 1 - 120 / 350) == {"conv_1/kernel": 50, "conv_2/kernel": 20, "logits/kernel": 50}
    assert scope(scores, 1 - 60 / 350) == {"conv_1/kernel": 25, "conv_2/kernel": 10, "logits/kernel": 25}
    assert scope(scores, 1 - 155 / 350) == {"conv_1/kernel": 75, "conv_2/kernel": 30, "logits/kernel": 50}
    assert scope(scores, 1 - 240 / 350) == {"conv_1/kernel": 100, "conv_2/kernel": 90, "logits/kernel": 50}
    assert scope(scores, 0.0) == {"conv_1/kernel": 100, "conv_2/kernel": 200, "logits/kernel": 50}
    wide = per_layer(lambda path, shape: 0.25 if shape == (200,) else 0.5)
    assert wide(scores, 1 - 125 / 350) == {"conv_1/kernel": 50, "conv_2/kernel": 50, "logits/kernel": 25}
    none = per_layer({"conv": 0.0, "logits": 0.5})
    assert none(scores, 1 - 25 / 350) == {"conv_1/kernel": 0, "conv_2/kernel": 0, "logits/kernel": 25}
    assert none(scores, 1 - 80 / 350) == {"conv_1/kernel": 10, "conv_2/kernel": 20, "logits/kernel": 50}


@steady
@given(weights(FINITE), st.data())
def test_per_layer_keeps_any_counts_that_are_given(scores, data):
    counts = {path: data.draw(st.integers(0, score.size)) for path, score in scores.items()}
    if not sum(counts.values()):
        return
    densities = {path: n / scores[path].size for path, n in counts.items()}
    sparsity = 1 - sum(counts.values()) / size_of(scores)
    assert per_layer(densities)(scores, sparsity) == counts
    assert per_layer(lambda path, shape: densities[path])(scores, sparsity) == counts


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ({"a": 0.5}, "No expression matches b: add a density for each weight. Received: densities="),
        ({"a": 0.5, "b": 0.5, "z": 0.5}, "'z' matches none of these weights: a, b. Received: densities="),
        (lambda path, shape: -1.0, "finite number >= 0, not -1.0. Received: densities="),
    ],
)
def test_densities_that_do_not_fit_the_model(densities, message):
    with pytest.raises(ValueError, match=message):
        per_layer(densities)({"a": np.ones(4), "b": np.ones(4)}, 0.5)


@pytest.mark.parametrize("density", [-0.1, math.inf, math.nan, "0.5", None, True], ids=repr)
def test_bad_densities(density):
    with pytest.raises(ValueError, match="Received: densities="):
        per_layer({"a": density})
    with pytest.raises(ValueError, match="Received: densities="):
        per_layer(density)


# Floors

# A number of entries, or a density.
BOUNDS = st.one_of(st.integers(0, 6), st.integers(7, 100).map(lambda percent: percent / 100))


def entries(scores, bound, rounded):
    """path -> the bound in entries of that weight."""
    if isinstance(bound, int):
        return {path: min(bound, score.size) for path, score in scores.items()}
    return {path: rounded(Fraction(str(bound)) * score.size) for path, score in scores.items()}


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
@given(scores=weights(FINITE), sparsity=SPARSITIES, floor=BOUNDS)
def test_floors_hold_and_the_budget_stays(base, scores, sparsity, floor):
    least = entries(scores, floor, math.ceil)
    plain = SCOPES.get(base)(scores, sparsity)
    if sum(least.values()) > sum(plain.values()):
        with pytest.raises(ValueError, match="floors require"):
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
    with pytest.raises(
        ValueError, match=r"floors require 6 entries, but sparsity 0.5 leaves only 4.*Received: floor=3$"
    ):
        with_floor("global", 3)(scores, 0.5)


@pytest.mark.parametrize("floor", [-1, -0.1, 1.5, math.nan, "1", None], ids=repr)
def test_bad_floors(floor):
    with pytest.raises(ValueError) as error:
        with_floor("global", floor)
    assert str(error.value).partition("Received: ")[2] in (f"floor={floor}", f"floor={floor!r}")


def test_floors_of_each_weight():
    scores = {"a": np.full(8, 9.0), "b": np.ones(4), "c": np.ones(4)}
    assert global_scope(scores, 0.5) == {"a": 8, "b": 0, "c": 0}
    assert with_floor("global", {"c": 0.5})(scores, 0.5) == {"a": 6, "b": 0, "c": 2}
    assert with_floor("global", {"[ab]": 1, "a|c": 3})(scores, 0.5) == {"a": 4, "b": 1, "c": 3}
    assert with_floor("global", lambda path: 2 if path == "b" else 0)(scores, 0.5) == {"a": 6, "b": 2, "c": 0}
    with pytest.raises(ValueError, match=r"'z' matches none of these weights: a, b, c\. Received: floor=\{'z': 1\}$"):
        with_floor("global", {"z": 1})(scores, 0.5)
    with pytest.raises(ValueError, match=r"Received: floor=\{'a': 1.5\}$"):
        with_floor("global", {"a": 1.5})
    with pytest.raises(ValueError, match="Received: floor=<function"):
        with_floor("global", lambda path: -1)(scores, 0.5)


# Ceilings


def test_ceilings_by_hand():
    scores = {"a": np.full(8, 9.0), "b": np.full(4, 2.0), "c": np.ones(4)}
    assert with_ceiling("global", 0.75)(scores, 0.5) == {"a": 6, "b": 2, "c": 0}
    assert with_ceiling("global", {"a": 3})(scores, 0.5) == {"a": 3, "b": 4, "c": 1}
    assert with_ceiling("erk", lambda path: 0 if path == "a" else 4)(scores, 0.75) == {"a": 0, "b": 2, "c": 2}
    assert with_ceiling("global", 0.5)(scores, 0.5) == {"a": 4, "b": 2, "c": 2}
    with pytest.raises(
        ValueError, match=r"ceilings allow at most 8 entries, but sparsity 0.4 keeps 10.*Received: ceiling=0.5$"
    ):
        with_ceiling("global", 0.5)(scores, 0.4)
    with pytest.raises(ValueError, match=r"Received: ceiling=\{'z': 1\}$"):
        with_ceiling("global", {"z": 1})(scores, 0.5)
    # What "a" loses goes to the alive entries of "b", not to the dead ones of "c", which cannot come back.
    scores["c"][:] = -np.inf
    scores["b"][2:] = -np.inf
    assert with_ceiling("erk", {"a": 2})(scores, 0.75) == {"a": 2, "b": 2, "c": 0}


@pytest.mark.parametrize("ceiling", [-1, 1.5, math.nan, "1", None], ids=repr)
def test_bad_ceilings(ceiling):
    with pytest.raises(ValueError, match=r"A ceiling must be .* Received: ceiling="):
        with_ceiling("global", ceiling)


@pytest.mark.parametrize("base", ["global", "layerwise", "uniform", "erk"])
@steady
@given(scores=weights(FINITE), sparsity=SPARSITIES, ceiling=BOUNDS)
def test_ceilings_hold_and_the_budget_stays(base, scores, sparsity, ceiling):
    most = entries(scores, ceiling, math.floor)
    plain = SCOPES.get(base)(scores, sparsity)
    if sum(most.values()) < sum(plain.values()):
        with pytest.raises(ValueError, match="ceilings allow"):
            with_ceiling(base, ceiling)(scores, sparsity)
        return
    n_keep = with_ceiling(base, ceiling)(scores, sparsity)
    assert list(n_keep) == list(scores)
    assert sum(n_keep.values()) == sum(plain.values())
    assert all(0 <= n_keep[path] <= most[path] for path in scores)
    if all(plain[path] <= most[path] for path in scores):
        assert n_keep == plain


# Kept out


def test_kept_out_by_hand():
    scores = {"a": np.ones(10), "b": np.ones(50), "c": np.ones(40)}
    assert kept_out("uniform", first=True)(scores, 0.5) == {"a": 10, "b": 22, "c": 18}
    assert kept_out("uniform", last=True)(scores, 0.5) == {"a": 2, "b": 8, "c": 40}  # 10 of 60
    assert kept_out("uniform", first=True, last=True)(scores, 0.5) == {"a": 10, "b": 0, "c": 40}
    assert kept_out("uniform", paths="[ac]")(scores, 0.5) == {"a": 10, "b": 0, "c": 40}
    assert kept_out("layerwise", paths=["a", "b"])(scores, 0.25) == {
        "a": 10,
        "b": 50,
        "c": 16,
    }  # as many as "layerwise": 8 + 38 + 30
    with pytest.raises(
        ValueError, match=r"stay dense require 50 entries, but sparsity 0.6 leaves only 40. Received: first=False"
    ):
        kept_out("global", paths=["b"])(scores, 0.6)
    with pytest.raises(
        ValueError,
        match=r"'z' matches none of these weights: a, b, c. Received: first=True, last=False, paths=\['z'\]$",
    ):
        kept_out("global", first=True, paths=["z"])(scores, 0.5)
    with pytest.raises(ValueError, match=r"Received: expression='\('$"):
        kept_out("global", paths="(")(scores, 0.5)
    with pytest.raises(ValueError, match=r"keep dense.* Received: first=False, last=False, paths=None"):
        kept_out("global")


@pytest.mark.parametrize("base", ["global", "uniform", "erk"])
@steady
@given(scores=weights(), one=SPARSITIES, other=SPARSITIES, first=st.booleans())
def test_kept_out_is_dense_and_the_total_exact(base, scores, one, other, first):
    scope = kept_out(base, first=first, last=not first)
    dense = list(scores)[0 if first else -1]
    low, high = sorted([one, other])
    if living(scores[dense]) > left(scores, high):
        with pytest.raises(ValueError, match="stay dense require"):
            scope(scores, high)
        return
    many, few = scope(scores, low), scope(scores, high)
    for n_keep, sparsity in [(many, low), (few, high)]:
        assert sum(n_keep.values()) == left(scores, sparsity)
        assert living(scores[dense]) <= n_keep[dense]
        kept = sum(min(n, living(scores[path])) for path, n in n_keep.items())
        assert kept == min(left(scores, sparsity), sum(map(living, scores.values())))
    assert all(few[path] <= many[path] for path in scores)


# All together

COMBINED = {
    "floor on erk": with_floor("erk", 1),
    "floor on kept out": with_floor(kept_out("global", first=True), 1),
    "floor on uniform+": with_floor(uniform_plus, 0.1),
    "ceiling on a floor": with_ceiling(with_floor("global", 1), 0.8),
    "kept out of a ceiling": kept_out(with_ceiling("global", 0.8), last=True),
    "floors on densities": with_floor(per_layer({"layer0": 0.5, "": 1}), {"kernel": 1}),
}


@pytest.mark.parametrize("name", COMBINED)
@steady
@given(scores=weights(FINITE), one=SPARSITIES, other=SPARSITIES)
def test_combined_scopes_are_exact_and_monotone(name, scores, one, other):
    low, high = sorted([one, other])
    try:
        many, few = COMBINED[name](scores, low), COMBINED[name](scores, high)
    except ValueError as error:
        assert " entries, but sparsity " in str(error)
        return
    for n_keep, sparsity in [(many, low), (few, high)]:
        assert sum(n_keep.values()) == left(scores, sparsity)
        assert all(0 <= n_keep[path] <= score.size for path, score in scores.items())
        if name.startswith("floor"):
            assert all(n_keep.values())
    assert all(few[path] <= many[path] for path in scores)


def test_scopes_that_go_by_the_order_keep_to_it_inside_others():
    scores = {"a": np.full(10, 9.0), "b": np.ones(50), "c": np.ones(40)}
    assert with_floor("uniform_plus", {"c": 20})(scores, 0.6) == {"a": 10, "b": 10, "c": 20}
    # Floors of 5 and of 9 leave the first no room to be dense in fewer entries than it has: it stays so.
    assert with_floor("uniform_plus", {"b": 5, "c": 9})(scores, 0.76) == {"a": 10, "b": 5, "c": 9}
    assert with_ceiling(kept_out("uniform", first=True), {"a": 5})(scores, 0.5) == {"a": 5, "b": 25, "c": 20}


def test_a_search_that_asks_for_less_than_the_scope_inside_can_give():
    # Of 100 entries less asked for, "b" has 99 and keeps them: steps are short, so it halves, below the 3,000 of "a".
    scores = {"a": np.ones(3000), "b": np.ones(10_000), "c": np.ones(100)}
    inside = kept_out("uniform", first=True)
    with pytest.raises(ValueError, match="stay dense require 3000"):
        inside(scores, 1 - 2000 / 13_100)
    assert with_floor(inside, {"b": 0.5})(scores, 1 - 8002 / 13_100) == {"a": 3000, "b": 5000, "c": 2}


def test_bounds_ask_a_scope_a_few_times_only():
    asked = []

    def counted(scores, sparsity):
        asked.append(sparsity)
        return global_scope(scores, sparsity)

    rng = np.random.default_rng(0)
    scores = {f"layer{i}": rng.normal(i, 1, size=20_000 * (i + 1)) for i in range(12)}
    n_keep = with_floor(counted, 0.02)(scores, 0.9)
    assert sum(n_keep.values()) == left(scores, 0.9) and n_keep["layer0"] == 400
    assert len(asked) <= 6


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
