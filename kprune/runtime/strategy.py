"""Selection of the hardware that training runs on: TPU cores, GPUs, several machines, or a single device."""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import keras

from .distribution import KERAS_FIT_FAILS, workers

STRATEGIES = ("auto", "tpu", "mirrored", "multiworker", "none")
"""What `auto_strategy` can be asked for."""

_PCI = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # v2 and v3, v4i, v4, v5p, v5e, v6e, 7x
# The last pair that starts on Colab's TPU runtime (2026-08): a newer libtpu aborts as TensorFlow is imported.
_TENSORFLOW_TPU, _LIBTPU = "2.20.0", (0, 0, 32)
_WORKERS = {
    "tensorflow": "TF_CONFIG",
    "jax": "KERAS_DISTRIBUTION_JOB_ADDRESSES, KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID",
}


def auto_strategy(strategy: str = "auto", library: Any = keras, verbose: bool = True) -> Any:
    """Return the strategy for this machine; build, compile and fit the model within its `scope()`.

    Args:
        strategy: "tpu": all TPU cores. "mirrored": all GPUs, or all CPU devices where there are none. "multiworker":
            all devices of all processes, as environment variables describe them: `TF_CONFIG` for TensorFlow, for JAX
            `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `..._NUM_PROCESSES` and `..._PROCESS_ID`. "none": the first device.
            "auto": the first of these that is there and is more than one device; a TPU always.
        library: `keras`, or `tf_keras` for models of Keras 2.
        verbose: whether to print a line that says what was chosen.

    Returns:
        For JAX a `keras.distribution.DataParallel`, for TensorFlow a `tf.distribute.Strategy`. Each replica has a copy
        of weights and masks and an equal share of each batch.

    Raises:
        ValueError: `strategy` is no such name, or is not to be had here, or the `fit` of Keras 3 fails under it (on
            several TensorFlow workers); with a TPU that the installed packages cannot reach, the message says which to
            install. Also with "auto", so that nobody pays for a TPU and trains on the CPU beside it; "none" does that.

    >>> import keras, kprune, numpy as np
    >>> with kprune.auto_strategy(verbose=False).scope():
    ...     model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    ...     model.compile("adam", "mse")
    ...     prune = kprune.callbacks.PruneAtInit("magnitude", sparsity=0.75)
    ...     _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), verbose=0, callbacks=[prune])
    >>> kprune.summary(model).sparsity
    0.75
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}. Received: strategy={strategy!r}")
    if getattr(library, "__name__", None) not in ("keras", "tf_keras"):
        raise ValueError(f"`library` must be 'keras' or 'tf_keras'. Received: library={library!r}")
    backend = "tensorflow" if library.__name__ == "tf_keras" else keras.backend.backend()
    choose = {"tensorflow": _of_tensorflow, "jax": _of_jax}.get(backend)
    if choose is None:
        raise ValueError(f"Distribution strategies require Keras on TensorFlow or JAX. Received: backend={backend!r}")
    if choose is _of_tensorflow and library is keras and strategy in ("auto", "multiworker") and workers() > 1:
        raise ValueError(f"{KERAS_FIT_FAILS} Received: strategy={strategy!r}, workers={workers()}")
    kind, found, devices = choose(strategy)
    if verbose:
        how = "" if kind == "none" else f"{type(found).__name__} on "
        print(f"strategy {kind}: {how}{devices} ({backend})")
    return found


def _of_jax(kind: str) -> tuple[str, Any, str]:
    described = any(name in os.environ for name in _WORKERS["jax"].replace(",", "").split())
    if kind == "multiworker" and not described:
        raise _no_workers("jax")
    if kind == "multiworker" or (kind == "auto" and described):
        kind = "multiworker"
        if not importlib.import_module("jax").distributed.is_initialized():
            keras.distribution.initialize()
    devices = keras.distribution.list_devices()
    platform = devices[0].split(":")[0]
    if platform != "tpu" and (kind == "tpu" or (kind == "auto" and _has_tpu())):
        version = metadata.version("jax")
        raise ValueError(
            f"JAX found no TPU. On a machine with a TPU, run `pip install 'jax[tpu]=={version}'`, leave JAX_PLATFORMS "
            f"unset, and restart Python. To train without a TPU, use strategy 'none'. Received: strategy={kind!r}, "
            f"jax={version}, platform={platform}, {_installed('libtpu')}"
        )
    if kind == "auto":
        kind = "tpu" if platform == "tpu" else "mirrored" if len(devices) > 1 else "none"
    used = devices[:1] if kind == "none" else devices
    found = keras.distribution.DataParallel(devices=used, auto_shard_dataset=False)
    return kind, found, _count(len(used), platform)


def _of_tensorflow(kind: str) -> tuple[str, Any, str]:
    if kind == "tpu" or (kind == "auto" and _has_tpu()):
        return _tpu_of_tensorflow(kind)
    tf = importlib.import_module("tensorflow")
    if kind == "multiworker" and not workers():
        raise _no_workers("tensorflow")
    if kind == "multiworker" or (kind == "auto" and workers()):
        found = tf.distribute.MultiWorkerMirroredStrategy()
        return "multiworker", found, _count(found.num_replicas_in_sync, "device")
    platform = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(platform)]
    if kind == "mirrored" or (kind == "auto" and platform == "GPU" and len(devices) > 1):
        return "mirrored", tf.distribute.MirroredStrategy(devices), _count(len(devices), platform.lower())
    return "none", tf.distribute.get_strategy(), _count(1, platform.lower())


def _tpu_of_tensorflow(kind: str) -> tuple[str, Any, str]:
    found, libtpu = _version("tensorflow-tpu"), _version("libtpu")
    remedy = (
        "TensorFlow found no TPU. On a machine with a TPU, run `pip uninstall -y tensorflow tensorflow-cpu; pip "
        f'install --no-deps tensorflow-tpu=={_TENSORFLOW_TPU} "libtpu<{".".join(map(str, _LIBTPU))}"` and restart '
        f"Python, or use Keras 3 on JAX. To train without a TPU, use strategy 'none'. Received: strategy={kind!r}, "
        f"{', '.join(map(_installed, ('tensorflow', 'tensorflow-tpu', 'libtpu')))}"
    )
    # Asked before TensorFlow is imported, as a wrong libtpu ends the process.
    if not found or not libtpu or tuple(int(n) for n in libtpu.split(".")[:3]) >= _LIBTPU:
        raise ValueError(remedy)
    tf = importlib.import_module("tensorflow")
    try:
        cluster = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=os.environ.get("TPU_NAME") or "local")
        tf.config.experimental_connect_to_cluster(cluster)
        tf.tpu.experimental.initialize_tpu_system(cluster)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(remedy) from error
    strategy = tf.distribute.TPUStrategy(cluster)
    return "tpu", strategy, _count(strategy.num_replicas_in_sync, "tpu core")


def _has_tpu() -> bool:
    """Whether a TPU is attached, or the environment names one."""

    def holds(device: Path, name: str) -> str:
        return (device / name).read_text().strip()

    return bool(os.environ.get("TPU_NAME")) or any(
        holds(vendor.parent, "vendor") == _GOOGLE and holds(vendor.parent, "device") in _TPUS
        for vendor in _PCI.glob("*/vendor")
    )


def _no_workers(backend: str) -> ValueError:
    return ValueError(
        f"The environment does not describe any workers: set {_WORKERS[backend]} on each worker before starting "
        "Python. Received: strategy='multiworker'"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _installed(package: str) -> str:
    version = _version(package)
    return f"{package}={version}" if version else f"{package}=None"
