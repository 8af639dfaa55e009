"""Readers of files from elsewhere, on mutations of valid ones: an error that names the file, or what a valid file says.

None of them takes 300 MB more than there are at the start, and none changes the model. `make test-faults` tries 10,000
inputs for each reader, the ordinary tests a hundred.
"""

import dataclasses
import gc
import io
import math
import zipfile

import fuzz
import h5py
import keras
import numpy as np
import pytest
from helpers import data, mlp
from keras.src.saving.saving_lib import H5IOStore  # closed here after an error, which `load_weights` leaves open
from kprune.callbacks import BackupAndRestore, TakeSnapshot
from kprune.callbacks._carrier import release

import kprune
from kprune.experiments.lottery_network import LotteryNetwork
from kprune.experiments.lottery_runs import LotteryRun
from kprune.experiments.runs import RunTable
from kprune.experiments.sweep import SweepRun
from kprune.lottery.rewind import RewindPoint, snapshot
from kprune.runtime import files

pytestmark = [pytest.mark.one_session, pytest.mark.filterwarnings("ignore:Duplicate name")]
SEED = 10


def survive(name, whole, mutate, read):
    """Have `read` read the mutations; it returns whether it took one, or raises ValueError."""
    rng, refused = np.random.default_rng(SEED), 0
    with fuzz.bounded_memory() as taken:
        for number in range(fuzz.INPUTS):
            content = mutate(rng, whole)
            try:
                read(content)
            except ValueError as error:
                assert "Received: " in str(error) and len(str(error)) < 3000, (number, str(error)[:3000])
                refused += 1
    print(
        f"{name} on {keras.backend.backend()}: {fuzz.INPUTS:,} inputs (seed {SEED}), {fuzz.INPUTS:,} survived: "
        f"{refused:,} refused, {fuzz.INPUTS - refused:,} read, {taken[0] / 1e6:,.0f} MB at most"
    )
    assert refused > fuzz.INPUTS / 3
    read(whole)


def model():
    made = mlp(units=4)
    made.compile("sgd", "mse", jit_compile=False)
    kprune.prune(made, "magnitude", 0.5)
    return made


def variables(model):
    return [*model.weights, *(weight.mask for weight in kprune.masked_weights(model))]


def values(model):
    return [np.array(v) for v in variables(model)]


def put_back(model, before):
    for v, value in zip(variables(model), before, strict=True):
        v.assign(value)


def assert_same(before, after):
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


# npz


def test_tickets(tmp_path):
    path = tmp_path / "ticket.npz"
    kprune.Ticket.of(model(), note=[1, {"a": 0.5}]).save(path)

    def read(content):
        path.write_bytes(content)
        ticket = kprune.Ticket.load(path)
        assert isinstance(ticket.about, dict) and all(mask.dtype == bool for mask in ticket.masks.values())

    survive("Ticket.load", path.read_bytes(), fuzz.hostile_npz, read)


def test_backups(tmp_path):
    path, trained = tmp_path / "b.npz", model()
    taker = TakeSnapshot()
    saved = trained.fit(*data(), epochs=1, verbose=0, callbacks=[taker, BackupAndRestore(path, delete=False)])
    whole = path.read_bytes()
    target = model()
    before = values(target)

    def read(content):
        path.write_bytes(content)
        put_back(target, before)
        callbacks = [TakeSnapshot(), BackupAndRestore(path)]
        for callback in callbacks:
            callback.set_model(target)
        params = dict(saved.params)
        for callback in callbacks:
            callback.set_params(params)
        try:
            callbacks[1].on_train_begin()
        except ValueError:
            assert_same(before, values(target))
            raise
        callbacks[1].on_train_end()

    survive("BackupAndRestore", whole, fuzz.hostile_npz, read)


class Trains(BaseException):
    pass


@pytest.mark.parametrize("name", ["state.npz", "rewind-point.npz"])
def test_states_of_find_ticket(tmp_path, name):
    def train(model, level):
        if level.number:
            raise Trains
        return model.fit(*data(), epochs=1, verbose=0, callbacks=level.callbacks)

    def find(target):
        with pytest.raises(Trains):
            kprune.find_ticket(target, train, levels=1, rewind_to="init", folder=tmp_path, verbose=False)

    find(model())
    gc.freeze()  # each reading looks through all live objects: those of the network below are few
    path, target = tmp_path / name, model()
    whole, before = path.read_bytes(), values(target)

    def read(content):
        path.write_bytes(content)
        put_back(target, before)
        try:
            find(target)
        except ValueError:
            assert_same(before, values(target))
            raise

    survive(f"find_ticket {name}", whole, fuzz.hostile_npz, read)


class Stops(LotteryNetwork):
    def _batches(self):
        return [0]

    def _fit(self, *_):
        raise Trains


def test_rewind_points_of_lotteries(tmp_path):
    target = model()
    network = Stops(target, None, 1, 0, tmp_path, print)
    (tmp_path / "init").mkdir()
    kprune.Ticket.of(target).save(tmp_path / "init" / "level-0.npz")
    path, before = tmp_path / "init" / "rewind-point.npz", values(target)
    whole = files.pack(snapshot(target).to_arrays(), {})

    def read(content):
        path.write_bytes(content)
        put_back(target, before)
        try:
            network.control("shuffle", "init", 0, RewindPoint.of("init"))
        except Trains:
            return
        except ValueError:
            assert_same(before, values(target))
            raise

    survive("run_lotteries", whole, fuzz.hostile_npz, read)


# What is small on disk and would be large in memory


def members(whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def claiming(whole, size):
    """The archive with one array that says to be of this size, and holds 64 bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in members(whole).items():
            archive.writestr(name, raw[:10] + header.ljust(117) + b"\n" + bytes(64) if name == "array0.npy" else raw)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda whole: fuzz.bomb(members(whole), 400_000_000), r"member '.*' is compressed"),
        (lambda whole: claiming(whole, 10**18), r"not have the size it declares"),
        (lambda whole: claiming(whole, 10**17), r"not have the size it declares"),
    ],
)
def test_an_npz_that_would_unpack_to_more_than_it_is(tmp_path, make, reason):
    path = tmp_path / "ticket.npz"
    kprune.Ticket.of(model()).save(path)
    path.write_bytes(make(path.read_bytes()))
    with fuzz.bounded_memory(), pytest.raises(ValueError, match=rf"{reason}.*Received: file='.*ticket.npz'$"):
        kprune.Ticket.load(path)


def test_an_about_that_would_take_more_than_it_may_is_refused_when_it_is_written_too():
    note = {"note": "x" * 2**23}
    with pytest.raises(ValueError, match=r"at most 8,388,608 bytes of JSON\. Received: bytes=8,388"):
        files.pack({}, note)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((3_000_000_000,), {"compression": "gzip", "chunks": (10_000_000,)}),
        ((3_000_000_000,), {}),
        ((4,), {"compression": "gzip", "chunks": (400_000_000,), "maxshape": (None,)}),  # a chunk is read whole
    ],
)
def test_a_mask_that_the_model_cannot_have(tmp_path, shape, settings):
    path, target = tmp_path / "m.weights.h5", model()
    target.save_weights(path)
    masks = []
    with h5py.File(path, "r+") as file:
        file.visititems(lambda name, item: masks.append(name) if name.endswith("mask_store/vars/0") else None)
        assert len(masks) == 3 and file[masks[0]].shape == (4,)
        del file[masks[0]]
        made = file.create_dataset(masks[0], shape, "uint8", **settings)
        if "chunks" in settings:
            made[:1] = 1
    assert path.stat().st_size < 3_000_000
    with fuzz.bounded_memory(), pytest.raises(ValueError, match=r"mask 0 must contain 4 bytes.*Received: "):
        target.load_weights(path)


def test_masks_in_several_files(tmp_path):
    path, saved, target = tmp_path / "m.weights.json", model(), model()
    saved.save_weights(path, max_shard_size=150e-9)
    masks = {}
    for file in sorted(tmp_path.glob("*.h5")):
        with h5py.File(file) as shard:
            shard.visit(
                lambda name, file=file: masks.update({name: file}) if name.endswith("mask_store/vars/0") else None
            )
    assert len(set(masks.values())) > 1
    target.load_weights(path)
    assert_same(values(saved), values(target))
    name, file = list(masks.items())[-1]
    with h5py.File(file, "r+") as shard:
        del shard[name]
        shard.create_dataset(name, (3_000_000_000,), "uint8")
    with fuzz.bounded_memory(), pytest.raises(ValueError, match="mask 0 must contain 2 bytes"):
        target.load_weights(path)


# CSV


SWEPT = SweepRun("snip", 10.0, 0, 0.5, 0.75, 0.9, 0, 1.5)
RUNS = {
    "collapse.csv": [SWEPT, dataclasses.replace(SWEPT, seed=1), dataclasses.replace(SWEPT, method="random")],
    "lottery.csv": [LotteryRun("init", "init", level, 0, 0.6**level, 0.9, 1.0, 2.5, 8, 0.9) for level in range(3)],
}


@pytest.mark.parametrize("name", RUNS)
def test_tables_of_runs(tmp_path, name):
    kind, own, others = type(RUNS[name][0]), {"dataset": "digits", "rounds": None}, {"model": "vgg-11"}
    table = RunTable(tmp_path / name, kind, own, others)
    for run in RUNS[name]:
        table.add(run)

    def read(content):
        (tmp_path / name).write_bytes(content)
        cells = RunTable(tmp_path / name, kind, own, others).cells
        for cell in map(dataclasses.asdict, cells.values()):
            assert all(0 <= accuracy <= 1 for accuracy in cell.pop("curve", None) or ()), cell
            numbers = {key: value for key, value in cell.items() if not isinstance(value, str | None)}
            assert all(0 <= value < math.inf for value in numbers.values()), cell
            shares = {"accuracy", "best", "early_accuracy", "sparsity", "density"}
            assert all(numbers[key] <= 1 for key in shares & set(numbers)), cell

    survive(name, (tmp_path / name).read_bytes(), fuzz.hostile_csv, read)


# Masks, and the states of callbacks, in .weights.h5


def hostile_vector(rng, group, key, whole):
    """Put something else than these bytes in a group of an HDF5 file."""
    del group[key]
    kind, huge = rng.integers(8), int(10 ** rng.uniform(6, 10))
    bits = np.frombuffer(whole, np.uint8)
    if kind == 0:
        group[key] = np.frombuffer(fuzz.damaged(rng, whole), np.uint8)
    elif kind == 1:
        group.create_dataset(key, (huge,), "uint8", compression="gzip", chunks=(10**6,))
    elif kind == 2:
        group.create_dataset(key, (huge,), "uint8")  # of which nothing is stored
    elif kind == 3:
        chunk = min(huge, 2**31)
        group.create_dataset(key, bits.shape, "uint8", maxshape=(None,), chunks=(chunk,), compression="gzip")
        if chunk < 10**8:
            group[key][...] = bits
    elif kind == 4:
        group[key] = bits.astype(fuzz.pick(rng, ["float64", "int8", "complex64", "S3"]))
    elif kind == 5:
        group[key] = fuzz.pick(rng, [bits[None], bits[:0], np.uint8(1), np.repeat(bits, 2)])
    elif kind == 6:
        group[fuzz.pick(rng, ["x", "-1", "00", f"{key}0"])] = bits
    else:
        group.create_dataset(key, (huge,), h5py.string_dtype())


def test_masks_and_states_in_weights_files(tmp_path):
    masked = model()
    callback = TakeSnapshot()
    callback.set_model(masked)
    callback.set_params({"epochs": 1, "steps": 1})
    path = tmp_path / "m.weights.h5"
    masked.save_weights(path)
    with h5py.File(path) as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if name.endswith("mask_store/vars") else None)
        own = next(name for name in found if "callbacks" in file[name])
        stored = {key: file[own][key][...].tobytes() for key in file[own]}
    layers = masked._flatten_layers()
    store = next(s for layer in layers if (s := getattr(layer, "mask_store", None)) is not None and s._carriers())
    whole, before = path.read_bytes(), [np.array(mask) for mask in store.masks]

    def mutate(rng, whole):
        path.unlink()  # HDF5 knows a file that it has not closed by its inode
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            key = fuzz.pick(rng, list(stored))
            if key == "callbacks" and rng.random() < 0.7:
                del file[own][key]
                file[own][key] = np.frombuffer(fuzz.hostile_npz(rng, stored[key]), np.uint8)
            else:
                hostile_vector(rng, file[own], key, stored[key])
        return path.read_bytes()

    def read(content):
        path.unlink()
        path.write_bytes(content)
        for mask, value in zip(store.masks, before, strict=True):
            mask.assign(value)
        try:
            keras_store = H5IOStore(path)
            try:
                store.load_own_variables(keras_store.get(own.removesuffix("/vars")))
            finally:
                keras_store.close()
        except ValueError as error:
            if "mask" in str(error):
                assert_same(before, map(np.array, store.masks))
            raise

    survive("masks in .weights.h5", whole, mutate, read)
    release(masked)
