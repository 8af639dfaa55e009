"""`kprune.sweep`: each cell against a training by hand, a run that was killed, files that do not fit, table, figure."""

import csv
import dataclasses
import json
import pathlib
import re

import keras
import numpy as np
import pytest
from helpers import built

import kprune
from kprune.experiments.sweep import Sweep, SweepRun, sweep
from kprune.util.plotting import LINES

DIGITS = kprune.data.load("digits")
SMALL = dataclasses.replace(DIGITS, train=tuple(part[:128] for part in DIGITS.train))
COLUMNS = ["dataset", "batch_size", "epochs", "scope", "rounds"]
RESULTS = ["method", "compression", "seed", "accuracy", "best", "sparsity", "collapsed", "seconds"]


def build(seed):
    """2320 prunable weights in three kernels."""
    keras.utils.set_random_seed(seed)
    model = kprune.models.lenet_300_100((8, 8, 1), width=0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile=keras.backend.backend() == "jax")
    return built(model)


def run(**arguments):
    usual = dict(methods=["random", "snip"], compressions=[10], seeds=[0], epochs=1, verbose=False)
    return sweep(**{"build": build, "data": SMALL, **usual, **arguments})


def without_seconds(cells):
    return [dataclasses.replace(cell, seconds=0.0) for cell in cells]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# What it trains


def test_each_cell_is_a_training_by_hand():
    report = run(compressions=[4.0, 1], seeds=[1], epochs=2)
    assert [(cell.seed, cell.compression, cell.method) for cell in report.cells] == [
        (1, 1.0, "dense"),
        (1, 4.0, "random"),
        (1, 4.0, "snip"),
    ]
    for cell in report.cells:
        options = dict(data=kprune.balanced_sample(*SMALL.train, seed=cell.seed), batches=None)
        pruning = {
            "dense": [],
            "random": [kprune.callbacks.PruneAtInit("random", 0.75, seed=cell.seed)],
            "snip": [kprune.callbacks.PruneAtInit("snip", 0.75, **options)],
        }[cell.method]
        model = build(cell.seed)
        accuracy = model.fit(**SMALL.fit_kwargs(), epochs=2, callbacks=pruning, verbose=0).history["val_accuracy"]
        assert (cell.accuracy, cell.best) == pytest.approx((accuracy[-1], max(accuracy)), abs=0.01)
        assert cell.sparsity == (0.0 if cell.method == "dense" else 0.75)  # floor(0.75 * 2320) = 1740
        assert cell.collapsed == 0 and cell.seconds > 0
    assert report.chance == 0.1


def test_what_collapsed_is_counted():
    report = run(methods=["magnitude", "synflow"], compressions=[2320 / 3], rounds=20)
    magnitude, flow = report.cells
    assert magnitude.sparsity == flow.sparsity == 2317 / 2320
    # Three weights are a path through three layers; the largest ones are all in the layer with the fewest inputs.
    assert (magnitude.collapsed, flow.collapsed) == (2, 0)


def test_scope_and_rounds_are_passed_on():
    report = run(methods=["magnitude"], compressions=[100], scope="layerwise")
    assert report.cells[0].collapsed == 0
    assert report.settings == {"dataset": "digits", "batch_size": 64, "epochs": 1, "scope": "layerwise", "rounds": None}
    # In one shot SynFlow collapses where in 100 rounds it does not.
    assert run(methods=["synflow"], compressions=[2320 / 3], rounds=1).cells[0].collapsed > 0


def test_data_that_come_in_batches():
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(SMALL.train).batch(64)
    report = run(data=dataclasses.replace(SMALL, train=batches), methods=["snip"])
    assert report.cells[0].sparsity == 0.9


# The file


def test_the_file(tmp_path):
    path = tmp_path / "new" / "cells.csv"
    report = run(compressions=[1, 10], path=path, settings={"model": "lenet, small", "rate": None})
    assert path.read_text().splitlines()[0] == ",".join(["model", "rate", *COLUMNS, *RESULTS])
    for row, cell in zip(rows(path), report.cells, strict=True):
        assert row == {
            **{"model": "lenet, small", "rate": "", "dataset": "digits", "batch_size": "64"},
            **{"epochs": "1", "scope": "global", "rounds": ""},
            **{name: str(value) for name, value in dataclasses.asdict(cell).items()},
        }
    assert [file.name for file in path.parent.iterdir()] == ["cells.csv"]


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_stopped(tmp_path):
    path, built = tmp_path / "cells.csv", []
    arguments = dict(compressions=[1, 10], seeds=[0, 1])

    def killed(seed):
        built.append(seed)
        if len(built) == 3:
            raise Killed
        return build(seed)

    with pytest.raises(Killed):
        run(build=killed, path=path, **arguments)
    assert [row["method"] for row in rows(path)] == ["dense", "random"]
    (tmp_path / ".new-cells.csv").write_text("dataset,batch_si")  # what a kill in the middle of writing leaves
    report = run(build=lambda seed: built.append(seed) or build(seed), path=path, **arguments)
    assert built == [0, 0, 0, 0, 1, 1, 1]  # dense and random once, snip of seed 0 again
    whole = run(**arguments)
    assert [dataclasses.replace(cell, accuracy=0, best=0, seconds=0) for cell in report.cells] == [
        dataclasses.replace(cell, accuracy=0, best=0, seconds=0) for cell in whole.cells
    ]
    np.testing.assert_allclose(
        [cell.accuracy for cell in report.cells], [cell.accuracy for cell in whole.cells], atol=0.01
    )
    assert [file.name for file in tmp_path.iterdir()] == ["cells.csv"]


def refuse_to_build(seed):
    raise AssertionError("nothing is to be trained")


def test_a_finished_file_is_only_read_and_a_larger_sweep_goes_on_with_it(tmp_path):
    path = tmp_path / "cells.csv"
    first = run(path=path, compressions=[10, 10**1.5])
    before = path.read_bytes()
    assert run(build=refuse_to_build, path=path, compressions=[10, 10**1.5]) == first
    part = run(build=refuse_to_build, path=path, methods=["snip"])
    assert part.cells == tuple(cell for cell in first.cells if cell.method == "snip" and cell.compression == 10)
    assert path.read_bytes() == before
    larger = run(path=path, methods=["magnitude", "random"])
    assert larger.cells[1] == first.cells[0]
    assert len(rows(path)) == 5  # what was not asked for this time stays


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(epochs=2), r"different settings: epochs=1 in the file, 2 now\. .*Received: path='.*cells.csv'$"),
        (
            dict(scope="erk", settings={"rate": 0.2}),
            r"different settings: rate=0.1 in the file, 0.2 now; scope=global in the file, erk now\.",
        ),
        (dict(rounds=3), r"rounds= in the file, 3 now"),
        (dict(settings={"pace": 0.1}), r"the columns must be pace, dataset, .*Received: path='.*cells.csv'$"),
    ],
)
def test_a_file_of_another_sweep_is_refused(tmp_path, arguments, message):
    path = tmp_path / "cells.csv"
    run(methods=["random"], path=path, settings={"rate": 0.1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run(build=refuse_to_build, path=path, **{"settings": {"rate": 0.1}, **arguments})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"the columns must be dataset, batch_size"),
        ("a,b\n1,2\n", r"the columns must be"),
        ("{long}", r"is not a CSV file: a line is longer than 1,048,576 characters.*Received: path='.*cells.csv'$"),
        ("é,b\n1,2\n", r"is not a CSV.*Received: path='.*cells.csv'$"),
        ("{header}\ndigits,64,1,global,,random,10.0,0,0.5,0.5,0.9,0,1.5\n{row},0.", r"^Row 2 of the file is damaged"),
        ("{header}\ndigits,64,1,global,,random,ten,0,0.5,0.5,0.9,0,1.5\n", r"^Row 1 of .*: path='.*cells.csv'$"),
        ("{header}\n{row},nan,0.5,0.9,0,1.5\n", r"^Row 1 .*damaged \(accuracy must be between 0 and 1, not nan\)"),
        ("{header}\n{row},-1,0.5,0.9,0,1.5\n", r"accuracy must be between 0 and 1, not -1.0"),
        ("{header}\n{row},7,0.5,0.9,0,1.5\n", r"accuracy must be between 0 and 1, not 7.0"),
        ("{header}\n{row},0.5,0.5,0.9,-3,1.5\n", r"collapsed must be finite and at least 0, not -3"),
        ("{header}\n{row},0.5,0.5,0.9,0,inf\n", r"seconds must be finite and at least 0, not inf"),
        ("{header}\n{row},0.5,0.5,0.9,0,1.5,9\n", r"more cells than the header"),
        ("{header}\n{row},0.5,0.5,0.9,0,1.5\n{row},0.6,0.6,0.9,0,1.5\n", r"^Row 2 .*repeats an earlier run"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    path = tmp_path / "cells.csv"
    text = content.format(
        header=",".join([*COLUMNS, *RESULTS]), row="digits,64,1,global,,snip,10.0,0", long="," * 2**21
    )
    path.write_bytes(text.encode("latin-1"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run(build=refuse_to_build, path=path)
    assert path.read_bytes() == before


def test_an_accuracy_that_is_none_is_an_error_and_in_no_file(tmp_path):
    def odd(seed):
        model = build(seed)
        label = keras.metrics.MeanMetricWrapper(lambda y, _: y, name="accuracy")
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=[label])
        return model

    with pytest.raises(ValueError, match="An accuracy must be between 0 and 1"):
        run(build=odd, path=tmp_path / "cells.csv", methods=["random"])
    assert list(tmp_path.iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(methods=["snap"]), r"Received: criterion='snap'$"),
        (dict(methods=["random", "large_init"]), r"Received: method='large_init'$"),
        (dict(methods=["random", "movement"]), r"Received: method='movement'$"),
        (dict(methods=["dense"]), r"Received: criterion='dense'$"),
        (dict(methods=5), r"Received: methods=5$"),
        (dict(compressions=2.0), r"Received: compressions=2.0$"),
        (dict(compressions=["a"]), r"Received: compression='a'$"),
        (dict(seeds=3), r"Received: seeds=3$"),
        (dict(settings=5), r"Received: settings=5$"),
        (dict(methods="snip"), r"Received: methods='snip'$"),
        (dict(methods=[]), r"Received: methods=\[\]$"),
        (dict(methods=["snip", "snip"]), r"Received: methods=\['snip', 'snip'\]$"),
        (dict(compressions=[0.5]), r"Received: compression=0.5$"),
        (dict(compressions=[float("nan")]), r"Received: compression=nan$"),
        (dict(compressions=[float("inf")]), r"Received: compression=inf$"),
        (dict(seeds=[-1]), r"Received: seed=-1$"),
        (dict(seeds=[0.5]), r"Received: seed=0.5$"),
        (dict(epochs=0), r"Received: epochs=0$"),
        (dict(epochs=1.5), r"Received: epochs=1.5$"),
        (dict(rounds=0), r"Received: rounds=0$"),
        (dict(scope="globe"), r"Received: scope='globe'$"),
        (dict(settings={"epochs": 3}), r"Received: settings='epochs'$"),
        (dict(settings={"accuracy": 3}), r"Received: settings='accuracy'$"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(build=refuse_to_build, path=tmp_path / "new" / "cells.csv", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_a_name():
    with pytest.raises(ValueError, match=r"Received: path=5$"):
        run(build=refuse_to_build, path=5)


def test_a_model_without_accuracy(tmp_path):
    def build_without(seed):
        model = kprune.models.lenet_300_100((8, 8, 1), width=0.1)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    with pytest.raises(
        ValueError, match=r"metrics=\['accuracy'\]. Received: metrics=\['loss', 'val_loss', 'sparsity'\]$"
    ):
        run(build=build_without, path=tmp_path / "cells.csv")
    assert not (tmp_path / "cells.csv").exists()


# The report


def cell(method, compression, seed, accuracy, collapsed=0):
    return SweepRun(method, compression, seed, accuracy, accuracy, 1 - 1 / compression, collapsed, 1.0)


REPORT = Sweep(
    (
        *(cell("dense", 1.0, seed, accuracy) for seed, accuracy in ((0, 0.98), (1, 0.96))),
        *(cell("random", 100.0, seed, accuracy, seed) for seed, accuracy in ((0, 0.5), (1, 0.1))),
        *(cell("synflow", 100.0, seed, accuracy) for seed, accuracy in ((0, 0.9), (1, 0.8))),
    ),
    ("random", "synflow"),
    0.1,
    {"model": "vgg-11", "dataset": "digits", "epochs": 3},
)


def test_the_table():
    assert str(REPORT).splitlines() == [
        " method      1x    100x",
        " ----------------------",
        " random    97.0   *30.0",
        " synflow   97.0    85.0",
        "test accuracy after the last epoch, in percent, mean of 2 seeds; chance is 10; * marks a collapsed layer",
    ]


def test_the_report_as_a_dict():
    report = json.loads(json.dumps(REPORT.to_dict()))
    assert list(report) == ["cells", "methods", "chance", "settings"]
    assert report["cells"][2]["accuracy"] == 0.5 and report["methods"] == ["random", "synflow"]


def test_the_figure(tmp_path):
    figure = REPORT.plot(tmp_path / "collapse.png")
    assert (tmp_path / "collapse.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["random"].get_xydata(), [[1, 0.97], [100, 0.3]])
    np.testing.assert_allclose(lines["synflow"].get_xydata(), [[1, 0.97], [100, 0.85]])
    assert set(lines["chance"].get_ydata()) == {0.1}
    assert [lines[name].get_color() for name in ("random", "synflow")] == [LINES[0], LINES[4]], "as among all five"
    bands, points = axes.collections[0::3], [axes.collections[i].get_offsets().tolist() for i in (1, 2, 4, 5)]
    assert [(band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()) for band in bands] == [
        (0.1, 0.98),
        (0.8, 0.98),
    ]
    # Of random at 100x a layer has nothing left: its own marker.
    assert points == [[[1, 0.97]], [[100, 0.3]], [[1, 0.97], [100, pytest.approx(0.85)]], []]
    assert figure.get_suptitle() == "pruned before training: vgg-11 on digits, 3 epochs, mean and range of 2 seeds"
    with pytest.raises(ValueError, match=r"Received: path='collapse.jpeg'$"):
        REPORT.plot("collapse.jpeg")
    one = Sweep(REPORT.cells[::2], ("random", "synflow"), 0.1, {"dataset": "digits", "epochs": 1})
    assert one.plot().get_suptitle() == "pruned before training: digits, 1 epochs, 1 seed"


def test_the_docs_show_what_the_sweep_of_mnist_found():
    docs = pathlib.Path(__file__).parents[1] / "docs"
    with open(docs / "collapse-mnist.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {field.name: {"str": str, "int": int, "float": float}[field.type] for field in dataclasses.fields(SweepRun)}
    cells = tuple(SweepRun(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows)
    methods = tuple(dict.fromkeys(cell.method for cell in cells if cell.method != "dense"))
    page = (docs / "criteria.md").read_text()
    for line in str(Sweep(cells, methods, 0.1, {})).splitlines()[2:-1]:
        words = [f"{word[1:]}\\*" if word.startswith("*") else word for word in line.split()]
        assert f"| {' | '.join(words)} |" in page
    command = re.search(r"kprune sweep (--dataset=mnist10k.*?)\n\n", page, re.S)[1]
    settings = {key: value for key, value in re.findall(r"--(\w+)=(\S+)", command) if key in rows[0]}
    assert len(settings) == 5 and {key: rows[0][key] for key in settings} == settings | {"width": "1.0"}
