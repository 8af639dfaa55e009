"""The parts of benchmarks/dynamic.py: what a training costs, the trainings, the file, the tables and the figure."""

import doctest
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import kprune

pytestmark = [pytest.mark.one_session, pytest.mark.once]


@pytest.fixture
def dynamic(monkeypatch):
    """The benchmark as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / "dynamic.py"
    spec = importlib.util.spec_from_file_location("dynamic_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its dataclass looks for names
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def digits(tmp_path):
    """The path of a data set of 40 images of 2x2."""
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 2, 2, 1), "float32"), np.arange(40) % 4
    np.savez(tmp_path / "small.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    return str(tmp_path / "small.npz")


def test_its_examples(dynamic):
    found = doctest.testmod(dynamic)
    assert found.failed == 0 and found.attempted >= 4


def test_all_cost_the_same_but_for_the_references(dynamic):
    for sparsity in dynamic.SPARSITIES:
        budget = (1 - sparsity) * dynamic.STEPS
        for method in dynamic.EQUAL:
            steps = dynamic.steps_of(method, sparsity, 100)
            assert budget * 0.97 - 1 < dynamic.cost(method, sparsity, steps, 100) < budget * 1.001, method
        assert [dynamic.steps_of(method, sparsity, 100) for method in dynamic.LONG] == [dynamic.STEPS] * 2
    # Gradual pruning to 0.9 by a cubic: a tenth dense, 6 tenths at 0.1 + 0.9 / 4 on average, 3 tenths at 0.1.
    assert dynamic.cost("magnitude", 0.9, 1000, 100) == pytest.approx(100 + 600 * (0.1 + 0.9 / 4) + 30, rel=0.02)


@pytest.mark.parametrize("method", ["static random", "RigL", "magnitude", "dense"])
def test_a_training(dynamic, digits, monkeypatch, method):
    monkeypatch.setattr(dynamic, "STEPS", 8)
    monkeypatch.setattr(dynamic, "FREQUENCY", 2)
    made = []
    build = kprune.models.lenet_300_100
    monkeypatch.setattr(kprune.models, "lenet_300_100", lambda *a: made.append(build(*a, width=0.1)) or made[0])
    run = dynamic.train(kprune.data.load(digits, batch_size=64), method, 0.5, seed=1)
    assert (run.dataset, run.method, run.steps) == ("small.npz", method, made[0].optimizer.iterations)
    sparsity = 0.0 if method == "dense" else 0.5
    assert kprune.summary(made[0]).sparsity == pytest.approx(sparsity, abs=1e-3)


def test_a_command_goes_on_and_reports(dynamic, digits, monkeypatch, tmp_path, capsys):
    trained = []

    def train(data, method, sparsity, seed):
        if len(trained) == 20:
            trained.append(None)
            raise KeyboardInterrupt
        trained.append((method, sparsity, seed))
        accuracy = {"static random": 0.5, "SET": 0.5 + 0.1 * (seed + 1)}.get(method, 0.25)
        return dynamic.DynamicRun(data.name, method, sparsity, seed, 7, 3.5, accuracy)

    monkeypatch.setattr(dynamic, "train", train)
    command = [digits, f"--out_dir={tmp_path}", "--seeds=2"]
    with pytest.raises(KeyboardInterrupt):
        dynamic.main(command)
    dynamic.main(command)
    trained.remove(None)
    assert trained == [key[1:] for key in dynamic.keys(["small.npz"], (0, 1))] and len(trained) == 38
    printed = capsys.readouterr().out
    # 10 and 20 points: the mean and 12.7062 standard errors, as Student's t has it for two.
    assert "| SET - static random | +15.00 [-48.53, +78.53] |" in printed
    assert "| static random | 50.00 (7) | 50.00 (7) | 50.00 (7) |" in printed
    assert (tmp_path / "dynamic.png").stat().st_size > 1000
