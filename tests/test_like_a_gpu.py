"""The imitation of a GPU's rounding rounds, and leaves alone what a GPU leaves alone."""

import keras
import pytest
from helpers import new_process

SCRIPT = """
import like_a_gpu, jax, numpy as np
from jax import numpy as jnp

rng = np.random.default_rng(0)
a, b, image, kernel = (
    rng.normal(size=shape).astype("float32") for shape in ((64, 64), (64, 64), (2, 8, 8, 3), (3, 3, 3, 4))
)
b[:, 0] = 0

def convolve(image, kernel):
    return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

def error(one, other):
    return np.abs(np.asarray(one) - np.asarray(other)).max() / np.abs(np.asarray(other)).max()

wide = np.pad(image.astype("float64"), ((0, 0), (1, 1), (1, 1), (0, 0)))
windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))
by_hand = np.einsum("nhwcij,ijco->nhwo", windows, kernel.astype("float64"))
products = ((jnp.matmul, a, b, a.astype("float64") @ b), (convolve, image, kernel, by_hand))
for operation, left, right, exact in products:
    make = lambda: jax.jit(lambda left, right: operation(left, right))
    masked = jax.jit(lambda left, right: operation(left, jnp.where(right == right, right, 0)))
    assert 1e-4 < error(make()(left, right), exact) < 1e-3
    with jax.default_matmul_precision("highest"):
        full = np.asarray(make()(left, right))
        assert error(full, exact) < 1e-6
        assert 0 < error(masked(left, right), full) < 1e-6
        assert (np.asarray(make()(left, right)) == full).all()
        assert ((full == 0) == (exact == 0)).all()
        gradient = jax.jit(jax.grad(lambda right: (operation(left, right) ** 2).sum()))(right)
    assert error(jax.jit(jax.grad(lambda right: (operation(left, right) ** 2).sum()))(right), gradient) > 1e-4
assert jnp.matmul(np.ones((2, 2), "int32"), np.ones((2, 2), "int32")).tolist() == [[2, 2], [2, 2]]
assert error(jnp.sum(jnp.asarray(a)), a.astype("float64").sum()) < 1e-5
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="it is JAX's rounding")
def test_the_imitation_rounds_products_to_tf32_and_the_last_bits_by_program():
    done = new_process("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
