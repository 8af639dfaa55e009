"""`kprune train`."""

import json
import os
import re

import keras
import numpy as np
import pytest
from cli_words import TINY

import kprune
from kprune.cli import main as cli
from kprune.cli.commands import train


@pytest.mark.slow_on_jax
def test_train_prunes_reports_and_exports(run, tmp_path):
    status, out, err = run("train", *TINY, f"--export_dir={tmp_path}/out", f"--plot={tmp_path}/figures/left.png")
    assert status == 0 and "WARNING" not in err
    assert re.search(r"^lenet-300-100 \(2,370 parameters\) on digits .*: synflow to sparsity 0.9, 23 steps$", out, re.M)
    assert "classifier/kernel" in out and "90.00%" in out and "zeros are counted in the masks" in out
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
@pytest.mark.parametrize("words, rounds", [((), 1), (("--rounds=3",), 3)])
def test_gradual_pruning_takes_one_round_an_update_unless_told(run, monkeypatch, words, rounds):
    made = []
    monkeypatch.setattr(
        train, "GradualPruning", lambda *args, **options: made.append(options) or keras.callbacks.Callback()
    )
    assert run("train", *TINY, "--method=gradual", *words)[0] == 0
    assert [options["rounds"] for options in made] == [rounds]


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


@pytest.mark.slow_on_jax
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


@pytest.mark.slow_on_jax
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
    assert (
        err == f"kprune: error: {tmp_path}/model.keras already exists. To replace existing files, add --overwrite. "
        f"Received: export_dir='{tmp_path}'\n"
    )
    assert run("train", *TINY, f"--export_dir={tmp_path}", "--overwrite")[0] == 0
    assert (tmp_path / "model.keras").stat().st_size > 0


@pytest.mark.once
def test_a_folder_that_cannot_be_written_is_known_before_training(run, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        status, out, err = run("train", *TINY, f"--export_dir={folder}")
        assert (status, out) == (1, "") and err.endswith(f"Received: export_dir='{folder}'\n")


@pytest.mark.once
@pytest.mark.parametrize("says", ["the disk is gone.", "the disk is gone"])
def test_what_was_trained_is_kept_whatever_fails_later(says, run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError(says)

    monkeypatch.setattr("kprune.cli.commands.train.export", fail)
    status, _, err = run("train", *TINY, f"--export_dir={tmp_path}")
    [file] = tmp_path.glob("trained-*.keras")
    assert status == 1 and "the disk is gone. The trained network was saved" in err and str(file) in err
    assert kprune.summary(kprune.report.saved.load(file)).zeros == 2088


@pytest.mark.slow
@pytest.mark.slow_on_jax
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
