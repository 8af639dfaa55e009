"""Tests of tf.distribute, in a process of their own: TensorFlow is given four CPU devices before it uses the first."""

import pytest
from tpu_strategy import logical_cpus

logical_cpus(4)


@pytest.fixture(scope="session", autouse=True)
def tf_keras_is_in_use():
    """tfmot, which kprune imports for tf_keras, leaves `tf.keras` alone then."""
    import tf_keras  # noqa: F401
