"""`kprune selftest`: what it checks, and that it notices a broken promise."""

import json
import re

import keras
import numpy as np
import pytest
from kprune.callbacks import GradualPruning

import kprune
import kprune.experiments.selftest as module
import kprune.updates
from kprune.cli.main import main
from kprune.pruning import Pruner
from kprune.schedules import PolynomialDecay


def test_it_names_the_broken_promise_and_keeps_the_others(monkeypatch, tmp_path, capsys):
    for name, small in (("_STEPS", 2), ("_ROUNDS", 1), ("_UPDATES", 4)):
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(module, "moved_weights", lambda model: ["conv/kernel"])
    for place in (module, kprune.updates):
        monkeypatch.setattr(place, "on_host", lambda variables: False)  # as where there is an accelerator
    assert main(["selftest", "--strategy=none", f"--out={tmp_path / 'report.json'}"]) == 1
    output = capsys.readouterr()
    assert "not 0: ['conv/kernel']" in output.out and "BROKEN" in output.out
    assert "failed on this machine: zeros." in output.err
    assert re.search(r", devices \w+:0", output.out.lower())
    report = json.loads((tmp_path / "report.json").read_text())
    kept = {"sparsity": True, "traces": True, "copies": True, "selection": True}
    assert report["checks"] == {"zeros": False, **kept} and not report["passed"]
    assert min(report[name] for name in ("step_ratio", "step_ms", "update_ms", "partition_ratio")) > 0


def test_a_report_that_cannot_be_written_is_refused_before_the_training(tmp_path, capsys):
    assert main(["selftest", f"--out={tmp_path}"]) == 1
    assert str(tmp_path) in capsys.readouterr().err


class Retracing(GradualPruning):
    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if batch == 3:
            self.model.make_train_function(force=True)


class Leaking(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        self.assign_add(variable, keras.ops.ones_like(gradient))


def with_leaking_optimizer(library, model, masked):
    model = kprune.mask(model).model
    model.compile(Leaking(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Lenient(Pruner):
    def update(self, model, sparsity):
        super().update(model, sparsity - 0.01)


@pytest.mark.parametrize(
    ("promise", "name", "broken"),
    [
        ("zeros", "_compiled", with_leaking_optimizer),
        (
            "sparsity",
            "PolynomialDecay",
            lambda begin, end, *args, **kwargs: PolynomialDecay(begin, 0.8, *args, **kwargs),
        ),
        ("traces", "GradualPruning", Retracing),
        ("copies", "copies", lambda variable: [np.zeros(2), np.ones(2)]),
        ("selection", "Pruner", Lenient),
    ],
)
def test_each_promise_is_noticed_when_it_is_broken(monkeypatch, promise, name, broken):
    monkeypatch.setattr(module, "_UPDATES", 4)
    monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(module, "on_host", lambda variables: False)
    checks, _ = module._promises(keras)
    assert checks == {one: one != promise for one in checks} and promise in checks
