"""What `make bench-check` calls slower: a ratio above 1.25 of the stored one in two of three runs."""

import json
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import bench
import timing

pytestmark = pytest.mark.once
NAME = "step | net | jax | masked"


@pytest.mark.parametrize(
    ("measured", "slower"),
    [([1.24], False), ([1.26, 1.0, 1.0], False), ([1.26, 1.0, 1.3], True), ([1.26, 1.26, 1.26], True)],
)
def test_two_of_three(monkeypatch, tmp_path, capsys, measured, slower):
    (tmp_path / "ratios.json").write_text(json.dumps({NAME: 1.0}))
    monkeypatch.setattr(bench, "STORED", tmp_path / "ratios.json")
    runs = iter(measured)
    case = {"benchmark": "step", "case": "net", "backend": "jax"}
    monkeypatch.setattr(bench, "run", lambda benchmark, backend: [{**case, "ratios": {"masked": next(runs)}}])
    assert bench.check([("step", "jax")]) == slower
    assert list(runs) == []
    assert (f"slower: {NAME}" in capsys.readouterr().out) == slower


def test_a_case_is_printed_with_all_its_runs(capsys):
    seconds = timing.in_turns({"plain": lambda: None, "ours": lambda: None}, repeats=3)
    assert [len(runs) for runs in seconds.values()] == [3, 3]
    timing.report("update", "tiny", {"plain": [1.0, 2.0, 3.0], "ours": [4.0, 3.0, 2.0]}, "plain", first_call=1.5)
    said, line = capsys.readouterr().out.splitlines()
    assert "plain 1-3 s; ours 2-4 s, 1.500 of it; first call 1.5" in said
    case = json.loads(line)
    assert (case["ratios"], case["seconds"]["ours"], case["first_call"]) == ({"ours": 1.5}, [4.0, 3.0, 2.0], 1.5)


def test_each_benchmark_is_there():
    folder = pathlib.Path(bench.__file__).parent
    assert all((folder / f"{name}.py").exists() for name in bench.BENCHMARKS)
    stored = json.loads(bench.STORED.read_text())
    assert {name.partition(" | ")[0] for name in stored} >= {"import", "step", "update", "between updates", "synflow"}
