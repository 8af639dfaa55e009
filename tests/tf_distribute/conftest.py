"""Tests of tf.distribute, in a process of their own: TensorFlow is given four CPU devices before it uses the first."""

import pytest
from tpu_strategy import logical_cpus

logical_cpus(4)

_CRASHED = set()


@pytest.fixture(scope="session", autouse=True)
def tf_keras_is_in_use():
    """tfmot, which kprune imports for tf_keras, leaves `tf.keras` alone then."""
    import tf_keras  # noqa: F401


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report):
    """The first time that the process crashes in a test counts as a rerun: xdist runs it once more, in a new process.

    TensorFlow 2.21 crashes about once in ten runs of these tests: a segmentation fault in a thread of its own, seen as
    Keras dropped the iterator over a distributed dataset that it had made to build the model from. A test that fails
    is not run again.
    """
    if crashitem not in _CRASHED:
        _CRASHED.add(crashitem)
        print(f"\n{crashitem}: {report.longrepr}; once more", flush=True)
        report.outcome = "rerun"
