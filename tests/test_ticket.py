"""A ticket as an artifact: saved, loaded, applied, transferred; what does not fit is refused and changes nothing."""

import io
import os
import zipfile

import keras
import ml_dtypes
import numpy as np
import pytest
from helpers import assert_programs_agree, data, halve, mlp
from keras import layers

import kprune
from kprune.runtime import files


def ticket_of(model, **about):
    kprune.mask(model)
    halve(model)
    return kprune.Ticket.of(model, **about)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    ticket = ticket_of(mlp(), data="digits", level=3)
    ticket.save(tmp_path / "ticket.npz")
    loaded = kprune.Ticket.load(tmp_path / "ticket.npz")
    assert loaded.checksum == ticket.checksum and loaded.about == {"data": "digits", "level": 3}
    assert loaded.sparsity == ticket.sparsity
    for part in ("masks", "weights"):
        assert list(getattr(loaded, part)) == list(getattr(ticket, part))
        for path, array in getattr(ticket, part).items():
            assert getattr(loaded, part)[path].dtype == array.dtype
            np.testing.assert_array_equal(getattr(loaded, part)[path], array)
    with np.load(tmp_path / "ticket.npz", allow_pickle=False) as file:
        assert "sha256" in file.files


def test_its_checksum_is_that_of_its_content():
    ticket = ticket_of(mlp())
    weights = {path: array.copy() for path, array in ticket.weights.items()}
    assert kprune.Ticket(ticket.masks, weights).checksum == ticket.checksum
    next(iter(weights.values()))[0, 0] += 1
    assert kprune.Ticket(ticket.masks, weights).checksum != ticket.checksum


def test_applied_to_a_model_whose_layers_have_other_names_it_is_the_same_network():
    source = mlp()
    ticket = ticket_of(source)
    layer = [layers.Dense(12, "relu"), layers.Dense(12, "relu"), layers.Dense(3)]
    target = keras.Sequential([keras.Input((8,)), *layer])
    target.compile("adam", "mse")
    target.fit(*data(), verbose=0)
    ticket.apply(target)
    x, _ = data()
    assert_programs_agree(target.predict(x, verbose=0), source.predict(x, verbose=0))
    for weight, mask in zip(kprune.masked_weights(target), ticket.masks.values(), strict=True):
        np.testing.assert_array_equal(weight.kept(), mask)
        slots = [v for v in target.optimizer.variables if tuple(v.shape) == weight.shape]
        assert slots and all(np.all(v.numpy()[~mask] == 0) for v in slots if "hidden" in v.name)


def test_masks_alone_leave_the_values():
    target = mlp()
    before = [layer.kernel.numpy() for layer in target.layers]
    ticket = ticket_of(mlp())
    ticket.apply(target, weights=False)
    for value, layer, mask in zip(before, target.layers, ticket.masks.values(), strict=True):
        np.testing.assert_array_equal(layer.kernel.numpy(), np.where(mask, value, 0))


def test_transferred_to_another_head():
    ticket = ticket_of(mlp(outputs=3))
    target = mlp(outputs=7)
    head = target.get_layer("logits").kernel.numpy()
    with pytest.raises(ValueError, match=r"pass `skip`.*logits.*Received: shape=\(12, 3\), skip=None"):
        ticket.apply(target)
    assert kprune.masked_weights(target) == []
    ticket.apply(target, skip="logits")
    np.testing.assert_array_equal(target.get_layer("logits").kernel.numpy(), head)
    for weight in kprune.masked_weights(target):
        assert weight.kept().all() == ("logits" in weight.path)


def test_a_model_of_another_kind_is_refused_and_stays_as_it_was():
    target = keras.Sequential([keras.Input((8,)), layers.Dense(12)])
    before = target.get_weights()
    with pytest.raises(ValueError, match=r"does not match.*6 arrays for 2 variables.*Received"):
        ticket_of(mlp()).apply(target)
    assert kprune.masked_weights(target) == []
    np.testing.assert_array_equal(target.get_weights()[0], before[0])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty", "other npz", "backup"])
def test_a_damaged_or_foreign_file_is_an_error_that_names_it(damage, tmp_path):
    path = tmp_path / "ticket.npz"
    ticket_of(mlp()).save(path)
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = whole.index(b"array3.npy") + 200
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "foreign":
        path.write_text("no npz at all")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other npz":
        np.savez(path, a=np.ones(3))
    else:
        files.write(path, files.pack({}, {"kind": "something else"}))
    with pytest.raises(ValueError, match=r"Received: (file|path)='.*ticket.npz'"):
        kprune.Ticket.load(path)


def test_no_damage_passes_for_content():
    arrays, about = {"mask": np.arange(20) % 3 == 0, "w": np.arange(6.0)}, {"kind": "x"}
    whole = files.pack(arrays, about)
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [
        whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
        for place in range(len(whole))
        for bit in range(8)
    ]
    refused = 0
    for content in damaged:
        try:
            found, known = files.unpack(content, "here")
        except ValueError as error:
            assert str(error).endswith("Received: file='here'")
            refused += 1
        else:  # what the zip archive says of dates and the like
            assert known == about and all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert refused > len(damaged) / 2


def foreign(compression, *members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for member in members:
            archive.writestr(*member)
    return buffer.getvalue()


def test_other_archives_are_refused():
    deflated = bytearray(foreign(zipfile.ZIP_DEFLATED, ("a.npy", b"\x93NUMPY" + b"a" * 1000)))
    deflated[40] ^= 255
    deflated[42] ^= 255
    for content in (foreign(zipfile.ZIP_STORED, ("about.json", "{}"), ("sha256", "x")), bytes(deflated)):
        with pytest.raises(ValueError, match=r"This is not a kprune file.*Received: file='here'"):
            files.unpack(content, "here")


@pytest.mark.parametrize("part", ["array0", "about.json"])
def test_a_file_that_was_edited_is_refused(part, tmp_path):
    """It is a whole zip archive with checksums of its own, so only ours can tell."""
    path = tmp_path / "ticket.npz"
    ticket_of(mlp(), level=3).save(path)
    with np.load(path) as file:
        stored = dict(file)
    if part == "about.json":
        edited = stored[part].tobytes().replace(b'"level": 3', b'"level": 4')
    else:
        edited = stored[part].tobytes()[::-1]
    assert edited != stored[part].tobytes()
    np.savez(path, **{**stored, part: np.frombuffer(edited, np.uint8)})
    with pytest.raises(ValueError, match=r"its checksum is wrong. Received: file='.*ticket.npz'"):
        kprune.Ticket.load(path)


def test_a_name_that_is_not_npz_is_refused(tmp_path):
    for name in (tmp_path / "ticket.pkl", None, 5):
        for use in (ticket_of(mlp()).save, kprune.Ticket.load):
            with pytest.raises(ValueError, match="Received: path="):
                use(name)
    assert not list(tmp_path.iterdir())


def test_what_makes_no_ticket_is_refused():
    with pytest.raises(ValueError, match=r"call kprune.mask first. Received: model="):
        kprune.Ticket.of(mlp())
    with pytest.raises(ValueError, match=r"must be JSON.*Received: about=\{'accuracy'"):
        ticket_of(mlp(), accuracy=np.float32(0.5))


@pytest.mark.parametrize("skip", ["(", 5, ["a"], ".", "net|seq"])
def test_what_cannot_be_skipped_is_refused_and_changes_nothing(skip):
    ticket, target = ticket_of(mlp()), mlp()
    with pytest.raises(ValueError, match="Received: skip="):
        ticket.apply(target, skip=skip)
    assert kprune.masked_weights(target) == []


def test_by_order_a_weight_is_given_to_one_of_its_kind_alone():
    def network(*between):
        return keras.Sequential([keras.Input((8,)), *between, layers.Dense(3)])

    ticket = ticket_of(network(layers.Dense(8)))
    target = network(layers.Dense(8, use_bias=False), layers.LayerNormalization(center=False))
    before = target.get_weights()
    with pytest.raises(ValueError, match=r"expected .*gamma, got .*bias.*Received"):
        ticket.apply(target)
    assert kprune.masked_weights(target) == []
    for one, other in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_networks_whose_layers_have_other_names_have_equal_checksums():
    def network():
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Dense(3)])

    one, other = ticket_of(network()), ticket_of(network())
    assert list(one.masks) != list(other.masks)
    assert one.checksum == other.checksum


@pytest.mark.parametrize("dtype", ["float32", "float16", "bool", "int64", "uint8", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (9,), (3, 5)])
def test_any_array_is_packed(dtype, shape):
    array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 3).astype(dtype)
    arrays, about = files.unpack(files.pack({"a/b": array}, {"x": [1, "y"]}), "here")
    assert arrays["a/b"].dtype == array.dtype and about == {"x": [1, "y"]}
    np.testing.assert_array_equal(arrays["a/b"], array)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.npz"
    files.write(path, b"first")

    def fail(name):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write(path, fail)
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == ["file.npz"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def recorded_sync(handle):
        done.append(os.fstat(handle).st_ino)
        sync(handle)

    def recorded_replace(source, target):
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    files.write(tmp_path / "file.npz", b"content")
    # A file keeps its inode when it is renamed.
    assert done == [(tmp_path / "file.npz").stat().st_ino, "renamed", tmp_path.stat().st_ino]
