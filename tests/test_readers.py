"""Mutations of valid files, given to each reader: a report or one clear error, and nothing runs."""

import json
import shutil

import keras
import pytest
from checkpoints import edit, replace_graph
from crafted import hostile
from helpers import halve
from keras import layers
from mutations import INPUTS, damaged_bytes, damaged_json, damaged_keras_file, survives

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


NUMBERS = [0, -1, 1, 3, 9, 100, 2**16, 2**31, 2**40, 2**62, -(2**63)]


def hostile_entry(rng, entry):
    """Another entry of a checkpoint's index, or bytes that are none."""
    kind, size = rng.integers(8), NUMBERS[rng.integers(len(NUMBERS))]
    if kind == 0:
        return damaged_bytes(entry.SerializeToString(), rng)
    if kind == 1 and entry.shape.dim:
        entry.shape.dim[rng.integers(len(entry.shape.dim))].size = size
    elif kind == 2:
        entry.shape.dim.add(size=size)
        entry.shape.dim.add(size=NUMBERS[rng.integers(len(NUMBERS))])
    elif kind == 3:
        entry.dtype = int(rng.integers(0, 140))
    elif kind == 4:
        entry.offset, entry.size = (int(rng.integers(100)), entry.size) if rng.integers(2) else (entry.offset, size)
    elif kind == 5:
        entry.slices.add().extent.add(start=size, length=NUMBERS[rng.integers(len(NUMBERS))])
    elif kind == 6:
        entry.shape.unknown_rank = True
    else:
        entry.shard_id = int(rng.integers(-1, 3))


def saved_models(files, tmp_path, inputs, format="saved_model"):
    pytest.importorskip("tensorflow")
    source = kprune.export(files[1], tmp_path / "source", format, verbose=0).files[format]
    path = shutil.copytree(source, tmp_path / "mutation")
    members = [file for file in sorted(source.rglob("*")) if file.is_file() and file.name != "fingerprint.pb"]
    assert [file.name for file in members[:2]] == ["kprune.json", "saved_model.pb"] and len(members) == 4

    def make(rng):
        for file in members:
            (path / file.relative_to(source)).write_bytes(file.read_bytes())
        kind, file = rng.integers(8), members[rng.integers(len(members))]
        if kind < 3:
            (path / file.relative_to(source)).write_bytes(damaged_bytes(file.read_bytes(), rng))
        elif kind == 3:
            known = damaged_json(json.loads(members[0].read_bytes()), rng)
            (path / members[0].relative_to(source)).write_text(json.dumps(known))
        elif kind == 4:
            replace_graph(path, damaged_bytes(graph, rng))
        else:
            edit(path, lambda _, entry: hostile_entry(rng, entry) if rng.integers(2) else None)

    import tensorflow as tf

    graph = tf.train.load_checkpoint(str(source / "variables" / "variables")).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    line = survives(saved.read, path, inputs, SEED, make)
    saved.read(source)
    return line


def packed_models(files, tmp_path, inputs):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(256)])
    kprune.prune(model, "magnitude", 0.95)
    return saved_models((None, model), tmp_path, inputs, "saved_model_packed")


READERS = {".keras": keras_files, "SavedModel": saved_models, "packed SavedModel": packed_models}


# What reads a SavedModel knows no backend; `make test-faults` has many mutations of all on both.
ONCE = [pytest.param(reader, marks=pytest.mark.once) for reader in READERS if reader != ".keras"]


@pytest.mark.parametrize("reader", [".keras", *ONCE])
def test_a_few_mutations(reader, files, tmp_path):
    READERS[reader](files, tmp_path, 60)


@pytest.mark.skipif(not INPUTS, reason="many mutations: make test-faults")
@pytest.mark.parametrize("reader", READERS)
def test_many_random_mutations(reader, files, tmp_path):
    line = READERS[reader](files, tmp_path, INPUTS)
    print(f"{reader} on {keras.backend.backend()}: {line}")
