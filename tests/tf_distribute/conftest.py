"""Tests of tf.distribute, in a process of their own: TensorFlow is given four CPU devices before it uses the first."""

import pytest
from tpu_strategy import logical_cpus

logical_cpus(4)

_CRASHED = set()


@pytest.fixture(scope="session", autouse=True)
def tf_keras_is_in_use():
    """tfmot, which kprune imports for tf_keras, leaves `tf.keras` alone then."""
    import tf_keras  # noqa: F401


@pytest.fixture(autouse=True)
def iterators_end_with_the_test(monkeypatch):
    """To build the model, Keras makes an iterator over the distributed dataset and drops it at once.

    TensorFlow 2.21 then crashes in one fit of a hundred or so: a segmentation fault in a thread that still fills the
    iterator's buffers (Keras 3.15.1; all of five crashes were in `reset`). So it lives on until the fit is over.
    """
    from keras.src.backend.tensorflow.trainer import TFEpochIterator

    held, reset = [], TFEpochIterator.reset

    def keep_and_reset(self):
        held.append((self._current_iterator, self._epoch_iterator))
        reset(self)

    monkeypatch.setattr(TFEpochIterator, "reset", keep_and_reset)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report):
    """The first time that the process crashes in a test counts as a rerun: xdist runs it once more, in a new process.

    A test that fails is not run again.
    """
    if crashitem not in _CRASHED:
        _CRASHED.add(crashitem)
        print(f"\n{crashitem}: {report.longrepr}; once more", flush=True)
        report.outcome = "rerun"
