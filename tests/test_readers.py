"""Mutations of valid files, given to each reader: a report or one clear error, and nothing runs."""

import shutil

import keras
import pytest
from crafted import hostile
from helpers import halve
from keras import layers
from mutations import INPUTS, damaged_bytes, damaged_keras_file, survives

import kprune
from kprune.report import saved

SEED = 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A masked model, functional and nested, in a `.keras` file, and exported."""
    folder = tmp_path_factory.mktemp("files")
    x = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu"), layers.Dropout(0.1)])
    model = keras.Model(x, layers.Dense(2, kernel_regularizer="l2")(layers.Concatenate()([inner(x), x * 2.0])))
    kprune.mask(model)
    halve(model)
    model.save(folder / "masked.keras")
    return folder / "masked.keras", model


def keras_files(files, tmp_path, inputs):
    entries = list(hostile(tmp_path / "mark", "hostile_module").values())
    path = tmp_path / "mutation.keras"

    def make(rng):
        keras.backend.clear_session(free_memory=False)
        damaged_keras_file(path, files[0], rng, entries)

    line = survives(saved.read, path, inputs, SEED, make)
    assert not (tmp_path / "mark").exists()
    return line


def saved_models(files, tmp_path, inputs):
    pytest.importorskip("tensorflow")
    source = kprune.export(files[1], tmp_path / "source").saved_model
    path = shutil.copytree(source, tmp_path / "mutation")
    members = [file for file in sorted(source.rglob("*")) if file.is_file() and file.name != "fingerprint.pb"]

    def make(rng):
        for file in members:
            (path / file.relative_to(source)).write_bytes(file.read_bytes())
        file = members[rng.integers(len(members))]
        (path / file.relative_to(source)).write_bytes(damaged_bytes(file.read_bytes(), rng))

    return survives(saved.read, path, inputs, SEED, make)


READERS = {".keras": keras_files, "SavedModel": saved_models}


@pytest.mark.parametrize("reader", READERS)
def test_a_few_mutations(reader, files, tmp_path):
    READERS[reader](files, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.skipif(not INPUTS, reason="many mutations: make test-faults")
@pytest.mark.parametrize("reader", READERS)
def test_many_random_mutations(reader, files, tmp_path):
    line = READERS[reader](files, tmp_path, INPUTS)
    print(f"{reader} on {keras.backend.backend()}: {line}")
