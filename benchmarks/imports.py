"""How long `import kprune` takes beside `import keras`, in fresh processes: `python benchmarks/imports.py`."""

import subprocess
import sys

from absl import flags
from timing import in_turns, report, start

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 5, "Imports of each, in turns.")


def main():
    runs = {
        name: lambda name=name: subprocess.run(
            [sys.executable, "-c", f"import {name}"], check=True, capture_output=True
        )
        for name in ("keras", "kprune")
    }
    report("import", "a fresh process", in_turns(runs, FLAGS.repeats), "keras")


if __name__ == "__main__":
    start(main)
