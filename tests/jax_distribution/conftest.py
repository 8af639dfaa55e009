"""Four virtual devices, which JAX has to be told of before it starts: so these tests have a process of their own."""

import sys

# Keras on JAX does without TensorFlow, as on Colab's TPU runtime; to import it takes longer than most tests here.
sys.modules.setdefault("tensorflow", None)

import jax  # noqa: E402
import keras  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(autouse=True)
def undistributed():
    """A failed test leaves no distribution behind."""
    yield
    keras.distribution.set_distribution(None)
