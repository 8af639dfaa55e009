"""Small files that would take much memory: one of each kind for each reader, and what it takes above the start.

`pytest tests/test_bombs.py -rP` prints the table of SECURITY.md.
"""

import ctypes
import gc
import io
import json
import shutil
import zipfile
import zlib

import fuzz
import h5py
import keras
import numpy as np
import pytest
from checkpoints import replace_graph, table
from crafted import entry, layer, parts_of, sequential, write
from helpers import data, mlp
from kprune.callbacks import BackupAndRestore, TakeSnapshot

import kprune
from kprune.experiments.runs import RunTable
from kprune.experiments.sweep import SweepRun
from kprune.report import saved
from kprune.runtime import files

LISTS = b"[" + b"[]," * 2_700_000 + b"0]"


def model():
    made = mlp(units=4)
    made.compile("sgd", "mse", jit_compile=False)
    kprune.prune(made, "magnitude", 0.5)
    return made


def hdf5(fill):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    return buffer.getvalue()


def packed(name):
    def make(path, parts):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, content in parts.items():
                with archive.open(key, "w") as member:
                    member.write(content)
                    for _ in range(350 if key == name else 0):
                        member.write(b" " * 2**20)

    return make


def config(**members):
    return lambda path, parts: write(path, parts, **{"config.json": members})


def weights(fill):
    return lambda path, parts: write(path, parts, **{"model.weights.h5": hdf5(fill)})


def chunk(file):
    made = file.create_dataset("x", (1,), "float32", maxshape=(None,), chunks=(10**8,), compression="gzip")
    made[...] = 1


def wide(initializer):
    """Arrays of 32 MiB, of which nothing is stored, and layers that take as much and 15 MiB more."""

    def make(path, parts):
        arrays = hdf5(lambda file: file.create_dataset("x", (2**23 - 1000,), "float32"))
        units = (2**25 + 15 * 2**20) // 16
        dense = layer("Dense", units=units, use_bias=False, kernel_initializer=entry("keras.initializers", initializer))
        inputs = layer("InputLayer", batch_shape=[None, 4], dtype="float32", name="inputs")
        network = sequential(dense)
        network["config"]["layers"][0] = inputs
        write(path, parts, **{"config.json": network, "model.weights.h5": arrays})

    return make


def hidden(path, parts):
    tensor = {
        "class_name": "__keras_tensor__",
        "config": {"shape": [4], "dtype": "float32", "keras_history": ["i", 0, 0]},
    }
    one = entry(None, "__numpy__", {"value": [1.0], "dtype": "float32", "x": tensor})
    node = {"args": [one], "kwargs": {}}
    tile = entry("keras.src.ops.numpy", "Tile", {"repeats": [10**9]}) | {"name": "tile", "inbound_nodes": [node]}
    inputs = layer("InputLayer", batch_shape=[None, 4], dtype="float32", name="i") | {"name": "i", "inbound_nodes": []}
    ends = {"input_layers": [["i", 0, 0]], "output_layers": [["tile", 0, 0]]}
    network = entry("keras.src.models.functional", "Functional", {"name": "n", "layers": [inputs, tile], **ends})
    write(path, parts, **{"config.json": network})


def members(path, parts):
    write(path, {**parts, **{f"assets/{i}": b"" for i in range(20_000)}})


KERAS = {
    "350 MB of spaces in config.json": packed("config.json"),
    "350 MB of spaces in the weights": packed("model.weights.h5"),
    "262,000 lists in config.json": config(
        module="keras", class_name="Sequential", config=json.loads(b"[" + b"[]," * 261_000 + b"0]")
    ),
    "an array of 8 GB of which nothing is stored": weights(lambda file: file.create_dataset("x", (2**33,), "uint8")),
    "a number in a chunk of 400 MB": weights(chunk),
    "layers as large as may be, of random values": wide("RandomNormal"),
    "layers as large as may be, of truncated ones": wide("TruncatedNormal"),
    "an operation on constants, of 4 GB": hidden,
    "20,000 members": members,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(path)
    return path


def show(reader, bomb, size, read):
    """Have the reader read it, refused or not, and print what it took."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that what is free is not taken
    with fuzz.bounded_memory() as taken:
        try:
            read()
            said = "read"
        except ValueError as error:
            assert "Received: " in str(error)
            said = "refused"
    print(f"{reader} on {keras.backend.backend()} | {bomb} | {size:,} bytes | {said} | {taken[0] / 1e6:,.0f} MB")


@pytest.mark.parametrize("bomb", KERAS)
def test_keras_files(bomb, plain, tmp_path):
    path = tmp_path / "bomb.keras"
    KERAS[bomb](path, parts_of(plain))
    saved.read(plain)
    show(".keras", bomb, path.stat().st_size, lambda: saved.read(path))


def index(folder):
    (folder / "variables" / "variables.index").write_bytes(table([(b"%06d" % i, b"") for i in range(100_000)]))


def paths(content):
    return lambda folder: (folder / "assets.extra" / "kprune.json").write_bytes(content)


SAVED_MODELS = {
    "a graph of 500,000 objects": lambda folder: replace_graph(folder, b"\x0a\0" * 500_000),
    "an index of 100,000 entries": index,
    "8 MB of lists in kprune.json": paths(LISTS),
    "a packed kernel of 4 EB": paths(json.dumps({"format": 2, "weights": {}, "packed": {"x": [0, [2**60]]}}).encode()),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("tensorflow")
    return kprune.export(model(), tmp_path_factory.mktemp("exported") / "net", verbose=0).saved_model


@pytest.mark.parametrize("bomb", SAVED_MODELS)
def test_saved_models(bomb, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "bomb")
    SAVED_MODELS[bomb](folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    show("SavedModel", bomb, size, lambda: saved.read(folder))


def archive_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


NPZ = {
    "400 MB of zeros in each member, packed": lambda whole: fuzz.bomb(archive_of(whole), 400_000_000),
    "8 MB of lists beside the arrays": lambda whole: described(whole, LISTS),
    "20,000 arrays": lambda whole: files.pack({f"mask/{i}": np.zeros(1, bool) for i in range(20_000)}, {}),
}


def described(whole, text):
    stored = {name.removesuffix(".npy"): np.load(io.BytesIO(raw)) for name, raw in archive_of(whole).items()}
    del stored["about.json"], stored["sha256"]
    stored |= {"about.json": np.frombuffer(text, np.uint8), "sha256": np.array(files._checksum(text, stored))}
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    return buffer.getvalue()


@pytest.mark.parametrize("bomb", NPZ)
def test_tickets(bomb, tmp_path):
    path = tmp_path / "ticket.npz"
    kprune.Ticket.of(model()).save(path)
    path.write_bytes(NPZ[bomb](path.read_bytes()))
    show("Ticket.load", bomb, path.stat().st_size, lambda: kprune.Ticket.load(path))


def listed(whole):
    """A state of a callback that is JSON of 30 MB."""
    arrays, about = files.unpack(whole, "valid")
    name = next(name for name in arrays if name.endswith("/progress"))
    return files.pack({**arrays, name: np.frombuffer(b"[" + b"[]," * 10_000_000 + b"0]", np.uint8)}, about)


BACKUPS = {
    "400 MB of zeros in each member, packed": NPZ["400 MB of zeros in each member, packed"],
    "30 MB of lists in a callback's state": listed,
}


@pytest.mark.parametrize("bomb", BACKUPS)
def test_backups(bomb, tmp_path):
    path, target = tmp_path / "backup.npz", model()
    target.fit(*data(), verbose=0, callbacks=[TakeSnapshot(), BackupAndRestore(path, delete=False)])
    path.write_bytes(BACKUPS[bomb](path.read_bytes()))
    show(
        "BackupAndRestore",
        bomb,
        path.stat().st_size,
        lambda: target.fit(*data(), verbose=0, callbacks=[TakeSnapshot(), BackupAndRestore(path)]),
    )


SWEPT = SweepRun("snip", 10.0, 0, 0.5, 0.75, 0.9, 0, 1.5)
CSV = {
    "a million rows of one letter": lambda whole: whole + b"a\n" * 1_000_000,
    "a cell of 4 MB": lambda whole: whole + b"1" * 4_000_000 + b"\n",
    "a row of 4 million cells": lambda whole: whole + b"," * 4_000_000 + b"\n",
}


@pytest.mark.parametrize("bomb", CSV)
def test_tables_of_runs(bomb, tmp_path):
    path = tmp_path / "collapse.csv"
    RunTable(path, SweepRun, {}, {}).add(SWEPT)
    path.write_bytes(CSV[bomb](path.read_bytes()))
    show("tables of runs", bomb, path.stat().st_size, lambda: RunTable(path, SweepRun, {}, {}))


MASKS = {
    "a mask of 3 GB, packed": ((3_000_000_000,), {"compression": "gzip", "chunks": (10**7,)}),
    "a mask of 3 GB of which nothing is stored": ((3_000_000_000,), {}),
    "a mask in a chunk of 400 MB": ((4,), {"compression": "gzip", "chunks": (4 * 10**8,), "maxshape": (None,)}),
}


@pytest.mark.parametrize("bomb", MASKS)
def test_masks_in_weights_files(bomb, tmp_path):
    path, target = tmp_path / "m.weights.h5", model()
    target.save_weights(path)
    masks, (shape, settings) = [], MASKS[bomb]
    with h5py.File(path, "r+") as file:
        file.visititems(lambda name, item: masks.append(name) if name.endswith("mask_store/vars/0") else None)
        del file[masks[0]]
        made = file.create_dataset(masks[0], shape, "uint8", **settings)
        if "chunks" in settings:
            made[:1] = 1
    show("masks in .weights.h5", bomb, path.stat().st_size, lambda: target.load_weights(path))


def test_a_mask_whose_chunk_unpacks_to_more(tmp_path):
    path, target, names = tmp_path / "m.weights.h5", model(), []
    target.save_weights(path)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda name, item: names.append(name) if name.endswith("mask_store/vars/0") else None)
        shape = file[names[0]].shape
        del file[names[0]]
        made = file.create_dataset(names[0], shape, "uint8", chunks=shape, compression="gzip")
        made.id.write_direct_chunk((0,), zlib.compress(bytes(5 * 10**7)))
    with pytest.raises(
        ValueError, match=r"mask 0 cannot be read: a chunk .* unpacks to more than .* bytes. Received: "
    ):
        target.load_weights(path)
