"""The notebooks for Colab run from top to bottom: here on a CPU, on digits in place of CIFAR-10."""

import pathlib
import re

import keras
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import kprune

# A notebook says which backend it is for.
pytestmark = pytest.mark.once
EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
SMALL = """
DATASET = "digits"
MODEL, BATCH, WIDTH, SYNFLOW_EPOCHS, SPARSITY = "conv-2", 120, 0.2, 3, 0.8
LEVELS, RATE, EPOCHS_PER_LEVEL, REWIND_TO = 2, 0.5, 3, "epoch:1"
"""
QUICK = "import kprune.experiments.selftest as test\ntest._STEPS, test._ROUNDS, test._UPDATES = 2, 1, 4\n"


def assigned(source):
    return set(compile(source, "parameters", "exec").co_names)


def run(name, folder):
    """Runs the notebook, but for what it installs, with small parameters; returns what it printed."""
    notebook = nbformat.read(EXAMPLES / name, 4)
    (install,), (parameters,), (selftest,) = (
        [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]
        for tag in ("install", "parameters", "selftest")
    )
    assert all(line.startswith(("#", "%pip ")) for line in install.source.splitlines())
    assert assigned(parameters.source) == assigned(SMALL)
    notebook.cells.remove(install)
    parameters.source = SMALL
    selftest.source = QUICK + selftest.source
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


@pytest.mark.slow
@pytest.mark.parametrize("name, saved", [("colab_tpu", "sparse.keras"), ("colab_tpu_tf", "exported.keras")])
def test_a_notebook_prunes_finds_a_ticket_and_exports(name, saved, tmp_path):
    printed = run(f"{name}.ipynb", tmp_path)
    assert "strategy none: 1 cpu" in printed and "1437 training images, 360 test images" in printed
    assert len(re.findall(r" kept  ", printed)) == 4 and "BROKEN" not in printed
    assert re.search(r"total .* (79\.9|80\.0)\d%", printed)
    assert "largest relative difference" in printed
    assert not (tmp_path / "backup.npz").exists()  # the fit came to its end
    ticket = kprune.Ticket.load(tmp_path / "ticket.npz")
    assert ticket.sparsity == pytest.approx(0.75, abs=1e-3)
    library = keras if name == "colab_tpu" else pytest.importorskip("tf_keras")
    model = library.models.load_model(tmp_path / saved, compile=False)
    kernels = [np.asarray(v) for v in model.trainable_weights if "kernel" in v.name]
    np.testing.assert_array_equal([(k != 0).sum() for k in kernels], [mask.sum() for mask in ticket.masks.values()])
    accuracy = (
        model.predict(kprune.data.load("digits").test[0], verbose=0).argmax(-1) == kprune.data.load("digits").test[1]
    ).mean()
    assert accuracy > 0.5, accuracy
