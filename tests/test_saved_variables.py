"""SavedModels: their variables are read, and nothing that they hold is run."""

import json
import os
import shutil
import struct

import keras
import pytest
from checkpoints import blocks_of, edit, number, replace_graph, table
from helpers import halve
from keras import layers

import kprune
from kprune.cli import main as cli
from kprune.report import saved

pytestmark = pytest.mark.slow_on_jax

tf = pytest.importorskip("tensorflow")


class Writes(tf.saved_model.experimental.TrackableResource):
    """A resource that writes a file as it is initialized, which TensorFlow does as it loads a SavedModel."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.resource_handle  # noqa: B018  # makes it

    def _create_resource(self):
        return tf.raw_ops.AnonymousIterator(output_types=[tf.float32], output_shapes=[()])

    @tf.function(input_signature=[])
    def _initialize(self):
        tf.io.write_file(self.path, "x")


def module(**variables):
    made = tf.Module()
    for name, value in variables.items():
        setattr(made, name, tf.Variable(value, name=name))
    return made


def test_nothing_in_a_saved_model_runs(tmp_path):
    mark, folder = tmp_path / "mark", str(tmp_path / "hostile")
    hostile = module(kernel=[[0.0, 1.0], [0.0, 2.0]])
    hostile.resource = Writes(str(mark))
    tf.saved_model.save(hostile, folder)
    mark.unlink(missing_ok=True)
    assert [(row.path, row.zeros) for row in saved.read(folder).rows] == [("kernel", 2)]
    assert not mark.exists()
    tf.saved_model.load(folder)
    assert mark.exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of which two layers have kernels of one shape, and its export."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="same"), layers.Dropout(0.1)], name="inner")
    outer = [layers.Dense(4, name="same"), layers.BatchNormalization(), inner, layers.Dense(2, name="last")]
    model = keras.Sequential([keras.Input((4,)), *outer], name="net")
    kprune.mask(model)
    halve(model)
    return model, kprune.export(model, tmp_path_factory.mktemp("exported") / "net").saved_model


def copy(exported, tmp_path):
    return shutil.copytree(exported[1], tmp_path / "copy")


def test_an_exports_rows_are_those_of_the_model(exported):
    model, folder = exported
    rows, expected = saved.read(folder).rows, kprune.summary(model).rows
    seen = [(row.path, row.shape, row.zeros, row.dead_channels) for row in rows]
    assert seen == [(row.path, row.shape, row.zeros, row.dead_channels) for row in expected]
    assert len({row.path for row in rows}) == 3
    assert saved.read(folder).other_size == kprune.summary(model).other_size


def test_without_the_paths_the_names_are_tensorflows(exported, tmp_path):
    folder = copy(exported, tmp_path)
    (folder / "assets.extra" / "kprune.json").unlink()
    rows = saved.read(folder).rows
    assert [row.zeros for row in rows] == [row.zeros for row in saved.read(exported[1]).rows]
    assert all("kernel" in row.path for row in rows) and len({row.path for row in rows}) == 3


def test_what_training_left_is_no_weight(tmp_path):
    checkpointed = module(matrix=[[0.0, 1.0]], table=["a", "b"], shift=[1.0])
    checkpointed.optimizer = module(matrix=[[9.0, 9.0]])
    tf.saved_model.save(checkpointed, str(tmp_path / "saved"))
    report = saved.read(tmp_path / "saved")
    assert [row.path for row in report.rows] == ["matrix"] and report.other_size == 1


def damaged(kind, folder):
    variables, paths = folder / "variables", folder / "assets.extra" / "kprune.json"
    data, index = variables / "variables.data-00000-of-00001", variables / "variables.index"
    if kind == "no variables":
        shutil.rmtree(variables)
    elif kind == "less data than variables":
        data.write_bytes(data.read_bytes()[:100])
    elif kind == "no data":
        data.unlink()
    elif kind == "a bit of the data":
        data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    elif kind == "no index":
        index.write_bytes(b"x" * 100)
    elif kind == "paths of other variables":
        paths.write_text(json.dumps({"format": 1, "weights": {"x": "y"}}))
    elif kind == "paths that are no strings":
        paths.write_text(json.dumps({"format": 1, "weights": {"variables/0/.ATTRIBUTES/VARIABLE_VALUE": []}}))
    elif kind == "paths of tomorrow":
        paths.write_text(json.dumps({"format": 3, "weights": {}}))
    elif kind == "paths without end":
        paths.write_text(" " * 2**24)
    return folder


@pytest.mark.parametrize(
    "kind, words",
    [
        ("no variables", "it has no variables"),
        ("less data than variables", "data files contain only 100"),
        ("no data", "data files contain only 0"),
        ("a bit of the data", ""),
        ("no index", ""),
        (
            "paths of other variables",
            "assets.extra/kprune.json names variables that the SavedModel does not have, such as 'x'",
        ),
        ("paths that are no strings", "assets.extra/kprune.json is damaged"),
        ("paths of tomorrow", "by a later version of kprune"),
        ("paths without end", "assets.extra/kprune.json is 16,777,216 bytes, more than"),
    ],
)
def test_damaged(kind, words, exported, tmp_path, capsys):
    folder = damaged(kind, copy(exported, tmp_path))
    with pytest.raises(ValueError, match=rf"^This SavedModel cannot be read: .*{words}.* Received: path='.*copy'$"):
        saved.read(folder)
    assert cli.main(["inspect", str(folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def axes(*sizes):
    def change(key, entry):
        if key.startswith(b"variables/0"):
            del entry.shape.dim[:]
            for size in sizes:
                entry.shape.dim.add(size=size)

    return change


def value(**fields):
    def change(key, entry):
        if key.startswith(b"variables/0"):
            for name, number in fields.items():
                setattr(entry, name, number)

    return change


def sliced(*slices):
    """Each slice is one (start, length) per axis."""

    def change(key, entry):
        for extents in slices if key.startswith(b"variables/0") else ():
            made = entry.slices.add()
            for start, length in extents:
                made.extent.add(start=start, length=length)

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (axes(-1), "with an impossible shape, slice or dtype"),
        (axes(2**40, 2**40), "with an impossible shape, slice or dtype"),
        (axes(2**62, 2**62, 0), "with an impossible shape, slice or dtype"),
        (axes(*[1] * 300), "with an impossible shape, slice or dtype"),
        (value(dtype=101), "with an impossible shape, slice or dtype"),
        (sliced([(-5, 3)]), "with an impossible shape, slice or dtype"),
        (sliced([(0, 4), (0, 4)], [(0, 4), (0, 4)]), "with an impossible shape, slice or dtype"),
        (sliced([(2**63 - 1, 2**63 - 1)] * 2), "with an impossible shape, slice or dtype"),
        (sliced([(0, 4)]), "with an impossible shape, slice or dtype"),
        (lambda key, entry: b"\xff\xff\xff", ""),
        (lambda key, entry: setattr(entry, "size", 2**60), ""),
    ],
    ids=[
        *("negative", "overflow", "overflow times 0", "300 axes", "reference"),
        *("negative slice", "one slice twice", "overflow of slices", "slice of another rank", "no entry", "size"),
    ],
)
def test_an_index_that_would_stop_the_process(change, words, exported, tmp_path):
    """Each one's checksums are right: TensorFlow aborts on what it says, so a failure here is a crash."""
    folder = copy(exported, tmp_path)
    edit(folder, change)
    with pytest.raises(ValueError, match=rf"^This SavedModel cannot be read: .*{words}.* Received: path='.*copy'$"):
        saved.read(folder)


def one_block_many_times():
    """A hundred thousand restarts without an entry, 20,000 times: none is read twice."""
    nothing = bytes(2**19) + struct.pack("<I", 2**17)
    handle = number(0) + number(len(nothing))
    return blocks_of(nothing, [(b"%06d" % i, handle) for i in range(20_000)])


@pytest.mark.parametrize(
    "index",
    [
        table([(b"", b"")]).replace(b"\0\0\0\0\1\0\0\0", b"\3\0\0\0\1\0\0\0"),  # where a reader begins
        table([(b"", b""), (b"abc", b"")]).replace(b"\3\0\0\0\2\0\0\0", b"\5\0\0\0\2\0\0\0"),
        table([(b"", b"")])[:-20] + bytes(20),
        table([(b"", b"")])[-48:],
        b"\xff" * 40 + table([(b"", b"")])[-8:],
        table([(b"%06d" % i, b"") for i in range(70_000)]),
        table([(b"", b""), (b"a", b""), (b"a", b"")]),
        table([(b"", b""), (b"b", b""), (b"a", b"")]),
        table([(b"", b""), (b"a", b"\x3a\0" * 2**16)]),
        one_block_many_times(),
        b"",
    ],
    ids=[
        "begins elsewhere",
        "goes on elsewhere",
        "no magic",
        "no blocks",
        "no end of a number",
        "many entries",
        "one entry twice",
        "entries out of order",
        "an entry of 131,072 bytes",
        "one block many times",
        "empty",
    ],
)
def test_an_index_that_is_none(index, exported, tmp_path):
    folder = copy(exported, tmp_path)
    (folder / "variables" / "variables.index").write_bytes(index)
    with pytest.raises(ValueError, match=r"^This SavedModel cannot be read: its index "):
        saved.read(folder)


def test_an_index_that_is_a_hole(exported, tmp_path):
    folder = copy(exported, tmp_path)
    os.truncate(folder / "variables" / "variables.index", 10**12)
    with pytest.raises(ValueError, match=r"its index is 1,000,000,000,000 bytes, more than the limit of 67,108,864"):
        saved.read(folder)


def test_an_index_written_by_hand_is_read(exported, tmp_path):
    """So that the ones above are refused for what they say."""
    folder = copy(exported, tmp_path)
    edit(folder, lambda key, entry: None)
    assert saved.read(folder).rows == saved.read(exported[1]).rows
    replace_graph(folder, b"\x0a\0" * 3)
    assert not saved.read(folder).rows


def test_a_graph_that_lists_one_object_again_and_again(exported, tmp_path):
    """Its attributes are read once, not 40,000 times 40,000 times."""
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    folder, graph = copy(exported, tmp_path), TrackableObjectGraph()
    root, listed, variable = (graph.nodes.add() for _ in range(3))
    root.children.add(local_name="variables", node_id=1)
    for _ in range(40_000):
        listed.children.add(local_name="1", node_id=2)
        variable.attributes.add()
    replace_graph(folder, graph.SerializeToString())
    assert not saved.read(folder).rows


def test_shards_that_are_no_files(exported, tmp_path):
    """TensorFlow would wait for whoever writes into the pipe."""
    folder = copy(exported, tmp_path)
    data = folder / "variables" / "variables.data-00000-of-00001"
    data.rename(data.with_name("variables.data-00001-of-00002"))
    os.mkfifo(data)
    with pytest.raises(ValueError, match=r"'variables.data-00000-of-00001' is not a file"):
        saved.read(folder)


def test_a_graph_of_more_objects_than_a_model_has(exported, tmp_path):
    folder = copy(exported, tmp_path)
    edit(folder, lambda key, entry: setattr(entry, "size", 2**23) if key.startswith(b"_CHECK") else None)
    with pytest.raises(ValueError, match=r"its object graph is 8,388,608 bytes, more than the limit of"):
        saved.read(folder)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A SavedModel of a packed kernel of (2, 8) made by hand, and a second pair of variables that is none."""
    made, folder = tf.Module(), tmp_path_factory.mktemp("packed") / "net"
    made.bits = [tf.Variable([1, 128], dtype=tf.uint8), tf.Variable(["a", "b"])]
    made.values = [tf.Variable([2.0, 3.0]), tf.Variable([2.0, 3.0])]
    tf.saved_model.save(made, str(folder))
    return folder


@pytest.mark.parametrize(
    "kernels, words",
    [
        ({"a/kernel": [0, [2, 8]]}, None),
        (
            {"a/kernel": [0, [2, 8]], "b/kernel": [0, [2, 8]]},
            "names a packed kernel twice, the second time as 'b/kernel'",
        ),
        ({"a/kernel": [1, [2, 8]]}, "the packed kernel 'a/kernel' does not consist of a bitmap and floats"),
        ({"a/kernel": [0, [3, 8]]}, "the bitmap of the packed kernel 'a/kernel' does not match its shape"),
        ({"a/kernel": [0, [2**62, 8]]}, "kprune.json is damaged"),
        ({"a/kernel": [0, [1] * 33]}, "kprune.json is damaged"),
    ],
)
def test_packed_kernels(kernels, words, packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "copy")
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "kprune.json").write_text(json.dumps({"format": 2, "weights": {}, "packed": kernels}))
    if words:
        with pytest.raises(ValueError, match=rf"^This SavedModel cannot be read: .*{words}"):
            saved.read(folder)
    else:
        assert [(row.path, row.zeros) for row in saved.read(folder).rows] == [("a/kernel", 14)]
