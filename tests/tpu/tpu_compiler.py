"""The real TPU compiler, libtpu, without a TPU: it compiles ahead of time for a topology that it is told.

JAX reaches it by a public way. For TensorFlow's StableHLO this hands it over by JAX's own inner functions (checked with
JAX 0.10.2 and libtpu 0.0.42.1; test_tpu_tensorflow.py).
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

# To be set before JAX is imported, as conftest.py does by importing this module.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # what runs here runs on the CPU
    "TPU_SKIP_MDS_QUERY": "1",  # nobody to ask what machine this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else processes side by side fight for a lock file
    "TPU_LOG_DIR": "disabled",  # else a log file for each process
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # this and the next spare warnings
    "TPU_WORKER_HOSTNAMES": "localhost",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# Colab's TPU; four chips of its kind; four chips of two cores each.
TOPOLOGIES = ("v5e:1x1", "v5e:2x2", "v2:2x2")


@dataclass(frozen=True)
class Program:
    """What libtpu made of a computation.

    Attributes:
        module: the StableHLO module that it was given, as text.
        hlo: the optimized HLO, as text.
        seconds: how long it took to compile.
        hbm: peak bytes of the TPU's memory, on each device.
    """

    module: str
    hlo: str
    seconds: float
    hbm: int

    @property
    def all_reduces(self) -> int:
        """The number of all-reduces in it."""
        return self.hlo.count(" all-reduce(") + self.hlo.count(" all-reduce-start(")


def versions() -> str:
    """Of what compiles here."""
    return ", ".join(
        f"{name} {metadata.version(name)}" for name in ("libtpu", "jax", "keras", "tensorflow", "tf_keras")
    )


@functools.cache
def tpu_devices(topology: str) -> list[Any]:
    """The devices of a topology: nothing can be put on them, only compiled for them."""
    from jax.experimental import topologies

    bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices


def compile_jax(
    function: Callable[..., Any], arguments: tuple[Any, ...], topology: str, split: tuple[int, ...] = (), **jit: Any
) -> Program:
    """Compile a JAX function for all devices of a topology, as `keras.distribution.DataParallel` lays it out.

    What it returns is the same on every device, unless `jit` says otherwise.

    Args:
        function: what to compile.
        arguments: trees of what has a shape and a dtype.
        topology: one of `TOPOLOGIES`.
        split: the positions of the arguments that are split among the devices by their first axis.
        jit: arguments of `jax.jit`.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(tpu_devices(topology)), ("batch",))
    whole, part = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))

    def spec(position: int, argument: Any) -> Any:
        sharding = part if position in split else whole
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), argument)

    specs = [spec(position, argument) for position, argument in enumerate(arguments)]
    lowered = jax.jit(function, **{"out_shardings": whole, **jit}).trace(*specs).lower()
    begin = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    return Program(lowered.as_text(), compiled.as_text(), seconds, compiled.memory_analysis().peak_memory_in_bytes)


def compile_tensorflow(function: Any, specs: list[Any], replicas: int, topology: str) -> Program:
    """Compile a `tf.function(jit_compile=True)` for as many devices of a topology as it has replicas."""
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jaxlib.mlir.dialects import stablehlo

    devices = tuple(tpu_devices(topology)[:replicas])
    lowered = function.experimental_get_compiler_ir(*specs)
    with mlir.make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(context, lowered(stage="stablehlo_serialized"))
        _drop_copies(module.operation)
        options = compiler.get_compile_options(
            num_replicas=replicas, num_partitions=1, device_assignment=np.array([[device.id] for device in devices])
        )
        begin = time.perf_counter()
        compiled = devices[0].client.compile(
            module, executable_devices=xla_client.DeviceList(devices), compile_options=options
        )
        seconds = time.perf_counter() - begin
        hbm = compiled.get_compiled_memory_stats().peak_memory_in_bytes
        return Program(str(module), compiled.hlo_modules()[0].to_string(), seconds, hbm)


def _drop_copies(operation: Any) -> None:
    """Take out mhlo.copy, which is no StableHLO: TensorFlow marks the variables that it returns with this identity."""
    for region in operation.regions:
        for block in region:
            for inner in list(block):
                if inner.operation.name == "mhlo.copy":
                    inner.operation.results[0].replace_all_uses_with(inner.operation.operands[0])
                    inner.operation.erase()
                else:
                    _drop_copies(inner.operation)
