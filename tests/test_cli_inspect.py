"""`kprune inspect` and `kprune sensitivity`, which read a saved model."""

import csv
import json
import re

import numpy as np
import pytest
from helpers import new_process

import kprune

pytestmark = pytest.mark.slow_on_jax


@pytest.fixture
def masked(tmp_path):
    """A masked network and the .keras file that holds it."""
    model = kprune.models.conv_2((8, 8, 1), 10, 0.1)
    kprune.prune(model, "magnitude", sparsity=0.75)
    model.save(tmp_path / "masked.keras")
    return model, tmp_path / "masked.keras"


def test_inspect_a_masked_model(run, masked):
    model, file = masked
    status, out, _ = run("inspect", file)
    assert status == 0 and out == f"{kprune.summary(model)}\n"
    status, out, _ = run("inspect", "--json", file, f"--plot={file.with_suffix('.svg')}")
    assert json.loads(out) == {"model": str(file), **kprune.summary(model).to_dict()}
    assert file.with_suffix(".svg").stat().st_size > 0


def test_inspect_a_stripped_model(run, masked):
    model, file = masked
    zeros = kprune.summary(model).zeros
    kprune.strip(model).save(file)
    status, out, _ = run("inspect", file, "--json")
    report = json.loads(out)
    assert (status, report["zeros"], report["masked"]) == (0, zeros, False)


def test_inspect_a_saved_model_that_keras_did_not_make(run, tmp_path):
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.matrix = tf.Variable([[0.0, 1.0], [0.0, 2.0]], name="matrix")
    module.shift = tf.Variable([0.0, 1.0], name="shift")
    call = tf.function(lambda x: x @ module.matrix + module.shift, input_signature=[tf.TensorSpec((None, 2))])
    module.call = call
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=call.get_concrete_function())
    status, out, _ = run("inspect", tmp_path / "saved", "--json")
    report = json.loads(out)
    assert (status, report["size"], report["zeros"], report["other_size"]) == (0, 4, 2, 2)
    assert [(row["path"], row["dead_channels"]) for row in report["rows"]] == [("matrix", 1)]


@pytest.mark.once
@pytest.mark.parametrize("kind", ["nothing", "text", "zip", "broken"])
def test_inspect_what_is_no_model(run, tmp_path, masked, kind):
    file = tmp_path / "model.keras"
    if kind == "text":
        file.write_text("no model")
    elif kind == "zip":
        np.savez(tmp_path / "arrays.npz", a=np.ones(2))
        file = tmp_path / "arrays.npz"
    elif kind == "broken":
        file.write_bytes(masked[1].read_bytes()[:2000])
    status, out, err = run("inspect", file)
    assert (status, out) == (1, "")
    assert err.startswith("kprune: error: ") and err.count("\n") == 1 and str(file) in err


def test_sensitivity(run, tmp_path):
    model = kprune.models.lenet_300_100((8, 8, 1), 10, 0.1)
    kprune.prune(model, "random", 0.2)
    file, table, figure = tmp_path / "model.keras", tmp_path / "new" / "table.csv", tmp_path / "map.svg"
    model.save(file)
    digits = kprune.data.load("digits")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    expected = kprune.sensitivity(model, digits.test, (0.5, 0.9), criterion="random", seed=2, verbose=False)
    words = [file, "--sparsities=0.5,0.9", "--criterion=random", "--seed=2"]
    status, out, _ = run("sensitivity", *words, "--json")
    found = json.loads(out)
    assert status == 0 and (found.pop("model"), found.pop("dataset")) == (str(file), "digits")
    assert found["dense"] == pytest.approx(expected.dense, abs=1e-6) and found["metric"] == "accuracy"
    for row, wanted in zip(found["rows"], expected.to_dict()["rows"], strict=True):
        assert (row["path"], row["size"]) == (wanted["path"], wanted["size"])
        assert row["values"] == pytest.approx(wanted["values"], abs=1e-6)
    status, out, _ = run("sensitivity", *words, f"--csv={table}", f"--plot={figure}")
    lines = out.splitlines()
    assert status == 0 and re.match(r" weight +size +0\.5 +0\.9$", lines[0])
    assert lines[-2:] == [f"figure: {figure}", f"table: {table}"] and figure.stat().st_size > 0
    with open(table, newline="") as opened:
        header, *rows = csv.reader(opened)
    assert header == ["weight", "size", "0.5", "0.9"]
    assert rows == [[row["path"], str(row["size"]), *map(str, row["values"])] for row in found["rows"]]


@pytest.mark.once
def test_sensitivity_of_what_does_not_fit(run, tmp_path):
    kprune.models.lenet_300_100((8, 8, 1), 7, 0.1).save(tmp_path / "seven.keras")
    kprune.models.lenet_300_100((9, 8, 1), 10, 0.1).save(tmp_path / "nine.keras")
    for name, takes in (("seven", r"\(8, 8, 1\) and predicts 7"), ("nine", r"\(9, 8, 1\) and predicts 10")):
        status, out, err = run("sensitivity", tmp_path / f"{name}.keras")
        assert (status, out) == (1, "")
        assert re.search(rf"{takes} classes, but .* Received: model='.*{name}.keras'\n$", err)
    kprune.export(kprune.strip(kprune.models.conv_2((8, 8, 1), 10, 0.1)), tmp_path / "saved")
    status, _, err = run("sensitivity", tmp_path / "saved")
    assert status == 1 and "load the .keras file" in err and f"Received: path='{tmp_path}/saved'" in err


def test_a_command_is_quiet(masked):
    """TensorFlow's C++ writes its lines as it is imported, and as it first looks for devices."""
    done = new_process("-m", "_kprune", "inspect", str(masked[1]))
    assert (done.returncode, done.stderr) == (0, "") and "zeros are counted in the masks" in done.stdout
