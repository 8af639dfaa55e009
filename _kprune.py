"""The program `kprune`: the start of `kprune.cli.main`, and the quick way to its help.

It lies beside the package because importing anything of `kprune` imports Keras, and with it the backend.
"""

import importlib.metadata
import os
import sys

HELP = {"--help", "-h", "help"}


def main() -> int:
    """Run the command line on the words of the process; the exit status is that of `kprune.cli.main.main`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        print(f"kprune {importlib.metadata.version('kprune')}")
        return 0
    if not words or HELP & set(words):
        os.environ["KERAS_BACKEND"] = "numpy"  # no help depends on the backend, and this one imports in a second
    try:
        from kprune.cli.main import main as run
    except KeyboardInterrupt:
        print("kprune: interrupted", file=sys.stderr)
        return 130
    return run(words)


if __name__ == "__main__":
    sys.exit(main())
