"""`kprune export`."""

import json
import os
import zipfile

import keras
import numpy as np
import pytest

import kprune

pytestmark = pytest.mark.slow_on_jax


def test_export_of_a_file_in_other_formats(run, tmp_path):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(300, name="wide"), keras.layers.Dense(3)])
    kprune.prune(model, "magnitude", {"wide": 0.9}, pattern="channel", verbose=0)
    model.save(tmp_path / "net.keras")
    words = ["export", tmp_path / "net.keras", "--format=saved_model,saved_model_packed", f"--out={tmp_path}/to/net"]
    status, out, _ = run(*words)
    assert (
        status == 0 and f"exported and checked: saved_model {tmp_path}/to/net (" in out and "saved_model_packed" in out
    )
    files = {"net", "net.packed", "net.card.json", "net.card.md"}
    assert set(os.listdir(tmp_path / "to")) == files
    status, _, err = run(*words)
    assert status == 1 and err.endswith(
        f"exist. To replace existing files, add --overwrite. Received: out='{tmp_path}/to/net'\n"
    )
    assert run(*words, "--overwrite", "--shrink")[0] == 0
    status, out, _ = run("inspect", tmp_path / "to" / "net", "--json")
    assert [row["shape"] for row in json.loads(out)["rows"]] == [[64, 30], [30, 3]]
    assert run("export", tmp_path / "net.keras", "--format=tflit")[0] == 2


def test_export_with_data(run, tmp_path):
    model = kprune.models.lenet_300_100((8, 8, 1), 10, 0.1)
    model.save(tmp_path / "net.keras")
    words = ["export", tmp_path / "net.keras", "--dataset=digits", f"--out={tmp_path}/made"]
    (tmp_path / "made.keras").touch()
    assert f"error: {tmp_path}/made.keras already exists. To replace" in run(*words, "--format=keras")[2]
    assert run(*words, "--format=keras", "--overwrite")[0] == 0
    [accuracy] = {e["accuracy"] for e in json.loads((tmp_path / "made.card.json").read_text())["card"]["entries"]} - {
        None
    }
    x, y = kprune.data.load("digits").test
    assert accuracy == pytest.approx(np.mean(model.predict(x, verbose=0).argmax(-1) == y))


@pytest.mark.parametrize("given", ["npy", "npz", "dataset"])
def test_export_of_8_bit_integers(given, run, tmp_path, rng):
    pytest.importorskip("ai_edge_litert")
    kprune.models.lenet_300_100((8, 8, 1), 10, 0.1).save(tmp_path / "net.keras")
    x = rng.random((20, 8, 8, 1)).astype("float32")
    np.save(tmp_path / "x.npy", x), np.savez(tmp_path / "x.npz", x=x)
    how = "--dataset=digits" if given == "dataset" else f"--representative={tmp_path}/x.{given}"
    status, out, err = run("export", tmp_path / "net.keras", "--format=litert_int8", how)
    assert status == 0 and "litert_int8" in out, err
    assert (tmp_path / "net.int8.tflite").is_file()


def test_representative_examples_that_cannot_be_used(run, tmp_path):
    kprune.models.lenet_300_100((8, 8, 1), 10, 0.1).save(tmp_path / "net.keras")
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3)), np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "objects.npy", np.array([None])), (tmp_path / "text.csv").write_text("1,2")
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as file:
        file.writestr("text.csv", "1,2")
    words, int8 = ["export", tmp_path / "net.keras"], "--format=litert_int8"
    for more, says in {
        (int8,): "add --representative with an .npy or .npz file",
        ("--format=saved_model", "--representative=x.npy"): "--representative applies only to --format=litert_int8",
        (
            int8,
            f"--representative={tmp_path}/two.npz",
        ): "numeric array with one example per row. Cause: it contains 2 arrays (a, b): save one.",
        (int8, f"--representative={tmp_path}/words.npy"): "it contains an array of dtype <U1 and shape (1,)",
        (int8, f"--representative={tmp_path}/net.keras"): "single numeric array",
        (int8, f"--representative={tmp_path}/objects.npy"): "it contains Python objects: save arrays of numbers.",
        (
            int8,
            f"--representative={tmp_path}/text.csv",
        ): "it is not an .npy or .npz file, or it is damaged: save the array with np.save.",
        (int8, f"--representative={tmp_path}/text.zip"): "text.csv is not an array: write the file with np.savez.",
        (int8, f"--representative={tmp_path}/none.npy"): "No such file",
    }.items():
        status, _, err = run(*words, *more)
        assert status == 1 and says in err and "Traceback" not in err
    given = ["net.keras", "objects.npy", "text.csv", "text.zip", "two.npz", "words.npy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == given
