"""Run by `make test-tpu`, in an environment of its own that has libtpu; skipped elsewhere."""

import importlib.util
import json
import os
import pathlib

import pytest
import tpu_compiler  # noqa: F401  (its environment variables have to be there before JAX is)

collect_ignore = (
    [] if importlib.util.find_spec("libtpu") else ["test_tpu_jax.py", "test_tpu_tensorflow.py", "test_tpu_tf_keras.py"]
)


@pytest.fixture
def note():
    """Adds a row to what `make test-tpu` prints, if KPRUNE_TPU_ROWS names a file for them."""

    def add(road, method, topology, program):
        file = os.environ.get("KPRUNE_TPU_ROWS")
        if file:
            row = {"road": road, "method": method, "topology": topology, "seconds": program.seconds, "hbm": program.hbm}
            with pathlib.Path(file).open("a") as rows:
                rows.write(json.dumps({**row, "all_reduces": program.all_reduces}) + "\n")

    return add
