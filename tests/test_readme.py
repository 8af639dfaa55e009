"""The README's examples run as they stand, each kind in a process of its own."""

import pathlib
import re

import keras
import pytest
from helpers import new_process

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
USE_THE_CRITERION = (
    'import kprune\nkprune.prune(kprune.models.conv_2(width=0.1), "magnitude_per_fan_in", sparsity=0.9)\n'
)


def test_all_blocks_are_known():
    assert [block.split("\n")[0] for block in BLOCKS] == [
        "import keras, kprune",
        "schedule = kprune.schedules.PolynomialDecay(0.0, 0.9, begin_step=50, end_step=150, frequency=10)",
        "import tf_keras, tensorflow_model_optimization as tfmot, kprune",
        "schedule = kprune.schedules.Linear(0.0, 0.5, begin_step=0, end_step=40, frequency=10)",
        "model = kprune.models.conv_4(input_shape=(8, 8, 1), width=0.5)",
        'strategy = kprune.auto_strategy()  # or "tpu", "mirrored", "multiworker", "none"',
        "model = kprune.models.conv_4(input_shape=(8, 8, 1), width=0.5)",
        "import numpy as np",
    ]


@pytest.mark.parametrize("example", ["keras 3", "lottery", "tf_keras", "criterion"])
def test_examples_run(example, tmp_path):
    if example == "tf_keras" and keras.backend.backend() != "tensorflow":
        pytest.skip("tf_keras is tested once, beside the TensorFlow backend")
    blocks = [block.replace("epochs=10", "epochs=2") for block in BLOCKS]
    keras3, gradual, tf_keras, pattern, lottery, devices, with_data, criterion = blocks
    code = {
        "keras 3": keras3
        + gradual
        + pattern
        + "assert all(row.sparsity == 0.5 for row in kprune.summary(model).rows[1:])\n"
        + with_data
        + devices
        + "assert kprune.summary(model).compression > 9\n",
        "lottery": keras3.partition("model.fit")[0] + lottery + "assert round(ticket.sparsity, 3) == 1 - 0.512\n",
        "tf_keras": tf_keras,
        "criterion": criterion + USE_THE_CRITERION,
    }[example]
    ran = new_process("-c", code, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    if example in ("keras 3", "tf_keras"):
        assert len(list((tmp_path / "out").iterdir())) == 2
