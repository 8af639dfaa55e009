"""The entry point of the `kprune` command, which runs `kprune.cli.main` and shows help without a slow import.

It lies beside the package because importing anything of `kprune` imports Keras, and with it the backend.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

HELP = {"--help", "-h", "help"}
TRAIN = {"train", "search", "sweep", "lottery"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what TensorFlow's C++ code writes to stderr, and print it only if an exception is raised."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def main() -> int:
    """Run the command line with this process's arguments and return the exit status of `kprune.cli.main.main`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        print(f"kprune {importlib.metadata.version('kprune')}")
        return 0
    if not words or HELP & set(words):
        os.environ["KERAS_BACKEND"] = "numpy"  # no help depends on the backend, and this one imports in a second
    try:
        with _quiet():
            from kprune.cli.main import main as run

            if set(words[:1]) & TRAIN and not HELP & set(words) and importlib.util.find_spec("tensorflow"):
                importlib.import_module("tensorflow")  # as Keras does on JAX, too, in the midst of a fit
            if "tensorflow" in sys.modules:  # which looks for devices only once it needs one
                sys.modules["tensorflow"].config.list_physical_devices()
    except KeyboardInterrupt:
        print("kprune: interrupted", file=sys.stderr)
        return 130
    return run(words)


if __name__ == "__main__":
    sys.exit(main())
