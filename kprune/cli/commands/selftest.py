"""`kprune selftest`: check that kprune works as promised on this machine's devices."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from ...experiments.selftest import selftest
from ...runtime.distribution import is_chief
from ...runtime.strategy import STRATEGIES
from ...util.whole import write_whole
from ..options import Command, Option
from . import common


def run(values: Any, arguments: list[str]) -> None:
    """Run `kprune selftest`, which prints a table or JSON; raise RuntimeError if a check fails.

    Args:
        values: the flags of the command, as attributes.
        arguments: none.

    Raises:
        RuntimeError: a promise is broken; the report has been printed and written.
        ValueError, OSError: the devices cannot be had, or the report cannot be written.
    """
    if values.out:
        Path(values.out).parent.mkdir(parents=True, exist_ok=True)
        if Path(values.out).is_dir():
            raise IsADirectoryError(f"--out must be a file, not a folder. Received: out={values.out!r}")
    report = selftest(values.strategy, importlib.import_module(values.library), 0 if values.json else "auto")
    text = json.dumps(report.to_dict(), indent=2)
    if is_chief():
        print(text if values.json else report)
        if values.out:
            write_whole(Path(values.out), (text + "\n").encode())
    if not report.passed:
        broken = ", ".join(name for name, kept in report.checks.items() if not kept)
        raise RuntimeError(
            f"these checks failed on this machine: {broken}. Please report this failure with the output of --json"
        )


SELFTEST = Command(
    "selftest",
    "Train a small network to check that kprune works on this machine's devices; this takes about a minute.",
    "",
    "kprune selftest --strategy=tpu --out=selftest.json",
    (
        common.LIBRARY,
        Option(
            "strategy",
            "auto",
            "devices: TPUs (tpu), GPUs (mirrored), workers (multiworker), or the first device (none)",
            STRATEGIES,
        ),
        Option("json", False, "print JSON instead of a table", bool),
        Option("out", None, "file to which the JSON is also written"),
        *common.LOGGING,
    ),
    "The environment variable KERAS_BACKEND selects the backend. The exit status is 1 if any check fails.",
    run,
)
