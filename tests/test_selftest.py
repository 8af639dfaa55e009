"""`kprune selftest`: what it checks, and that it notices a broken promise."""

import json

import kprune.experiments.selftest as module
import kprune.updates
from kprune.cli.main import main


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
    report = json.loads((tmp_path / "report.json").read_text())
    kept = {"sparsity": True, "traces": True, "copies": True, "selection": True}
    assert report["checks"] == {"zeros": False, **kept} and not report["passed"]
    assert min(report[name] for name in ("step_ratio", "step_ms", "update_ms", "partition_ratio")) > 0


def test_a_report_that_cannot_be_written_is_refused_before_the_training(tmp_path, capsys):
    assert main(["selftest", f"--out={tmp_path}"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
