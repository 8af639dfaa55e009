"""`kprune sweep` and `kprune lottery`, which train many networks and write a table."""

import csv
import json
import pathlib
import shutil

import keras
import pytest
from cli_words import LOTTERY, SWEEP, TINY
from helpers import new_process

import kprune


@pytest.mark.slow_on_jax
def test_sweep(run, tmp_path):
    words = [*SWEEP, "--compressions=1,10^0.5", f"--out_dir={tmp_path}/new"]
    status, out, err = run(*words)
    assert status == 0 and "WARNING" not in err and "6/6" in err
    lines = out.splitlines()
    assert lines[0].split() == ["method", "1x", "3.162x"]
    assert [line.split()[0] for line in lines[2:4]] == ["random", "snip"]
    assert lines[-2:] == [f"table: {tmp_path}/new/collapse.csv", f"figure: {tmp_path}/new/collapse.png"]
    with open(tmp_path / "new" / "collapse.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == (
        "model,width,data_dir,image_size,optimizer,decay,library,learning_rate,backend,dataset,batch_size,epochs,scope,"
        "rounds,method,compression,seed,accuracy,best,sparsity,collapsed,seconds"
    )
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in "01" for method in ("dense", "random", "snip")
    ]
    assert rows[0]["learning_rate"] == "0.01" and rows[0]["backend"] == keras.backend.backend()
    assert float(rows[1]["sparsity"]) == 1586 / 2320  # floor((1 - 10 ** -0.5) * 2320)
    figure = tmp_path / "new" / "collapse.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    figure.unlink()
    before = (tmp_path / "new" / "collapse.csv").read_bytes()
    assert run(*words)[:2] == (0, out)  # nothing is trained again
    assert figure.exists()
    for word, name in (
        ("--optimizer=sgd", "optimizer=adam in the file, sgd now"),
        ("--width=0.2", "width=0.1 in the file, 0.2"),
    ):
        status, out, err = run(*words, word)
        assert (status, out) == (1, "") and "written with different settings: " + name in err
        assert err.endswith(f"Received: path='{tmp_path}/new/collapse.csv'\n")
    assert (tmp_path / "new" / "collapse.csv").read_bytes() == before


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the committed sweep was trained on TensorFlow")
def test_the_committed_sweep_is_the_default_one_and_says_what_the_docs_say(run, tmp_path, monkeypatch):
    root = pathlib.Path(__file__).parent.parent
    shutil.copy(root / "docs" / "collapse.csv", tmp_path)
    monkeypatch.setattr("kprune.cli.commands.common.new_network", None)  # nothing is trained
    status, out, _ = run("sweep", f"--out_dir={tmp_path}")
    assert status == 0
    header, _, *rows = out.splitlines()[:7]
    shown = {row.split()[0]: dict(zip(header.split()[1:], row.split()[1:], strict=True)) for row in rows}
    at_10 = [float(row["10x"]) for row in shown.values()]
    text = (root / "docs" / "criteria.md").read_text()
    assert f"({min(at_10)} % to {max(at_10)} %)" in text and f"{max(at_10) - min(at_10):.1f} points" in text
    assert f"is at {shown['synflow']['3162x']} %" in text
    chance = {"magnitude": "31.62x", "random": "316.2x", "snip": "1000x", "grasp": "3162x"}
    assert all(float(shown[method][compression].strip("*")) < 11 for method, compression in chance.items())
    assert "*" not in "".join(shown["synflow"].values())


@pytest.mark.slow_on_jax
def test_lottery(run, tmp_path):
    words = [*LOTTERY, "--modes=init,shuffle", f"--out_dir={tmp_path}/new"]
    status, out, err = run(*words)
    assert status == 0 and "WARNING" not in err and "5/5" in err
    lines = out.splitlines()
    assert lines[0].split() == ["level", "density", "init", "shuffle"]
    assert [line.split()[:2] for line in lines[2:5]] == [["0", "100.00%"], ["1", "50.00%"], ["2", "25.00%"]]
    assert lines[-2:] == [f"table: {tmp_path}/new/lottery.csv", f"figure: {tmp_path}/new/lottery.png"]
    with open(tmp_path / "new" / "lottery.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == (
        "model,width,optimizer,weight_decay,decay,learning_rate,backend,dataset,batch_size,epochs,levels,rate,rewind_to,criterion,"
        "scope,rounds,mode,masks_of,level,seed,density,accuracy,best,seconds,early_stop,early_accuracy,curve"
    )
    assert (rows[0]["decay"], rows[0]["rewind_to"], rows[0]["scope"]) == ("step", "epoch:1", "global")
    assert [(row["mode"], row["masks_of"], row["level"]) for row in rows] == [
        ("dense", "dense", "0"),
        *((mode, "init", level) for mode in ("init", "shuffle") for level in "12"),
    ]
    figure, other = tmp_path / "new" / "lottery.png", tmp_path / "figures" / "lottery.svg"
    assert figure.read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "new" / "lottery.csv").read_bytes()
    status, again, _ = run(*words, f"--plot={other}")  # nothing is trained again
    for file, its in ((figure, other), (figure.with_stem("lottery-training"), other.with_stem("lottery-training"))):
        out = out.replace(str(file), str(its))
        assert its.stat().st_size > 0
    assert (status, again) == (0, out)
    for word, name in (
        ("--decay=none", "decay=step in the file, none now"),
        ("--rate=0.6", "rate=0.5 in the file, 0.6 now"),
    ):
        status, out, err = run(*words, word)
        assert (status, out) == (1, "") and "written with different settings: " + name in err
    assert (tmp_path / "new" / "lottery.csv").read_bytes() == before


@pytest.mark.once
@pytest.mark.parametrize(("word", "point"), [("init", 0), ("0.5", 0.5), ("12", 12), ("epoch:2", "epoch:2")])
def test_words_for_a_rewind_point(run, tmp_path, monkeypatch, word, point):
    seen = []

    def spy(*arguments, **options):
        seen.append(arguments[5])
        raise ValueError("enough")

    monkeypatch.setattr("kprune.cli.commands.lottery.run_lotteries", spy)
    assert run(*LOTTERY, f"--rewind_to={word}", f"--out_dir={tmp_path}")[0] == 1
    assert [kprune.RewindPoint.of(one) for one in seen] == [kprune.RewindPoint.of(point)]


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "decay"),
    [([], None), (["--weight_decay=0.01"], 0.01), (["--optimizer=adamw"], 0.004)],
)
def test_weight_decay_is_the_optimizers(run, tmp_path, monkeypatch, words, decay):
    seen = []

    def spy(build, *arguments, **options):
        seen.append((build(0).optimizer.weight_decay, options["settings"]["weight_decay"]))
        raise ValueError("enough")

    monkeypatch.setattr("kprune.cli.commands.lottery.run_lotteries", spy)
    assert run(*LOTTERY, "--optimizer=sgd", *words, f"--out_dir={tmp_path}")[0] == 1
    assert seen == [(decay, 0.01 if "--weight_decay=0.01" in words else None)]


@pytest.mark.once
def test_fine_tuning_at_a_learning_rate_of_zero_is_refused(run, tmp_path):
    words = [*LOTTERY, "--modes=init,none", f"--out_dir={tmp_path}"]
    status, out, err = run(*words, "--decay=cosine")
    assert (status, out) == (1, "") and "use --decay=step. Received: decay='cosine', modes='init,none'\n" in err
    assert list(tmp_path.iterdir()) == []


# In a process of its own: tfmot changes what `tf.keras` is for the process that imports it.
@pytest.mark.once
def test_tf_keras_models(tmp_path):
    script = f"""
import keras, tf_keras
from kprune import mask, models, prune
from kprune.cli import main as cli
words = ["--library=tf_keras", "--method=gradual", "--sparsity=0.75", "--export_dir={tmp_path}", "--optimizer=adamw"]
assert cli.main(["train", *{TINY}, *words]) == 0
masked = mask(models.lenet_300_100((8, 8, 1), 10, 0.1, library=tf_keras)).model
prune(masked, "magnitude", 0.5)
masked.save("{tmp_path}/masked.keras")
for file in ("model", "model.keras", "masked.keras"):
    print("REPORT", flush=True)
    assert cli.main(["inspect", f"{tmp_path}/{{file}}", "--json"]) == 0
for file in ("model.keras", "masked.keras"):
    print("REPORT", flush=True)
    assert cli.main(["sensitivity", f"{tmp_path}/{{file}}", "--sparsities=0.9", "--json"]) == 0
words = ["--library=tf_keras", "--compressions=1,10", "--methods=random", "--seeds=1", "--out_dir={tmp_path}"]
assert cli.main([*{SWEEP}, *words]) == 0
words = ["--library=tf_keras", "--modes=init,shuffle", "--levels=1", "--out_dir={tmp_path}"]
assert cli.main([*{LOTTERY}, *words]) == 0
"""
    done = new_process("-c", script)
    assert done.returncode == 0, done.stderr
    log, *reports = done.stdout.split("REPORT\n")
    assert "gradual to sparsity 0.75, 23 steps" in log and "75.00%" in log
    found = [json.loads(report) for report in (*reports[:4], reports[4].partition("\n}\n")[0] + "}")]
    scans, found = found[3:], found[:3]
    assert [(len(scan["rows"]), scan["sparsities"], scan["metric"]) for scan in scans] == [(3, [0.9], "accuracy")] * 2
    with open(tmp_path / "collapse.csv", newline="") as file:
        cells = [(row["method"], float(row["sparsity"])) for row in csv.DictReader(file)]
    assert cells == [("dense", 0.0), ("random", 0.9)]
    with open(tmp_path / "lottery.csv", newline="") as file:
        levels = [(row["backend"], row["mode"], float(row["density"])) for row in csv.DictReader(file)]
    assert levels == [
        ("tf_keras", "dense", 1.0),
        *(("tf_keras", mode, 0.5) for mode in ("init", "shuffle")),
    ]
    assert [(report["size"], report["zeros"], report["masked"]) for report in found] == [
        (2320, 1740, False),
        (2320, 1740, False),
        (2320, 1160, True),
    ]
