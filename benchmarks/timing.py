"""What the benchmarks share: functions timed in turns, and the two lines that each case prints."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from absl import app, logging

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")


def start(main: Callable[[], None]) -> None:
    """Run a benchmark that takes flags only, without kprune's warnings."""

    def run(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments: {argv[1:]}")
        logging.set_verbosity(logging.ERROR)
        main()

    app.run(run)


def in_turns(runs: dict[str, Callable[[], Any]], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """The seconds of each function in `repeats` rounds, each of which calls all; `warm` rounds before do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warm + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(benchmark: str, case: str, seconds: dict[str, list[float]], beside: str, **more: Any) -> None:
    """Print the medians with their ratio to those of `beside`, for people, and all runs as a line of JSON.

    Args:
        benchmark, case: what was measured.
        seconds: the seconds of all runs.
        beside: the name of those that the others are held against.
        more: other numbers of the case.
    """
    plain = statistics.median(seconds[beside])
    ratios = {name: statistics.median(runs) / plain for name, runs in seconds.items() if name != beside}
    shown = "; ".join(f"{name} {_range(seconds[name])}, {ratio:.3f} of it" for name, ratio in ratios.items())
    others = "".join(f"; {name.replace('_', ' ')} {value:.3g}" for name, value in more.items())
    print(f"{benchmark}, {case}, {BACKEND}: {beside} {_range(seconds[beside])}; {shown}{others}", flush=True)
    line = {"benchmark": benchmark, "case": case, "backend": BACKEND, "beside": beside, "ratios": ratios, **more}
    print(json.dumps({**line, "seconds": seconds, "machine": machine()}), flush=True)


def machine() -> str:
    """What the figures depend on."""
    import kprune

    names = ("keras", "tensorflow" if BACKEND == "tensorflow" else "jax", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{platform.machine()}, {THREADS} threads; kprune {kprune.__version__}, {versions}"


def _range(runs: list[float]) -> str:
    scale, unit = (1, "s") if max(runs) >= 1 else (1e3, "ms")
    return f"{scale * min(runs):.3g}-{scale * max(runs):.3g} {unit}"
