"""Full float32 products on TensorFlow, even on GPUs that would round their operands to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf


@contextmanager
def without_tf32() -> Iterator[None]:
    """Keep TensorFlow from computing products in TF32 within the context; results must be awaited inside it."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)
