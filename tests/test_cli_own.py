"""Models and data of one's own on the command line, and hints where a word is nearly right."""

import re
import sys

import keras
import numpy as np
import pytest
from keras import layers

from kprune.cli import main as cli
from kprune.cli.commands import common

MODULE = """
import keras
from keras import layers

def dense(input_shape, classes, seed):
    initializer = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([keras.Input(input_shape), layers.Dense(classes, kernel_initializer=initializer)])

def fixed():
    return keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(2, "softmax")])

def compiled(metrics=("accuracy",)):
    model = fixed()
    model.compile(keras.optimizers.SGD(0.25), "sparse_categorical_crossentropy", metrics=list(metrics))
    return model

def unmeasured(): return compiled(())
def greedy(input_shape, depth): ...
def nothing(): ...
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a module of functions and an .npz of two classes."""
    (tmp_path / "own_nets.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    np.savez(tmp_path / "own.npz", x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return tmp_path


def network(*words, seed=0, command="train"):
    values, _ = cli.COMMANDS[command].parse(["--dataset=own.npz", "--batch_size=16", *words])
    dataset = common.load_data(values, seed)
    return common.new_network(values, dataset, seed, False)


def test_a_function_is_called_with_what_it_takes(folder):
    one, again, other = (network("--model=own_nets:dense", seed=seed) for seed in (1, 1, 2))
    assert one.input_shape == (None, 4) and one.output_shape == (None, 2)
    np.testing.assert_array_equal(one.get_weights()[0], again.get_weights()[0])
    assert (one.get_weights()[0] != other.get_weights()[0]).any()
    assert one.loss.get_config()["from_logits"] and type(one.optimizer) is keras.optimizers.Adam
    assert network("--model=kprune.models:lenet_300_100", "--width=0.1").count_params() == 482


def test_a_model_with_a_softmax_is_compiled_for_probabilities(folder):
    model = network("--model=own_nets:fixed", "--optimizer=sgd", "--learning_rate=0.5", "--decay=none")
    assert not model.loss.get_config()["from_logits"] and float(model.optimizer.learning_rate) == 0.5


def test_a_compiled_model_is_trained_as_it_is(folder, capsys):
    model = network("--model=own_nets:compiled")
    assert model.loss == "sparse_categorical_crossentropy" and float(model.optimizer.learning_rate) == 0.25
    assert int(model.optimizer.iterations) == 0
    with pytest.raises(ValueError, match=r"already compiled.* drop --optimizer, --decay.*Received: model="):
        network("--model=own_nets:compiled", "--decay=none", "--optimizer=sgd")
    with pytest.raises(ValueError, match=r"must be compiled with metrics=\['accuracy'\].*metrics=\['loss'"):
        network("--model=own_nets:unmeasured")
    words = ["--model=own_nets:compiled", "--dataset=own.npz", "--batch_size=16", "--epochs=2", "--sparsity=0.5"]
    assert cli.main(["train", "--method=gradual", *words]) == 0
    out = capsys.readouterr().out
    assert "own_nets:compiled (58 parameters) on own.npz (4, 2 classes): gradual to sparsity 0.5, 8 steps" in out
    assert "50.00%" in out


def test_a_keras_file_starts_from_its_weights(folder):
    given = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    given.save(folder / "own.keras")
    for seed in (0, 1):
        for a, b in zip(network("--model=own.keras", seed=seed).get_weights(), given.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_keras_file_is_read_by_the_checked_reader(folder):
    keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x), layers.Dense(2)]).save(folder / "own.keras")
    with pytest.raises(ValueError, match="a 'Lambda' layer contains arbitrary code"):
        network("--model=own.keras")


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--model=own_nets:gone"], ValueError, "Module 'own_nets' has no function 'gone'"),
        (["--model=own_nets:number"], ValueError, "has no function 'number'"),
        (["--model=own_nest:fixed"], ImportError, r"No module named 'own_nest' \(working directory: "),
        (["--model=own_nets.py:fixed"], ValueError, "without .py, as in an import statement: own_nets:fixed"),
        (["--model=own_nets:greedy"], ValueError, "kprune does not pass: depth"),
        (["--model=own_nets:nothing"], ValueError, "The model must be a keras model, but it is of type NoneType"),
        (["--model=gone.keras"], OSError, "No such file or folder: 'gone.keras'"),
        (["--model=conv-2"], ValueError, r"`input_shape` must be \(height, width, channels\), with integers >= 1"),
        (
            ["--model=own_nets:fixed", "--dataset=digits"],
            ValueError,
            r"does not accept the examples of digits, which have shape \(8, 8, 1\)\. Cause: .*[^.]\. Received: model=",
        ),
        (["--model=kprune.models:lenet_300_100", "--width=0"], None, "must be above 0"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(folder, words, error, says):
    if error is None:
        assert cli.main(["train", *words]) == 2
        return
    with pytest.raises(error, match=says):
        network(*words)


def test_classes_must_be_those_of_the_data(folder):
    (folder / "three_nets.py").write_text(MODULE.replace("Dense(2", "Dense(3"))
    with pytest.raises(ValueError, match=r"must return 2 numbers per example.*shape \(3,\)"):
        network("--model=three_nets:fixed")


@pytest.mark.slow_on_jax
def test_a_csv_and_a_named_network(folder, capsys):
    rows = [f"{'yes' if i % 3 else 'no'},{i % 3},{i % 7}" for i in range(60)]
    (folder / "own.csv").write_text("\n".join(["kind,a,b", *rows]))
    words = ["--dataset=own.csv", "--target=kind", "--model=lenet-300-100", "--width=0.1", "--epochs=1"]
    assert cli.main(["train", *words, "--method=magnitude"]) == 0
    assert "on own.csv (2, 2 classes)" in capsys.readouterr().out
    assert cli.main(["train", *words[:1], *words[2:]]) == 1
    assert "the file has the columns kind, a, b. Received: target=None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "the commands are train, inspect, .*; did you mean 'train'?"),
        (["train", "--model=vgg11"], "the model names are lenet-300-100, .*; did you mean 'vgg-11'?"),
        (["train", "--model=resnet_20"], "did you mean 'resnet-20'?"),
        (["train", "--model=lenet"], "a model name, a .keras file, or module:function; the model names are"),
        (["train", "--method=magnitud"], "value should be one of .*; did you mean 'magnitude'?"),
        (
            ["train", "--dataset=mnst"],
            "must be digits, mnist, .* or the path to an .npz file, .*; did you mean 'mnist'?",
        ),
        (["lottery", "--dataset=imagenet"], "must be digits, .* or the path to an .npz or .csv"),
        (["train", "--sparsity=90"], "must be at least 0 and below 1; 90 % is 0.9"),
        (["sensitivity", "m.keras", "--sparsities=50,90"], "without duplicates; 50 % is 0.5"),
        (["lottery", "--rate=20"], "must be above 0 and below 1; 20 % is 0.2"),
        (["search", "--model=lenet-5"], "MODEL is an argument, not a flag. Example: kprune search lenet-300-100"),
        (
            ["sweep", "--methods=snip,magnitud"],
            "must be one or more of .*, without duplicates; did you mean 'magnitude'?",
        ),
    ],
)
def test_hints(capsys, words, says):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert re.search(says.replace("?", r"\?"), err), err
    assert err.count("\n") == 1


def test_a_hint_ends_its_sentence(capsys):
    assert cli.main(["search", "vgg11"]) == 1
    assert "; did you mean 'vgg-11'? Received: model='vgg11'" in capsys.readouterr().err
    assert cli.main(["search", "xyz"]) == 1
    assert "wide-resnet. Received: model='xyz'" in capsys.readouterr().err
