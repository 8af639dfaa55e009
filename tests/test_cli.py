"""The command line itself: its help, its messages, and what it prints as a program."""

import re
import urllib.error

import pytest
from cli_words import TINY
from helpers import new_process

import kprune
from kprune.cli import main as cli


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
        (["lottery", "--rewind_to=begin"], 'kprune lottery: flag --rewind_to=begin: must be "init", a fraction .*'),
        (["lottery", "--rewind_to=1.5"], 'kprune lottery: flag --rewind_to=1.5: must be "init", a fraction .*'),
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
    assert re.fullmatch(r"kprune: error: Images for lenet_5 must be at least 16x16 pixels\. Received: .*\n", err)
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
