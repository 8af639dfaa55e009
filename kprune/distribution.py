"""Models that several devices or processes train together: what each of them reads, writes and is given.

`keras.distribution` on JAX: a variable lies on all devices, whole or in parts, and every process runs the same program
on its own part of each batch. The masks are computed by every process from the same values, so they are equal
everywhere. Whatever reads a variable of a Keras 3 model reads it with `to_numpy`, in all processes alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np


def is_chief() -> bool:
    """Whether this process is the one that writes files: the first of several that train together, or the only one.

    >>> is_chief()
    True
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index() == 0
    return True


def to_numpy(value: Any) -> np.ndarray:
    """A copy, on the host, of a variable (of either Keras) or of a tensor of the backend.

    Where parts of it lie in other processes, all processes have to call this, in the same order.
    """
    if keras.backend.backend() == "jax":
        import jax

        tensor = value.value if isinstance(value, keras.Variable) else value
        if isinstance(tensor, jax.Array):
            if not (tensor.is_fully_addressable or tensor.is_fully_replicated):
                from jax.experimental.multihost_utils import process_allgather

                tensor = process_allgather(tensor, tiled=True)
            return np.array(tensor)
    return np.array(value.numpy())


def layout_of(variable: Any) -> Any:
    """How a Keras 3 variable is to lie on several devices, as `keras.Variable(layout=)` takes it; None for one device.

    It has no public name (checked with Keras 3.15.1, whose optimizers ask for it so to lay out their slots, too;
    tests/jax_distribution/test_callbacks_on_devices.py). The value itself does not say it while a model is traced.
    """
    return getattr(variable, "_layout", None)


def from_chief(data: bytes | None) -> bytes | None:
    """What the chief was given, in every process; all have to call this."""
    if keras.backend.backend() == "jax":
        import jax

        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import broadcast_one_to_all

            size = int(broadcast_one_to_all(np.array(-1 if data is None else len(data))))
            if size < 0:
                return None
            own = np.frombuffer(data, np.uint8) if data is not None and is_chief() else np.zeros(size, np.uint8)
            return np.asarray(broadcast_one_to_all(own)).tobytes()
    return data


def local_rows(batch_size: int) -> slice:
    """Which rows of a batch that all processes train on together this process feeds to its devices.

    Raises:
        ValueError: the devices cannot share so many rows evenly.

    >>> local_rows(32)
    slice(0, 32, None)
    """
    distribution = keras.distribution.distribution()
    if keras.backend.backend() != "jax" or distribution is None:
        return slice(0, batch_size)
    sharding = distribution.get_data_layout((batch_size,)).backend_layout
    parts = [part.indices(batch_size) for (part,) in sharding.addressable_devices_indices_map((batch_size,)).values()]
    return slice(min(start for start, _, _ in parts), max(stop for _, stop, _ in parts))


@contextmanager
def undistributed() -> Iterator[None]:
    """Inside, Keras asks no layer's outputs to be laid out: a batch of one, or one device, may not do for that."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
