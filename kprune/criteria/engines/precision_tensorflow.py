"""Full float32 products on TensorFlow, even where a GPU would round their operands to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, TensorFlow runs no product in TF32; what is run there must be waited for there."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)
