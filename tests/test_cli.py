import csv
import json
import logging
import os
import pathlib
import re
import shutil
import urllib.error

import absl.logging
import keras
import numpy as np
import pytest
from helpers import new_process

import kprune
from kprune.cli import main as cli

TINY = ["--model=lenet-300-100", "--width=0.1", "--epochs=1"]


@pytest.fixture
def run(capsys):
    """Runs a command in this process: (status, stdout, stderr). Afterwards the logging is as it was."""
    root, absl_logger = logging.getLogger(), absl.logging.get_absl_logger()
    before = absl.logging.get_verbosity(), root.handlers[:], absl_logger.filters[:]

    def run(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    yield run
    absl.logging.set_verbosity(before[0])
    root.handlers[:], absl_logger.filters[:] = before[1:]


@pytest.fixture
def masked(tmp_path):
    """A masked network and the .keras file that holds it."""
    model = kprune.models.conv_2((8, 8, 1), 10, 0.1)
    kprune.prune(model, "magnitude", sparsity=0.75)
    model.save(tmp_path / "masked.keras")
    return model, tmp_path / "masked.keras"


def test_train_prunes_reports_and_exports(run, tmp_path):
    status, out, err = run("train", *TINY, f"--export_dir={tmp_path}/out", f"--plot={tmp_path}/figures/left.png")
    assert status == 0 and "WARNING" not in err
    assert re.search(r"^lenet-300-100 \(2,370 parameters\) on digits .*: synflow to sparsity 0.9, 23 steps$", out, re.M)
    assert "classifier/kernel" in out and "90.00%" in out and "zeros of the masks" in out
    assert re.search(r"^test accuracy: last \d+\.\d\d%, best \d+\.\d\d% \(epoch 1\)$", out, re.M)
    assert f"exported and checked: saved_model {tmp_path}/out/model " in out
    assert re.search(r"^ saved_model +sparse .* \d+\.\d\d%$", out, re.M)  # the card, with accuracy
    assert sorted(os.listdir(tmp_path / "out")) == ["model", "model.card.json", "model.card.md", "model.keras"]
    assert (tmp_path / "out" / "model" / "saved_model.pb").is_file()
    assert (tmp_path / "figures" / "left.png").read_bytes().startswith(b"\x89PNG")
    kernels = [w for w in keras.models.load_model(tmp_path / "out" / "model.keras").weights if w.name == "kernel"]
    assert sum(np.count_nonzero(w.numpy() == 0) for w in kernels) == 2088  # floor(0.9 * 2320)


@pytest.mark.parametrize(
    ("method", "zeros"),
    [
        ("dense", 0),
        ("snip", 1740),
        *(
            pytest.param(method, 1740, marks=pytest.mark.once)
            for method in ("magnitude", "random", "gradual", "synflow", "grasp")
        ),
    ],
)
def test_every_method_ends_at_its_sparsity(run, tmp_path, method, zeros):
    folder = tmp_path / "out"
    words = ["--sparsity=0.75", f"--export_dir={folder}", "--optimizer=sgd", "--decay=none", "--rounds=3"]
    assert run("train", *TINY, f"--method={method}", *words)[0] == 0
    for file in ("model", "model.keras"):
        status, out, _ = run("inspect", folder / file, "--json")
        report = json.loads(out)
        assert (status, report["zeros"], report["size"], report["masked"]) == (0, zeros, 2320, False)
        assert [row["shape"] for row in report["rows"]] == [[64, 30], [30, 10], [10, 10]]
    # In the SavedModel, JAX's variables have no layer in their names.
    assert [row["path"].split("/")[-2] for row in report["rows"]] == ["dense1", "dense2", "classifier"]


@pytest.mark.once
def test_a_pattern_rules_the_zeros_and_its_own_scope(run, tmp_path):
    folder = tmp_path / "out"
    words = ["--method=magnitude", "--sparsity=0.5", "--pattern=2:4", f"--export_dir={folder}"]
    assert run("train", *TINY, *words)[0] == 0
    status, out, _ = run("inspect", folder / "model.keras", "--json")
    assert [row["zeros"] for row in json.loads(out)["rows"]] == [960, 150, 50]
    status, _, err = run("train", *TINY, "--pattern=4:2")
    assert status == 2 and "2:4, channel, fan_in, unstructured, an n:m pattern such as 1:4" in err


@pytest.mark.once
def test_every_criterion_that_needs_no_earlier_weights_is_a_method(run, tmp_path):
    known = {name for name in kprune.criteria.CRITERIA if not name.startswith("magnitude_per_fan")}
    (option,) = [option for option in cli.COMMANDS["train"].options if option.name == "method"]
    earlier = {"large_init", "magnitude_increase", "init_final_sign", "movement"}
    assert set(option.kind) == {"dense", "gradual"} | known - earlier


def test_criteria_that_ask_the_loss_get_as_many_images_of_each_class(run, monkeypatch):
    asked = []
    plan = kprune.callbacks.PruneAtInit.__init__

    def spy(self, *arguments, **options):
        plan(self, *arguments, **options)
        asked.append(self.pruner.data)

    monkeypatch.setattr(kprune.callbacks.PruneAtInit, "__init__", spy)
    assert run("train", *TINY, "--method=taylor", "--seed=3")[0] == 0
    ((batch,),) = asked
    x, y = kprune.balanced_sample(*kprune.data.load("digits").train, seed=3)
    np.testing.assert_array_equal(batch[0], x)
    assert np.bincount(batch[1]).tolist() == np.bincount(y).tolist() == [10] * 10


def test_the_same_seed_trains_the_same_network(run, tmp_path):
    def weights(seed, folder):
        words = [f"--seed={seed}", "--method=random", f"--export_dir={tmp_path / folder}"]
        assert run("train", *TINY, *words)[0] == 0
        return keras.models.load_model(tmp_path / folder / "model.keras").get_weights()

    first, again, other = weights(1, "a"), weights(1, "b"), weights(2, "c")
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != c).any() for a, c in zip(first, other, strict=True))


@pytest.mark.once
def test_train_does_not_replace_a_model_unasked(run, tmp_path):
    (tmp_path / "model.keras").touch()
    status, out, err = run("train", *TINY, f"--export_dir={tmp_path}")
    assert (status, out) == (1, "")  # before any training
    assert err == f"kprune: error: {tmp_path}/model.keras exists; add --overwrite. Received: export_dir='{tmp_path}'\n"
    assert run("train", *TINY, f"--export_dir={tmp_path}", "--overwrite")[0] == 0
    assert (tmp_path / "model.keras").stat().st_size > 0


@pytest.mark.once
def test_a_folder_that_cannot_be_written_is_known_before_training(run, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        status, out, err = run("train", *TINY, f"--export_dir={folder}")
        assert (status, out) == (1, "") and err.endswith(f"Received: export_dir='{folder}'\n")


@pytest.mark.once
def test_what_was_trained_is_kept_whatever_fails_later(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the disk is gone.")

    monkeypatch.setattr("kprune.cli.commands.train.export", fail)
    status, _, err = run("train", *TINY, f"--export_dir={tmp_path}")
    [file] = tmp_path.glob("trained-*.keras")
    assert status == 1 and "the disk is gone. The trained network was saved" in err and str(file) in err
    assert kprune.summary(kprune.report.saved.load(file)).zeros == 2088


def test_train_on_a_folder_of_images(run, tmp_path):
    for part in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                image = np.full((9, 7, 3), 40 * i + 90 * number, np.uint8)
                keras.utils.save_img(tmp_path / part / name / f"{i}.png", image)
    words = ["--dataset=imagenet", f"--data_dir={tmp_path}", "--image_size=8", "--batch_size=3", "--method=gradual"]
    status, out, _ = run("train", *TINY, *words)
    assert status == 0
    assert "(8x8x3, 2 classes): gradual to sparsity 0.9, 3 steps" in out and "90.00%" in out


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


SWEEP = ["sweep", "--model=lenet-300-100", "--width=0.1", "--epochs=1", "--methods=random,snip", "--seeds=2"]


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


LOTTERY = ["lottery", "--model=lenet-300-100", "--width=0.1", "--epochs=2", "--levels=2", "--rate=0.5", "--seeds=1"]


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


@pytest.mark.once
def test_the_steps_of_a_learning_rate(run, monkeypatch, tmp_path):
    rates, fit = [], keras.Model.fit

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    monkeypatch.setattr(keras.Model, "fit", lambda self, **options: fit(self, **{**options, "callbacks": [Look()]}))
    words = ["--decay=step", "--learning_rate=0.5", "--batch_size=720", "--method=dense", "--epochs=8"]
    assert run("train", *TINY[:2], *words)[0] == 0
    # 16 steps: after those that Keras counts as 8 and 12, a tenth and a hundredth.
    assert rates == pytest.approx([0.5] * 5 + [0.05] * 2 + [0.005])


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
words = ["--library=tf_keras", "--compressions=1,10", "--out_dir={tmp_path}"]
assert cli.main([*{SWEEP}, *words]) == 0
words = ["--library=tf_keras", "--modes=init,shuffle", "--out_dir={tmp_path}"]
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
    assert cells == [("dense", 0.0), ("random", 0.9), ("snip", 0.9)] * 2
    with open(tmp_path / "lottery.csv", newline="") as file:
        levels = [(row["backend"], row["mode"], float(row["density"])) for row in csv.DictReader(file)]
    assert levels == [
        ("tf_keras", "dense", 1.0),
        *(("tf_keras", mode, density) for mode in ("init", "shuffle") for density in (0.5, 0.25)),
    ]
    assert [(report["size"], report["zeros"], report["masked"]) for report in found] == [
        (2320, 1740, False),
        (2320, 1740, False),
        (2320, 1160, True),
    ]


@pytest.mark.once
def test_help_of_each_command(run):
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    for name, command in cli.COMMANDS.items():
        assert f"kprune {name} " in out and command.example in out
        status, text, err = run(name, "--help")
        assert (status, err) == (0, "")
        assert f"Example:  {command.example}" in text
        for option in command.options:
            (line,) = [line for line in text.splitlines() if line.startswith(f"  --{option.name}")]
            assert option.help in line
            if option.default not in (None, False):
                assert line.endswith(f"[{option.default}]")
        assert max(map(len, text.splitlines())) <= 120
    assert run("-h")[0] == run("train", "--seed=1", "-h")[0] == 0
    assert run("--version")[1] == f"kprune {kprune.__version__}\n"


@pytest.mark.once
def test_the_examples_in_the_help_are_right():
    for command in cli.COMMANDS.values():
        program, name, *words = command.example.split()
        assert (program, name) == ("kprune", command.name)
        command.parse(words)


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["prune"],
            "kprune: unknown command 'prune'; "
            "the commands are train, inspect, export, advise, search, sensitivity, sweep, lottery, selftest "
            "(see kprune --help)",
        ),
        (["train", "--sparsty=0.9"], "kprune train: Unknown command line flag 'sparsty'.*"),
        (
            ["train", "--model=vgg-12"],
            "kprune train: flag --model=vgg-12: must be a model name, a .keras file, .*vgg-11.*",
        ),
        (["train", "--method=snap"], "kprune train: flag --method=snap: value should be one of .*synflow.*"),
        (["train", "--method=large_init"], "kprune train: flag --method=large_init: value should be one of .*"),
        (["train", "--sparsity=1"], "kprune train: flag --sparsity=1.0: must be at least 0 and below 1 .*"),
        (["train", "--sparsity=nan"], "kprune train: flag --sparsity=nan: must be at least 0 and below 1 .*"),
        (["train", "--sparsity=most"], "kprune train: flag --sparsity=most: .*"),
        (["train", "--epochs=0"], "kprune train: flag --epochs=0: must be at least 1 .*"),
        (["train", "--width=0"], "kprune train: flag --width=0.0: must be above 0 .*"),
        (["train", "--plot=left.jpg"], "kprune train: flag --plot=left.jpg: must end in .png, .svg, .pdf .*"),
        (["train", "--epochs"], "kprune train: Missing value for flag --epochs .*"),
        (["train", "vgg-11"], "kprune train: expected flags only, got vgg-11 (see kprune train --help)"),
        (["inspect"], "kprune inspect: expected MODEL, got nothing (see kprune inspect --help)"),
        (["sensitivity"], "kprune sensitivity: expected MODEL, got nothing (see kprune sensitivity --help)"),
        (["sensitivity", "a", "--criterion=snip"], "kprune sensitivity: flag --criterion=snip: value should be .*"),
        (["sensitivity", "a", "--sparsities=0.5,1"], "kprune sensitivity: flag --sparsities=.*: must be numbers .*"),
        (["sensitivity", "a", "--sparsities=half"], "kprune sensitivity: flag --sparsities=.*: must be numbers .*"),
        (
            ["sweep", "--methods=snip,snap"],
            "kprune sweep: flag --methods=.*: must be one or more of .*synflow.*, without duplicates.*",
        ),
        (
            ["sweep", "--methods=snip,snip"],
            "kprune sweep: flag --methods=.*: must be one or more of .*, without duplicates.*",
        ),
        (["sweep", "--methods="], "kprune sweep: flag --methods=.*: must be one or more of .*, without duplicates.*"),
        (["sweep", "--compressions=10,0.5"], "kprune sweep: flag --compressions=.*: must be numbers >= 1, .*"),
        (["sweep", "--compressions=10^"], "kprune sweep: flag --compressions=.*: must be numbers >= 1, .*"),
        (["sweep", "--compressions=10^999"], "kprune sweep: flag --compressions=.*: must be numbers >= 1, .*"),
        (["sweep", "--seeds=0"], "kprune sweep: flag --seeds=0: must be at least 1 .*"),
        (
            ["lottery", "--modes=init,shufle"],
            "kprune lottery: flag --modes=.*: must be one or more of .*, without duplicates.*",
        ),
        (["lottery", "--modes=init,finetune"], 'kprune lottery: flag --modes=.*"finetune" is now called "none".*'),
        (["lottery", "--rate=1"], "kprune lottery: flag --rate=1.0: must be above 0 and below 1 .*"),
        (["lottery", "--levels=0"], "kprune lottery: flag --levels=0: must be at least 1 .*"),
        (["lottery", "--rewind_to=begin"], 'kprune lottery: flag --rewind_to=begin: must be "init", a share .*'),
        (["lottery", "--rewind_to=1.5"], 'kprune lottery: flag --rewind_to=1.5: must be "init", a share .*'),
        (["lottery", "--dataset=imagenet"], "kprune lottery: flag --dataset=imagenet: must be digits, .*"),
        (["lottery", "--weight_decay=-1"], "kprune lottery: flag --weight_decay=-1.0: must be at least 0 .*"),
        (["lottery", "--criterion=gradual"], "kprune lottery: flag --criterion=gradual: value should be one of .*"),
        (["train", "--method=movement"], "kprune train: flag --method=movement: value should be one of .*"),
        (["inspect", "a", "b"], "kprune inspect: expected MODEL, got a b (see kprune inspect --help)"),
    ],
)
def test_words_that_make_no_sense(run, words, message):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert re.fullmatch(message.replace("(", r"\(").replace(")", r"\)") + "\n", err)


@pytest.mark.once
def test_no_words_show_the_help(run):
    status, out, err = run()
    assert (status, out) == (2, "") and "kprune train --model" in err


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


@pytest.mark.once
def test_a_download_that_fails_is_one_line(run, tmp_path, monkeypatch):
    def fail(*_):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    status, _, err = run("train", *TINY, "--dataset=mnist")
    assert status == 1 and err.count("\n") == 1
    assert re.match(
        rf"kprune: error: Could not download mnist: .*no network.* Download mnist.npz .* {tmp_path}/datasets", err
    )


@pytest.mark.once
def test_an_error_of_the_library_is_one_line_and_debug_says_where(run):
    words = ["train", *TINY, "--model=lenet-5"]  # too deep for 8x8 pixels
    status, _, err = run(*words)
    assert status == 1
    assert re.fullmatch(r"kprune: error: lenet_5 needs images of at least 16x16 pixels\. Received: .*\n", err)
    status, _, err = run(*words, "--debug")
    assert status == 1 and "Traceback" in err and err.endswith("Received: input_shape=(8, 8, 1)\n")


@pytest.mark.once
def test_interrupted(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kprune.data.load", interrupt)
    assert run("train") == (130, "", "kprune: interrupted\n")


@pytest.mark.once
@pytest.mark.parametrize("wrapped", ["cause", "text"])
def test_interrupted_inside_of_tensorflow(run, monkeypatch, wrapped):
    """Its C++ turns the KeyboardInterrupt of a traced Python function into a RuntimeError or SystemError."""

    def interrupt(*_, **__):
        if wrapped == "text":
            raise RuntimeError("Unknown pybind11 exception: KeyboardInterrupt: At: layers.py(12): call")
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("kprune.data.load", interrupt)
    assert run("train") == (130, "", "kprune: interrupted\n")


@pytest.mark.once
def test_help_is_quick_and_quiet():
    """TensorFlow takes seconds to import, and prints lines that no setting silences."""
    script = "import sys, _kprune; sys.argv[1:] = {}; assert _kprune.main() == {}; assert not {} & set(sys.modules)"
    done = new_process("-c", script.format(["--help"], 0, {"tensorflow"}))
    assert (done.returncode, done.stderr) == (0, "") and "kprune train" in done.stdout
    done = new_process("-c", script.format(["train", "-h"], 0, {"tensorflow"}))
    assert (done.returncode, done.stderr) == (0, "") and "--sparsity=X" in done.stdout
    version = f"import importlib.metadata as m; m.version = lambda name: '9.9'; {script}"
    done = new_process("-c", version.format(["--version"], 0, {"keras"}))
    assert (done.returncode, done.stdout, done.stderr) == (0, "kprune 9.9\n", "")


def test_a_command_is_quiet(masked):
    """TensorFlow's C++ writes its lines as it is imported, and as it first looks for devices."""
    done = new_process("-m", "_kprune", "inspect", str(masked[1]))
    assert (done.returncode, done.stderr) == (0, "") and "zeros of the masks" in done.stdout


@pytest.mark.once
def test_what_fails_while_it_is_imported_is_shown():
    script = (
        "import os, sys, _kprune\nwith _kprune._quiet():\n    os.write(2, b'a driver is missing\\n')\n    raise OSError"
    )
    done = new_process("-c", script)
    assert done.returncode == 1 and done.stderr.startswith("a driver is missing") and "OSError" in done.stderr


@pytest.mark.once
def test_as_a_program():
    done = new_process("-m", "_kprune", "train", "--nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("kprune train: Unknown command line flag 'nope'")


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
    assert status == 1 and err.endswith(f"add --overwrite. Received: out='{tmp_path}/to/net'\n")
    assert run(*words, "--overwrite", "--shrink")[0] == 0
    status, out, _ = run("inspect", tmp_path / "to" / "net", "--json")
    assert [row["shape"] for row in json.loads(out)["rows"]] == [[64, 30], [30, 3]]
    assert run("export", tmp_path / "net.keras", "--format=tflit")[0] == 2


def test_export_with_data(run, tmp_path):
    model = kprune.models.lenet_300_100((8, 8, 1), 10, 0.1)
    model.save(tmp_path / "net.keras")
    words = ["export", tmp_path / "net.keras", "--dataset=digits", f"--out={tmp_path}/made"]
    assert run(*words, "--format=keras")[0] == 0
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
    words, int8 = ["export", tmp_path / "net.keras"], "--format=litert_int8"
    for more, says in {
        (int8,): "add --representative, an .npy or .npz file",
        ("--format=saved_model", "--representative=x.npy"): "--representative applies only to --format=litert_int8",
        (int8, f"--representative={tmp_path}/two.npz"): "numeric array with one example per row: it contains a, b.",
        (int8, f"--representative={tmp_path}/words.npy"): "it contains an array of dtype <U1 and shape (1,)",
        (int8, f"--representative={tmp_path}/net.keras"): "single numeric array",
        (int8, f"--representative={tmp_path}/none.npy"): "No such file",
    }.items():
        status, _, err = run(*words, *more)
        assert status == 1 and says in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.keras", "two.npz", "words.npy"]
