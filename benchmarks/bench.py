"""All benchmarks of speed, one after the other, each with both backends: the tables of docs/benchmarks.md.

    python benchmarks/bench.py            prints the tables
    python benchmarks/bench.py --write    also stores the ratios in benchmarks/ratios.json
    python benchmarks/bench.py --check    fails where a ratio is above 1.25 of the stored one in two of three runs

Each figure is a ratio to what stands beside it, measured in turns; seconds differ from machine to machine.
Without PyTorch, what is held against it is left out, and said so.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_bool("write", False, "Store the ratios.")
flags.DEFINE_bool("check", False, "Compare with the stored ratios.")
flags.DEFINE_list("only", [], "Names of benchmarks; all by default.")

HERE = pathlib.Path(__file__).parent
STORED = HERE / "ratios.json"
BENCHMARKS = ("imports", "step", "update", "waiting", "synflow", "at_init")
NEED_PYTORCH = ("synflow", "at_init")
WORSE = 1.25


def run(benchmark, backend):
    """The cases that a benchmark prints, as dicts."""
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile("w+") as errors:
        made = subprocess.run(
            [sys.executable, str(HERE / f"{benchmark}.py")], env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        if made.returncode:
            errors.seek(0)
            raise RuntimeError(f"benchmarks/{benchmark}.py failed on {backend}:\n{errors.read()[-3000:]}")
    print(*(line for line in made.stdout.splitlines() if not line.startswith("{")), sep="\n", flush=True)
    return [json.loads(line) for line in made.stdout.splitlines() if line.startswith("{")]


def ratios(cases):
    """{what was measured: its ratio}."""
    return {
        f"{case['benchmark']} | {case['case']} | {case['backend']} | {name}": ratio
        for case in cases
        for name, ratio in case["ratios"].items()
    }


def table(cases):
    """Markdown: a row for each ratio."""
    print("| measured | case | backend | beside, ms | ms, all runs | ratio of the medians | |\n" + "| --- " * 7 + "|")
    for case in cases:
        beside = case["beside"]
        for name, ratio in case["ratios"].items():
            more = ", ".join(
                f"{key.replace('_', ' ')} {case[key]:.3g}" for key in ("first_call", "bytes_a_weight") if key in case
            )
            print(
                f"| {case['benchmark']}: {name} | {case['case']} | {case['backend']} | {beside} {_all(case, beside)} "
                f"| {_all(case, name)} | {ratio:.3f} | {more} |"
            )
    print()
    for machine in dict.fromkeys(case["machine"] for case in cases):
        print(machine)


def _all(case, name):
    return " ".join(f"{1e3 * run:.3g}" for run in case["seconds"][name])


def worse(found, stored):
    """What is above its stored ratio by more than is let pass."""
    return {name for name, ratio in found.items() if name in stored and ratio > WORSE * stored[name]}


def check(chosen):
    """Print what is slower than stored; returns the exit status.

    What looks slower is measured twice more, and is slower if it was in two of the three runs.
    """
    stored, slower = json.loads(STORED.read_text()), {}
    for benchmark, backend in chosen:
        found = [ratios(run(benchmark, backend))]
        if worse(found[0], stored):
            found += [ratios(run(benchmark, backend)) for _ in range(2)]
        for name in found[0]:
            if sum(name in worse(one, stored) for one in found) >= 2:
                slower[name] = [one[name] for one in found]
        unknown = set(found[0]) - set(stored)
        print(*(f"not stored: {name}" for name in sorted(unknown)), sep="\n", end="\n" * bool(unknown))
    for name, runs in slower.items():
        print(f"slower: {name}: {' '.join(f'{one:.3f}' for one in runs)}, stored {stored[name]:.3f}")
    return 1 if slower else 0


def main(argv):
    if len(argv) > 1 or (unknown := set(FLAGS.only) - set(BENCHMARKS)):
        raise app.UsageError(f"unknown arguments: {argv[1:] or sorted(unknown)}; there are {', '.join(BENCHMARKS)}")
    names = [name for name in BENCHMARKS if not FLAGS.only or name in FLAGS.only]
    if not importlib.util.find_spec("torch") and (left_out := [name for name in names if name in NEED_PYTORCH]):
        print(f"left out, as PyTorch is not installed (pip install torch): {', '.join(left_out)}", flush=True)
        names = [name for name in names if name not in NEED_PYTORCH]
    chosen = [(name, backend) for name in names for backend in ("tensorflow", "jax")]
    if FLAGS.check:
        return check(chosen)
    cases = [case for benchmark, backend in chosen for case in run(benchmark, backend)]
    print()
    table(cases)
    if FLAGS.write:
        before = json.loads(STORED.read_text()) if STORED.exists() else {}
        made = {name: round(ratio, 3) for name, ratio in ratios(cases).items()}
        STORED.write_text(json.dumps(before | made, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    app.run(main)
