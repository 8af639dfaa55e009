"""How long `import kprune` takes beside `import keras`, in fresh processes: `python benchmarks/imports.py`."""

import subprocess
import sys

from absl import app, flags
from timing import in_turns, report

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 5, "Imports of each, in turns.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    runs = {
        name: lambda name=name: subprocess.run(
            [sys.executable, "-c", f"import {name}"], check=True, capture_output=True
        )
        for name in ("keras", "kprune")
    }
    report("import", "a fresh process", in_turns(runs, FLAGS.repeats), "keras")


if __name__ == "__main__":
    app.run(main)
