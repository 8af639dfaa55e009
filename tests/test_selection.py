"""The highest scores of several weights together: on the host, and in a JAX program where JAX is the backend."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kprune.selection import keep_highest, keep_highest_jax

pytestmark = pytest.mark.optimized

JAX = keras.backend.backend() == "jax"


def sorted_out(scores, within, n_keep):
    """What sorting says: the highest first, of equal ones the earlier."""
    flat = np.concatenate([np.where(m, s, -np.inf).ravel() for s, m in zip(scores, within, strict=True)])
    alive = np.concatenate([m.ravel() for m in within])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:n_keep]] = True
    parts = np.split(mask & alive, np.cumsum([s.size for s in scores])[:-1])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


def in_jax(scores, within, n_keep, program):
    import jax

    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(True):
        n_keep = min(n_keep, sum(int(m.sum()) for m in within))
        return [np.asarray(m) for m in program(scores, within, np.int32(n_keep))]


@pytest.fixture(scope="module")
def selections():
    """(dtype, selection) of each that there is here; of the compiled one, one program for all counts."""
    if not JAX:
        return [("float32", keep_highest), ("float64", keep_highest)]
    import jax

    program = jax.jit(keep_highest_jax)
    compiled = lambda scores, within, n_keep: in_jax(scores, within, n_keep, program)  # noqa: E731
    return [(dtype, select) for dtype in ("float32", "float64") for select in (keep_highest, compiled)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.95]), st.booleans(), st.integers(0, 40))
def test_is_what_sorting_gives(selections, seed, pruned, signed, n_keep):
    draw = np.random.default_rng(seed)
    within = [draw.random(shape) >= pruned for shape in ((3, 4), (20,), (2, 2, 2))]
    # Few values, so that many scores are equal; pruned entries have scores, too.
    values = draw.integers(-2 if signed else 0, 4, 40) * 10.0 ** draw.integers(-30, 30, 40)
    values[draw.random(40) < 0.2] = -0.0
    scores = [part.reshape(m.shape) for part, m in zip(np.split(values, [12, 32]), within, strict=True)]
    for dtype, select in selections:
        typed = [score.astype(dtype) for score in scores]
        kept = select(typed, within, n_keep)
        for mask, expected in zip(kept, sorted_out(typed, within, n_keep), strict=True):
            np.testing.assert_array_equal(mask, expected, f"{select} {dtype}")


def test_by_hand(selections):
    scores = [np.array([[2.0, 1.0]]), np.array([2.0, 2.0, 3.0])]
    within = [np.array([[True, True]]), np.array([True, True, False])]
    for dtype, select in selections:
        kept = select([score.astype(dtype) for score in scores], within, 2)
        assert [mask.tolist() for mask in kept] == [[[True, False]], [True, False, False]]


def test_order_is_that_of_the_indices_not_of_the_memory():
    ties = np.ones((3, 4), order="F")
    (mask,) = keep_highest([ties], [np.ones((3, 4), bool)], 5)
    assert np.flatnonzero(mask).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not JAX, reason="about JAX's programs")
def test_a_new_count_compiles_nothing():
    import jax

    traces = []
    program = jax.jit(lambda *given: (traces.append(1), keep_highest_jax(*given))[1])
    scores, within = [np.arange(6, dtype="float32")], [np.ones(6, bool)]
    for n_keep in range(7):
        assert int(program(scores, within, np.int32(n_keep))[0].sum()) == n_keep
    assert traces == [1]
