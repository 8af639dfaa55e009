"""Four virtual devices, which JAX has to be told of before it starts: so these tests have a process of their own."""

import sys

# Keras on JAX does without TensorFlow, as on Colab's TPU runtime; to import it takes longer than most tests here.
sys.modules.setdefault("tensorflow", None)

import jax  # noqa: E402
import keras  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """The steps of most trainings here are the same: they are compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True)
def undistributed():
    """A failed test leaves no distribution behind."""
    yield
    keras.distribution.set_distribution(None)
