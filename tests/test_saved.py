"""Saved models that are damaged, unknown, or made by hand: one error that names the file, and nothing runs."""

import io
import json
import resource
import shutil
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest
from crafted import entry, parts_of, write
from fuzz import bounded_memory
from helpers import halve, mlp
from keras import layers

import kprune
from kprune.cli import main as cli
from kprune.masks.masked_layers import Masked
from kprune.report import saved
from kprune.targets.advice import Advice

pytestmark = pytest.mark.slow_on_jax


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A masked model's .keras file."""
    path = tmp_path_factory.mktemp("masked") / "masked.keras"
    model = mlp()
    kprune.mask(model)
    halve(model)
    model.save(path)
    return path


def refusal(file, capsys, what="keras"):
    """The one line at the shell; the function raises the same."""
    with pytest.raises(ValueError) as caught:
        saved.read(file)
    words = str(caught.value)
    assert words.endswith(f" Received: path={str(file)!r}") and len(words) < 800
    assert cli.main(["inspect", str(file)]) == 1
    shown = capsys.readouterr().err
    assert shown == f"kprune: error: {words}\n"
    return words


def with_spec(masked, tmp_path, change):
    config = json.loads(parts_of(masked)["config.json"])
    config["config"]["layers"][1]["config"]["kprune"] = change(config["config"]["layers"][1]["config"]["kprune"])
    return write(tmp_path / "spec.keras", parts_of(masked), **{"config.json": config})


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: {**spec, "masked": [5]},
        lambda spec: {**spec, "masked": [-1]},
        lambda spec: {**spec, "masked": [0, 0]},
        lambda spec: {**spec, "masked": [True]},
        lambda spec: {**spec, "masked": "0"},
        lambda spec: {**spec, "masked": ["kernel"]},
        lambda spec: {**spec, "masked": None},
        lambda spec: {**spec, "weights": 3},
        lambda spec: {**spec, "weights": 10**30},
        lambda spec: {**spec, "weights": "2"},
        lambda spec: {**spec, "weights": None},
        lambda spec: {key: spec[key] for key in spec if key != "masked"},
        lambda spec: {key: spec[key] for key in spec if key != "weights"},
        lambda spec: {key: spec[key] for key in spec if key != "class_name"},
        lambda spec: {**spec, "class_name": "Zeros", "module": "keras.initializers"},
        lambda spec: {**spec, "class_name": "Nothing"},
        lambda spec: None,
        lambda spec: [],
        lambda spec: {},
    ],
)
def test_mask_specs_that_cannot_be(change, masked, tmp_path, capsys):
    refusal(with_spec(masked, tmp_path, change), capsys)


def test_masked_without_a_spec():
    with pytest.raises(ValueError, match=r"must list its masked weights\. Received: kprune=None$"):
        Masked.from_config({"units": 3})


def damages():
    """Name -> what makes the bytes of a .keras file something that is none, and what the error says."""

    def replaced(name, data):
        def change(path, parts):
            write(path, parts, **{name: data})

        return change

    def without(name):
        return lambda path, parts: write(path, {key: parts[key] for key in parts if key != name})

    def twice(path, parts):
        with zipfile.ZipFile(write(path, parts), "a") as archive, pytest.warns(UserWarning):
            archive.writestr("config.json", b"{}")

    def moved(path, parts):
        """The tree of the first group lies at 2**64 - 2."""
        data = bytearray(parts["model.weights.h5"])
        data[120:128] = (2**64 - 2).to_bytes(8, "little")
        write(path, parts, **{"model.weights.h5": bytes(data)})

    return {
        "empty": (lambda path, parts: path.write_bytes(b""), "not a zip file"),
        "text": (lambda path, parts: path.write_text("not a model"), "not a zip file"),
        "half": (lambda path, parts: path.write_bytes(write(path, parts).read_bytes()[:-400]), "not a zip file"),
        "a bit": (lambda path, parts: flip(write(path, parts)), "damaged"),
        "no config": (without("config.json"), "contains no config.json"),
        "no metadata": (without("metadata.json"), "contains no metadata.json"),
        "no weights": (without("model.weights.h5"), "contains no model.weights.h5"),
        "two configs": (twice, "contains 2 files named config.json"),
        "config is no JSON": (replaced("config.json", b"{"), "damaged"),
        "config is a list": (replaced("config.json", []), "does not describe a model"),
        "config is no model": (replaced("config.json", {"name": "net"}), "does not describe a model"),
        "config is a layer": (
            replaced("config.json", {"module": "keras.layers", "class_name": "ReLU", "config": {}}),
            "",
        ),
        "metadata is a list": (replaced("metadata.json", []), "does not name a supported Keras version"),
        "no version": (replaced("metadata.json", {}), "does not name a supported Keras version"),
        "version of tomorrow": (replaced("metadata.json", {"keras_version": "4.0.0"}), "keras_version='4.0.0'"),
        "version is a number": (replaced("metadata.json", {"keras_version": 3}), "keras_version=3"),
        "weights are text": (replaced("model.weights.h5", b"weights"), "damaged"),
        "an address in the weights": (moved, "damaged"),
        "weights of another model": (replaced("model.weights.h5", h5(x=np.ones(3))), ""),
    }


def flip(path):
    data = bytearray(path.read_bytes())
    position = data.index(b"class_name")
    data[position] ^= 1
    path.write_bytes(bytes(data))


def h5(**arrays):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return buffer.getvalue()


@pytest.mark.parametrize("kind", damages())
def test_damaged(kind, masked, tmp_path, capsys):
    change, words = damages()[kind]
    change(tmp_path / "damaged.keras", parts_of(masked))
    assert words in refusal(tmp_path / "damaged.keras", capsys)


def bomb(path, parts, name, size):
    """The file, with `size` spaces behind one of its members, packed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, data in parts.items():
            with archive.open(key, "w") as member:
                member.write(data)
                for _ in range(size // 2**20 if key == name else 0):
                    member.write(b" " * 2**20)
    return path


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5", "assets/vocabulary.txt"])
def test_members_that_unpack_to_more_than_they_say(name, masked, tmp_path, capsys):
    """The size that the list of members gives is that of the honest beginning, and so is the checksum."""
    parts = {**parts_of(masked), "assets/vocabulary.txt": b"word"}
    file = bomb(tmp_path / "bomb.keras", parts, name, 100 * 2**20)
    data = bytearray(file.read_bytes())
    entry = data.index(name.encode(), data.index(b"PK\1\2")) - 46
    data[entry + 16 : entry + 20] = struct.pack("<I", zlib.crc32(parts[name]))
    data[entry + 24 : entry + 28] = struct.pack("<I", len(parts[name]))
    file.write_bytes(data)
    assert peak(lambda: refusal(file, capsys)) < 8 * 2**20
    assert f"'{name}' unpacks to more than the {len(parts[name]):,} bytes that the archive declares" in refusal(
        file, capsys
    )


def test_members_packed_otherwise(masked, tmp_path, capsys):
    """zipfile unpacks them whole, whatever size they give."""
    with zipfile.ZipFile(tmp_path / "packed.keras", "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in parts_of(masked).items():
            archive.writestr(name, data)
    assert "is compressed with a method other than deflate" in refusal(tmp_path / "packed.keras", capsys)


@pytest.mark.parametrize(
    "filters, words", [("gzip", "unpacks to more than 36 bytes"), ("lzf", "something other than a single gzip filter")]
)
def test_chunks_that_unpack_to_more_than_they_are(filters, words, masked, tmp_path, capsys):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        made = file.create_dataset("x", (8,), "float32", chunks=(8,), compression=filters)
        made.id.write_direct_chunk((0,), zlib.compress(bytes(5 * 10**7)))
    path = write(tmp_path / "bomb.keras", parts_of(masked), **{"model.weights.h5": buffer.getvalue()})
    assert words in refusal(path, capsys)


def test_arrays_packed_by_hdf5_load(masked, tmp_path):
    buffer = io.BytesIO(parts_of(masked)["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            value = file[name][...]
            del file[name]
            packing = {"compression": "gzip", "shuffle": True, "fletcher32": True} if value.shape else {}
            file.create_dataset(name, data=value, **packing)
    path = write(tmp_path / "packed.keras", parts_of(masked), **{"model.weights.h5": buffer.getvalue()})
    assert saved.read(path).rows == saved.read(masked).rows


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5", "assets/vocabulary.txt"])
def test_members_that_unpack_to_more_than_a_model_needs(name, masked, tmp_path, capsys):
    parts = {**parts_of(masked), "assets/vocabulary.txt": b"word"}
    file = bomb(tmp_path / "bomb.keras", parts, name, 100 * 2**20)
    assert peak(lambda: refusal(file, capsys)) < 8 * 2**20
    assert f"{name} is " in refusal(file, capsys) and "bytes unpacked" in refusal(file, capsys)


def test_an_array_that_unpacks_to_more_than_a_model_needs(masked, tmp_path, capsys):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("mask", (2**33,), "uint8", compression="gzip", chunks=(2**20,))
    file = write(tmp_path / "bomb.keras", parts_of(masked), **{"model.weights.h5": buffer.getvalue()})
    assert peak(lambda: refusal(file, capsys)) < 8 * 2**20
    assert "the arrays of model.weights.h5 are 77,309,411,328 bytes unpacked" in refusal(file, capsys)


def in_depth(file):
    for _ in range(300):
        file = file.create_group("a")


def in_links(file):
    file.create_group("a")
    for i in range(70_000):
        file.id.links.create_hard(b"%d" % i, file.id, b"a")


def in_chunks(file):
    """A number in a chunk of 400 MB, which is read whole."""
    made = file.create_dataset("x", (1,), "float32", maxshape=(None,), chunks=(10**8,), compression="gzip")
    assert made.nbytes == 4


def in_many_chunks(file):
    made = file.create_dataset("x", (5000,), "uint8", chunks=(1,), compression="gzip")
    made[...] = 1


def in_strings(file):
    file["x"] = ["a", "bc"]


def in_attributes(file):
    file.attrs["dtype"] = ["a", "bc"]


def in_many_attributes(file):
    file.attrs["dtype"] = np.zeros(2000, "uint8")


@pytest.mark.parametrize(
    "fill, words",
    [
        (in_depth, "the groups in model.weights.h5 are nested more than 200 levels deep"),
        (in_links, "model.weights.h5 contains more than 65,536 groups and arrays"),
        (in_chunks, "are 400,000,000 bytes unpacked"),
        (in_many_chunks, "the array '/x' is split into 5,000 chunks, more than the limit of 4,000"),
        (in_strings, "the array '/x' in model.weights.h5 is not numeric"),
        (
            in_attributes,
            "the attribute 'dtype' of '/' in model.weights.h5 is larger than any attribute that Keras writes",
        ),
        (
            in_many_attributes,
            "the attribute 'dtype' of '/' in model.weights.h5 is larger than any attribute that Keras writes",
        ),
    ],
)
def test_arrays_that_take_more_than_they_say(fill, words, masked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kprune.masks.stores._MOST_CHUNKS", 4000)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    path = write(tmp_path / "bomb.keras", parts_of(masked), **{"model.weights.h5": buffer.getvalue()})
    assert words in refusal(path, capsys)


def test_more_members_than_any_model_has(masked, tmp_path, capsys):
    parts = {**parts_of(masked), **{f"assets/{i}": b"" for i in range(5000)}}
    assert "it contains 5,003 files, more than the limit of" in refusal(write(tmp_path / "many.keras", parts), capsys)


@pytest.mark.parametrize("depth", [1, 150])
@pytest.mark.parametrize("parts", [2**18 - 1000, 2_700_000])
def test_a_config_of_many_parts_takes_little(depth, parts, masked, tmp_path, capsys):
    text = b"[" * depth + b",".join([b"[]"] * parts) + b"]" * depth
    text = b'{"module": "keras", "class_name": "Sequential", "config": ' + text + b"}"
    file = write(tmp_path / "wide.keras", parts_of(masked), **{"config.json": text})
    with bounded_memory():
        words = refusal(file, capsys)
    assert ("lists and dicts, more than the limit of" in words) == (parts > 2**18)


def test_a_config_of_many_numbers_takes_little(masked, tmp_path, capsys):
    layer = {"module": "keras.layers", "class_name": "Normalization", "config": {"mean": [0.5] * 1_600_000}}
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
    file = write(tmp_path / "long.keras", parts_of(masked), **{"config.json": json.dumps(config).encode()})
    with bounded_memory():
        assert "items, more than the limit of 524,288" in refusal(file, capsys)


HUGE = 40_000_000  # a kernel of 640 MB


@pytest.mark.parametrize(
    "hostile",
    [
        entry("keras.layers", "Dense", {"units": HUGE}),
        entry("keras.layers", "Dense", {"units": HUGE}, build_config={"input_shape": [None, 4]}),
        entry("keras.layers", "Embedding", {"input_dim": HUGE, "output_dim": 4}),
        entry("keras.layers", "LSTM", {"units": HUGE}, build_config={"input_shape": [None, 3, 4]}),
    ],
    ids=lambda config: f"{config['class_name']} {len(config)}",
)
def test_layers_that_ask_for_more_than_the_weights_need(hostile, masked, tmp_path, capsys):
    config = json.loads(parts_of(masked)["config.json"])
    config["config"]["layers"][2] = hostile
    config.pop("build_config")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = refusal(write(tmp_path / "huge.keras", parts_of(masked), **{"config.json": config}), capsys)
    assert "more than the file contains" in words
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10  # kilobytes


def calling(part, shape=(None, 200_000)):
    """A config of a functional model of one call."""
    history = {"shape": shape, "dtype": "float32", "keras_history": ["i", 0, 0]}
    node = {"args": [{"class_name": "__keras_tensor__", "config": history}], "kwargs": {}}
    inputs = entry("keras.layers", "InputLayer", {"batch_shape": shape, "dtype": "float32", "name": "i"})
    name = part["config"].get("name", "called")
    called = {**part, "config": {**part["config"], "name": name}, "name": name, "inbound_nodes": [node]}
    ends = {"input_layers": [["i", 0, 0]], "output_layers": [[name, 0, 0]]}
    layers = [{**inputs, "name": "i", "inbound_nodes": []}, called]
    return entry("keras.src.models.functional", "Functional", {"name": "net", "layers": layers, **ends})


LOOKUP = {"max_tokens": None, "vocabulary": [1, 2], "num_oov_indices": 10**5}
MANY = "creates more than 131,072 intermediate tensors"


@pytest.mark.parametrize(
    "part, words",
    [
        (entry("keras.src.ops.numpy", "Split", {"indices_or_sections": 200_000, "axis": 1}), MANY),
        (entry("keras.src.ops.numpy", "ArraySplit", {"indices_or_sections": 200_000, "axis": 1}), MANY),
        (entry("keras.src.ops.core", "Unstack", {"axis": 1}), MANY),
        (entry("keras.src.ops.numpy", "ExpandDims", {"axis": [0] * 6000}), "are longer than the limit of 16,384"),
        (entry("keras.layers", "IntegerLookup", LOOKUP), "has num_oov_indices=100,000, more than the limit of 65,536"),
        (entry("keras.layers", "TextVectorization", {"ngrams": 10**5}), "has ngrams=100,000, more than the limit"),
    ],
    ids=lambda value: value["class_name"] if isinstance(value, dict) else "",
)
def test_parts_that_ask_for_more_than_any_model_has(part, words, masked, tmp_path, capsys):
    path = write(tmp_path / "many.keras", parts_of(masked), **{"config.json": calling(part)})
    assert words in refusal(path, capsys)


def test_what_a_terminal_would_obey_is_escaped(masked, tmp_path, capsys):
    """A layer's name, in a table and in Keras's error."""
    hostile = "d\x1b[31m\n\u202e"
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name=hostile)])
    model.save(tmp_path / "model.keras")
    assert cli.main(["inspect", str(tmp_path / "model.keras")]) == 0
    shown = capsys.readouterr().out
    assert r"d\x1b[31m\n\u202e/kernel" in shown and "\x1b" not in shown and "\u202e" not in shown
    advice = Advice("zip", 0.9, {}, 1.0, None, obstacles={hostile: "small"})
    assert r"d\x1b[31m\n\u202e: small" in str(advice)
    part = entry("keras.layers", "Dense", {"units": 3, "name": hostile})
    path = write(tmp_path / "other.keras", parts_of(masked), **{"config.json": calling(part, (None, 4))})
    with pytest.raises(ValueError) as caught:
        saved.load(path)
    assert cli.main(["inspect", str(path)]) == 1
    for words in (str(caught.value), capsys.readouterr().err.rstrip("\n")):
        assert r"d\x1b[31m \u202e" in words and words.isprintable()


def test_warnings_about_a_file_that_is_refused_are_not_shown(masked, tmp_path, recwarn):
    part = entry("keras.layers", "Conv1D", {"filters": 3, "kernel_size": 1})
    path = write(tmp_path / "skipped.keras", parts_of(masked), **{"config.json": calling(part, (None, 4, 4))})
    with pytest.raises(ValueError, match="objects could not be loaded"):
        saved.load(path)
    assert not recwarn.list


def test_warnings_about_a_file_that_is_read_are_shown(masked, monkeypatch):
    plain = keras.models.load_model

    def load(*arguments, **more):
        warnings.warn("\x1b is skipped", UserWarning, stacklevel=1)
        return plain(*arguments, **more)

    monkeypatch.setattr(keras.models, "load_model", load)
    with pytest.warns(UserWarning, match=r"^\\x1b is skipped$"):
        saved.load(masked)


def test_weights_that_lie_in_other_files(masked, tmp_path, capsys):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 100)
    for kind in ("external array", "external link", "soft link"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            if kind == "external array":
                file.create_dataset("x", (100,), "uint8", external=[(str(secret), 0, 100)])
            else:
                file["x"] = h5py.ExternalLink(str(secret), "/x") if kind == "external link" else h5py.SoftLink("/y")
        path = write(tmp_path / "links.keras", parts_of(masked), **{"model.weights.h5": buffer.getvalue()})
        assert "refers to another file" in (words := refusal(path, capsys)) or "is a link" in words


def test_a_class_that_is_not_registered_is_one_line(tmp_path, capsys):
    class Unknown(layers.Layer):
        pass

    keras.Sequential([keras.Input((4,)), Unknown()]).save(tmp_path / "model.keras")
    words = refusal(tmp_path / "model.keras", capsys)
    assert "in config.json, at config.layers.1, 'test_saved.Unknown' is unknown" in words
    assert "registered with `keras.saving.register_keras_serializable()`" in words


def test_a_model_that_is_not_built_is_named_with_its_file(tmp_path, capsys):
    keras.Sequential([layers.Dense(3)], name="net").save(tmp_path / "model.keras")
    words = refusal(tmp_path / "model.keras", capsys)
    assert words.startswith("This .keras file cannot be summarized: The model has no weights yet")


def test_a_packed_file_loads(masked, tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts_of(masked).items():
            archive.writestr(name, data)
    assert saved.read(tmp_path / "packed.keras").rows == saved.read(masked).rows


def test_other_endings_are_not_read(masked, tmp_path):
    for name in ("model.h5", "model", "model.zip"):
        shutil.copy(masked, tmp_path / name)
        with pytest.raises(ValueError, match=r"^The path must be a \.keras file .* Received: path='.*'$"):
            saved.load(tmp_path / name)
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(ValueError, match=r"^The path must be a \.keras file"):
        saved.load(tmp_path / "folder.keras")


def test_a_file_that_may_not_be_read_is_an_os_error(masked, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(masked))

    monkeypatch.setattr("kprune.report.keras_file.open", refused, raising=False)
    with pytest.raises(PermissionError):
        saved.load(masked)
