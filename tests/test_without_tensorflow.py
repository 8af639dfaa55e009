"""Keras 3 on JAX needs no TensorFlow, as on Colab's TPU runtime."""

import pathlib

import keras
import pytest
from helpers import new_process

PROGRAM = pathlib.Path(__file__).with_name("without_tensorflow.py")


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="a Keras on TensorFlow needs TensorFlow")
def test_all_works_where_no_tensorflow_is_installed(tmp_path):
    ran = new_process(PROGRAM, tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "done" in ran.stdout
