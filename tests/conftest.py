"""Shared by all tests. The backend of Keras 3 comes from KERAS_BACKEND; tests of tf_keras live in tests/tf_keras/."""

import os
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most tests compile steps that another test, or another worker, has compiled: JAX finds them here, on any CPU, and the
# suite takes a quarter of the time. The key is the whole program, so nothing stale is ever found.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most programs take XLA, or TensorFlow's Grappler, longer to optimize than to run. Tests marked `optimized` have them
# as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import gc

import pytest


def pytest_collectstart():
    """Garbage is looked for in a sixth of the time of importing TensorFlow and JAX, and there is none."""
    gc.disable()


def pytest_collection_finish():
    """What is imported by now stays: `clear_session` collects garbage in every test, and need not look at it."""
    gc.enable()
    gc.collect()
    gc.freeze()


# Keras is imported where it is used: the process that hands the tests to its workers needs none.
@pytest.fixture(autouse=True)
def seeded(request):
    """Every test starts from the same seed and, unless marked `one_session`, from fresh layer names."""
    import keras

    session = request.node.get_closest_marker("one_session")
    if session is None:
        keras.backend.clear_session()
    else:
        gc.collect()
    # TensorFlow never lets go of the functions it traced: looking at them again in each test takes half the time. But
    # what trains the models of the tests before needs kprune to find the optimizers and models that hold their weights.
    if session is None or not session.kwargs.get("trains_on"):
        gc.freeze()
    keras.utils.set_random_seed(0)
    with optimizations(keras.backend.backend(), request.node.get_closest_marker("optimized") is not None):
        yield
    keras.config.set_dtype_policy("float32")


@contextmanager
def optimizations(backend, on):
    """Inside, if `on`, XLA optimizes what JAX compiles, and Grappler what TensorFlow traces.

    Otherwise TensorFlow traces no step a second time because the first trace has made variables, the optimizer's and
    the metrics': they are made outside of the trace. Half of the time of a small fit goes into tracing.
    """
    if backend == "tensorflow":
        import tensorflow as tf

        def outside(create, **kwargs):
            with tf.init_scope():
                return create(**kwargs | {"experimental_enable_variable_lifting": False})

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not on})
        with nullcontext() if on else tf.variable_creator_scope(outside):
            yield
    elif on:
        import jax

        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
    else:
        yield


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture
def run(capsys):
    """Runs a command of `kprune` in this process: (status, stdout, stderr). Afterwards the logging is as it was."""
    import logging

    import absl.logging

    from kprune.cli import main as cli

    root, absl_logger = logging.getLogger(), absl.logging.get_absl_logger()
    before = absl.logging.get_verbosity(), root.handlers[:], absl_logger.filters[:]

    def run(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    yield run
    absl.logging.set_verbosity(before[0])
    root.handlers[:], absl_logger.filters[:] = before[1:]
