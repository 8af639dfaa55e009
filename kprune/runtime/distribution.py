"""Training on several devices or processes: what each of them reads, writes and receives.

Under `tf.distribute` each replica has a copy of each variable. Under `keras.distribution` on JAX a variable lies on all
devices, whole or in parts, and every process runs the same program on its own part of each batch. The masks are
computed by every process from the same values, so they are equal everywhere. Whatever reads a variable of a Keras 3
model reads it with `to_numpy`, in all processes alike. TensorFlow and JAX are imported only where they are in use.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import keras
import numpy as np
from absl import logging

Result = TypeVar("Result")
KERAS_FIT_FAILS = (
    "Keras 3's `fit` fails under MultiWorkerMirroredStrategy, with or without kprune: it cannot convert a PerReplica "
    "value. Use a tf_keras model, a custom loop that calls kprune.prune or the callbacks, or Keras on JAX "
    "(KERAS_BACKEND=jax) with keras.distribution."
)


def is_chief() -> bool:
    """Whether this process is the one that writes files when several processes train a model together.

    Under a `tf.distribute` strategy that is what the strategy says; outside of its scope, what the cluster of the
    environment variable TF_CONFIG says: the task "chief", or without one, worker 0. With Keras on JAX, process 0.

    >>> is_chief()  # one process alone
    True
    """
    strategy = _strategy()
    if strategy is not None:
        return bool(strategy.extended.should_checkpoint)
    cluster, task = _cluster()
    if cluster:
        return task.get("type") != "worker" or (int(task["index"]) == 0 and "chief" not in cluster)
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index() == 0
    return True


def to_numpy(value: Any) -> np.ndarray:
    """Copy a variable (of Keras 3 or tf_keras) or a backend tensor to the host.

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


def as_numpy(value: Any) -> np.ndarray:
    """Return the same array as `to_numpy` without copying host memory; read it immediately, and do not modify it.

    While it is held, neither backend writes into that memory: a step that would have done so copies it first.
    """
    tensor = value.value if isinstance(value, keras.Variable) else value
    if keras.backend.backend() == "jax":
        import jax

        if isinstance(tensor, jax.Array):
            one_here = len(tensor.sharding.device_set) == 1 and tensor.is_fully_addressable and on_host([value])
            return np.asarray(tensor) if one_here else to_numpy(tensor)
    return np.asarray(sys.modules["tensorflow"].convert_to_tensor(tensor))


def as_tensor(variable: Any) -> Any:
    """Return the value of a Keras 3 or tf_keras variable as a tensor on its device, or on the first local replica's.

    >>> as_tensor(keras.Variable([1.0, 2.0])).shape.as_list()
    [2]
    """
    value = variable.value if isinstance(variable, keras.Variable) else variable
    if "jax" in sys.modules and isinstance(value, sys.modules["jax"].Array):
        return value
    return sys.modules["tensorflow"].convert_to_tensor(value)


def copies(variable: Any) -> list[np.ndarray]:
    """Return the part (or all) of a Keras 3 or tf_keras variable that each device of this process holds.

    >>> copies(keras.Variable([1.0, 2.0]))
    [array([1., 2.], dtype=float32)]
    """
    value = variable.value if isinstance(variable, keras.Variable) else variable
    if hasattr(value, "addressable_shards"):
        return [np.asarray(shard.data) for shard in value.addressable_shards]
    local = sys.modules["tensorflow"].distribute.get_strategy().experimental_local_results(value)
    return [np.asarray(one) for one in local]


def on_host(variables: Iterable[Any]) -> bool:
    """Whether all of these Keras 3 or tf_keras variables are in host memory rather than on accelerators.

    >>> on_host([keras.Variable([1.0])])
    True
    """
    return platforms(variables) <= {"cpu"}


def platforms(variables: Iterable[Any]) -> set[str]:
    """Return the kinds of devices that these Keras 3 or tf_keras variables lie on: "cpu", "gpu" or "tpu".

    >>> platforms([keras.Variable([1.0])])
    {'cpu'}
    """
    found: set[str] = set()
    for v in variables:
        tensor = v.value if isinstance(v, keras.Variable) else v
        if hasattr(tensor, "sharding"):
            found |= {device.platform for device in tensor.sharding.device_set}
        else:
            found.add(str(tensor.device).rpartition("device:")[2].partition(":")[0].lower() or "cpu")
    return found


def device_layout(variable: Any) -> Any:
    """Return the multi-device layout of a Keras 3 variable for `keras.Variable(layout=)`, or None on one device.

    It has no public name (checked with Keras 3.15.1, whose optimizers ask for it so to lay out their slots, too;
    tests/jax_distribution/test_callbacks_on_devices.py). The value itself does not say it while a model is traced.
    """
    return getattr(variable, "_layout", None)


def whole_layout(variable: Any) -> Any:
    """Return a layout that puts a scalar on every device with a part of a Keras 3 variable, or None on one device."""
    layout = device_layout(variable)
    return None if layout is None else keras.distribution.TensorLayout((), layout.device_mesh)


def from_chief(data: bytes | None) -> bytes | None:
    """Return the chief's `data` in every JAX process (all must call this); on other backends, return `data` itself."""
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


def replicas() -> int:
    """Return the number of devices that JAX divides each batch among; batch sizes must be multiples of it.

    >>> replicas()
    1
    """
    distribution = keras.distribution.distribution()
    if keras.backend.backend() != "jax" or distribution is None:
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


def local_rows(batch_size: int) -> slice:
    """Return the rows of a global batch that this process feeds to its devices.

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
    """Keep Keras from distributing layer outputs in a `with` block, because that may fail for one example or device."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def warn_of_keras_fit() -> None:
    """Log a warning, once, if Keras 3's own `fit` would fail because this is a worker of a TensorFlow cluster.

    `fit` fails before it asks any callback (checked with Keras 3.15.1; tests/tf_distribute/test_multi_worker.py).
    """
    if workers() > 1 and keras.backend.backend() == "tensorflow" and "tf_keras" not in sys.modules:
        logging.log_first_n(logging.WARNING, "kprune: %s TF_CONFIG lists %d workers.", 1, KERAS_FIT_FAILS, workers())


def strategy_scope(model: Any) -> AbstractContextManager[Any]:
    """Return the `tf.distribute` scope that the model was made in, so that new variables are of the same kind.

    Nothing where there is none, or where its scope has been entered.
    """
    strategy = getattr(model, "distribute_strategy", None)  # of the trainers of tf_keras and of Keras on TensorFlow
    if strategy is None or strategy is sys.modules["tensorflow"].distribute.get_strategy():
        return nullcontext()
    return strategy.scope()


def outside_strategies(function: Callable[[], Result]) -> Result:
    """Call a function where no `tf.distribute` strategy is active, and return its result.

    Its variables lie on one device then, its losses are not divided by the number of replicas, and it waits for no
    other process.
    """
    if _strategy() is None:
        return function()
    # TensorFlow has no way to leave a strategy's scope, but the scope holds in the thread that entered it only.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def workers() -> int:
    """Return how many processes train together according to TF_CONFIG, or 0 without it."""
    return sum(len(_cluster()[0].get(kind, [])) for kind in ("chief", "worker"))


def _cluster() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the cluster and this process's task from TF_CONFIG; both are empty without it."""
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    return config.get("cluster", {}), config.get("task", {})


def _strategy() -> Any:
    """Return the active `tf.distribute` strategy, or None."""
    tf = sys.modules.get("tensorflow")
    return tf.distribute.get_strategy() if tf is not None and tf.distribute.has_strategy() else None
