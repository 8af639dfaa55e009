"""Mutations of valid files of tf_keras, as in tests/test_readers.py: nothing runs, though tf_keras alone would."""

import contextlib
import sys

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from crafted import hostile
from helpers import halve
from mutations import INPUTS, damaged_keras_file, survives
from tf_keras import layers

import kprune
from kprune.report import saved

SEED = 1


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "masked.keras"
    x = tf_keras.Input((4,))
    inner = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3, "relu"), layers.Dropout(0.1)])
    model = tf_keras.Model(x, layers.Dense(2, kernel_regularizer="l2")(layers.Concatenate()([inner(x), x * 2.0])))
    model = kprune.mask(model).model
    halve(model)
    model.save(path)
    return path


@pytest.fixture
def mark(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    mark.with_name("source").write_text("x")
    (tmp_path / "hostile_module.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("hostile_module", None)


def mutate(source, mark, inputs):
    entries = list(hostile(mark, "hostile_module").values())
    path = mark.with_name("mutation.keras")

    def make(rng):
        tf_keras.backend.clear_session()
        damaged_keras_file(path, source, rng, entries)

    line = survives(saved.read, path, inputs, SEED, make)
    assert not mark.exists() and "hostile_module" not in sys.modules
    return line


def test_a_few_mutations(source, mark):
    mutate(source, mark, 60)


def test_the_mutations_run_in_tf_keras_itself(source, mark):
    """So that the test above is one: among as many of them, some run when tf_keras loads them unchecked."""
    entries, path = list(hostile(mark, "hostile_module").values()), mark.with_name("mutation.keras")
    for number in range(60):
        if mark.exists():
            return
        damaged_keras_file(path, source, np.random.default_rng([SEED, number]), entries)
        with contextlib.suppress(Exception), tfmot.sparsity.keras.prune_scope():
            tf_keras.models.load_model(path, compile=False)
    pytest.fail("none ran")


@pytest.mark.skipif(not INPUTS, reason="many mutations: make test-faults")
def test_many_random_mutations(source, mark):
    print(f".keras of tf_keras: {mutate(source, mark, INPUTS)}")
