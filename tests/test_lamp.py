"""LAMP's scores are what its definition says, in either dtype, however the weights are sorted."""

import keras
import numpy as np
import pytest
from keras import layers

import kprune
from kprune.criteria import Context, lamp


def by_definition(weights):
    """w_u^2 / sum of w_v^2 over all v with |w_v| > |w_u|, u itself, and those of its magnitude that come after it."""
    flat = np.asarray(weights, np.float64).reshape(-1)
    scores = np.zeros(flat.size)
    for u, w in enumerate(flat):
        later = np.arange(flat.size) >= u
        above = (np.abs(flat) > abs(w)) | ((np.abs(flat) == abs(w)) & later)
        scores[u] = w**2 / np.sum(flat[above] ** 2) if w else 0.0
    return scores.reshape(np.shape(weights))


def scores_of(weights, mask, dtype):
    dense = layers.Dense(weights.shape[1], use_bias=False, dtype=dtype)
    model = keras.Sequential([keras.Input((weights.shape[0],), dtype=dtype), dense])
    kprune.mask(model)
    dense.kernel.assign(weights)
    (weight,) = kprune.masked_weights(model)
    return lamp(Context(model, [weight], {weight.path: mask}))[weight.path]


# JAX has no weights in float64 by default.
DTYPES = ["float32", "float16", *(["float64"] if keras.backend.backend() != "jax" else [])]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_by_definition(dtype, seed):
    draw = np.random.default_rng(seed)
    weights = draw.choice([-2.0, -1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1.0, 3.0], (7, 5))  # many ties
    weights += draw.integers(0, 2, weights.shape) * draw.normal(size=weights.shape).astype(dtype)
    mask = draw.random(weights.shape) < 0.8
    weights = weights.astype(dtype)
    np.testing.assert_allclose(
        scores_of(weights, mask, dtype), by_definition(np.where(mask, weights, 0.0)), rtol=1e-12, atol=0
    )


def test_a_weight_that_is_no_number_has_no_score():
    weights = np.array([[1.0], [np.nan], [2.0]])
    assert np.isnan(scores_of(weights, np.ones((3, 1), bool), "float32")).any()
    assert not np.isnan(scores_of(weights, np.array([[True], [False], [True]]), "float32")).any()


@pytest.mark.skipif("float64" not in DTYPES, reason="there are none")
def test_weights_in_float64_are_told_apart():
    weights = np.array([[1.0], [1.0 + 2.0**-40], [1.0 - 2.0**-40]])
    scores = scores_of(weights, np.ones((3, 1), bool), "float64")
    assert np.argsort(scores[:, 0]).tolist() == [2, 0, 1]
    np.testing.assert_allclose(scores, by_definition(weights), rtol=1e-12)
