"""`tf.distribute.TPUStrategy`'s own code on logical CPU devices: what can be run of it where no TPU is.

Real here: how it makes variables (TPUDistributedVariable), what callbacks assign to them on each replica, how it traces
a step and which all-reduces it puts in. With one core, as on Colab, `strategy.run` also executes, through XLA on the
CPU, so `fit` really trains. With more cores a step is traced and not executed: it returns zeros and changes no
variable, while the callbacks of `fit` run and assign.

The strategy has no public way to do without a TPU system (checked with TensorFlow 2.21; tests/tpu/).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.tpu.tpu_system_metadata import TPUSystemMetadata

_DEVICE = "/job:localhost/replica:0/task:0/device:{}:{}"
_TPU_ATTRIBUTES = ("_tpu_replicate", "_replication_info", "_xla_compile_device_type")


def logical_cpus(n: int) -> None:
    """Give this process n CPU devices; to be called before TensorFlow first uses one."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * n)


class TPUStrategyOnCPU(tf.distribute.TPUStrategy):
    """TPUStrategy on `cores` logical CPU devices; needs `logical_cpus(cores)` before.

    Args:
        cores: number of replicas; only one trains, see the module.

    Attributes:
        traced: the concrete functions of all `strategy.run` traced so far; each holds one replicated computation.
    """

    def __init__(self, cores: int = 1):
        devices = [SimpleNamespace(name=_DEVICE.format("TPU", i), device_type="TPU") for i in range(cores)]
        system = TPUSystemMetadata(
            num_cores=cores, num_hosts=1, num_of_cores_per_host=cores, topology=None, devices=devices
        )
        super().__init__(SimpleNamespace(get_tpu_system_metadata=lambda: system, tpu_hardware_feature=None))
        extended, cpus = self.extended, [_DEVICE.format("CPU", i) for i in range(cores)]
        extended._tpu_devices = np.array([[cpu] for cpu in cpus], dtype=object)
        extended._host_device = cpus[0]
        extended._device_input_worker_devices = {cpus[0]: cpus}
        extended._host_input_worker_devices = {cpus[0]: [cpus[0]] * cores}
        # A TPU packs a variable's replicas into one handle, which is no input of a computation for a CPU.
        self._enable_packed_variable_in_eager_mode = False
        self.traced: list[Any] = []
        replicated = extended._tpu_function_creator

        def creator(fn: Callable[..., Any], options: Any) -> Callable[..., Any]:
            with tf.Graph().as_default():  # there it gives the plain Python function
                traced = tf.function(replicated(fn, options), autograph=False)

            def call(args: Any, kwargs: Any) -> Any:
                concrete = traced.get_concrete_function(args, kwargs)
                if not any(concrete is known for known in self.traced):
                    self.traced.append(concrete)
                outputs = concrete.structured_outputs
                if cores > 1:
                    return tf.nest.map_structure(lambda o: tf.zeros(o.shape, o.dtype), outputs, expand_composites=True)
                computation = ReplicaComputation(concrete)
                tensors = [t for t in tf.nest.flatten((args, kwargs), expand_composites=True) if tf.is_tensor(t)]
                by_name = dict(zip(_argument_names(concrete), tensors, strict=True))
                values = computation.function(*[by_name[name] for name in computation.arguments])
                return tf.nest.pack_sequence_as(outputs, values, expand_composites=True)

            return call

        extended._tpu_function_creator = creator


class ReplicaComputation:
    """What one replica of a traced `strategy.run` computes.

    Args:
        concrete: one of `TPUStrategyOnCPU.traced`.

    Attributes:
        function: `tf.function(jit_compile=True)` of the computation.
        arguments: the names of its arguments, in order; of the variables that it uses it takes the first replica's.
        replicas: how many replicas compute it together.
        specs: a `tf.TensorSpec` per argument.

    Raises:
        ValueError: `concrete` holds no replicated computation, or several.
    """

    def __init__(self, concrete: Any):
        graph = concrete.graph.as_graph_def()
        metadata = [node for node in graph.node if node.op == "TPUReplicateMetadata"]
        if len(metadata) != 1:
            raise ValueError(f"One computation for TPUs is expected in a trace. Received: computations={len(metadata)}")
        self.replicas = metadata[0].attr["num_replicas"].i
        nodes, resolve = _unreplicated(graph, metadata[0].name)
        outputs = [resolve(tensor.name) for tensor in concrete.graph.outputs]
        effects = [n.name for n in nodes.values() if "_tpu_replicate" in n.attr and n.op.startswith("Assign")]
        used = _ancestors(nodes, [*map(_op_name, outputs), *effects])
        captures = [(tensor, _op_name(inner.name)) for tensor, inner in concrete.graph.captures]
        captures = [(tensor, name) for tensor, name in captures if name in used]
        self.arguments = [name for name in _argument_names(concrete) if name in used]
        inputs = {_op_name(tensor.name): tensor for tensor in concrete.graph.inputs}
        self.specs = [tf.TensorSpec(inputs[name].shape, inputs[name].dtype) for name in self.arguments]

        given = {name for _, name in captures} | set(self.arguments)
        body = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
        body.node.extend(node for name, node in nodes.items() if name in used and name not in given)
        for node in [*body.node, *(node for function in body.library.function for node in function.node_def)]:
            _lower_for_cpu(node)
        self.function = _imported(body, captures, self.arguments, outputs, effects)


def _imported(
    body: Any, captures: list[tuple[Any, str]], arguments: list[str], outputs: list[str], effects: list[str]
) -> Any:
    """The graph `body` as a function of its arguments that returns `outputs` and runs `effects`."""

    @tf.function(jit_compile=True, autograph=False)
    def run(*values: Any) -> list[Any]:
        graph = tf.compat.v1.get_default_graph()
        feed = {f"{name}:0": graph.capture(tensor) for tensor, name in captures}
        feed.update({f"{name}:0": value for name, value in zip(arguments, values, strict=True)})
        fetches = [name for name in outputs if name not in feed]
        results = tf.compat.v1.import_graph_def(body, feed, fetches + effects, name="")
        with tf.control_dependencies(results[len(fetches) :]):
            fetched = dict(zip(fetches, map(tf.identity, results[: len(fetches)]), strict=True))
        return [fetched[name] if name in fetched else feed[name] for name in outputs]

    return run


def _op_name(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _argument_names(concrete: Any) -> list[str]:
    captured = {inner.name for _, inner in concrete.graph.captures}
    return [_op_name(tensor.name) for tensor in concrete.graph.inputs if tensor.name not in captured]


def _unreplicated(graph: Any, metadata: str) -> tuple[dict[str, Any], Callable[[str], str]]:
    """The nodes by name without those that spread a computation over replicas, and tensor name -> what it stands for.

    Of a replicated input or output the first replica's stands for all.
    """
    spread = {"TPUReplicatedInput", "TPUReplicatedOutput"}
    first = {node.name: node.input[0] for node in graph.node if node.op in spread}

    def resolve(name: str) -> str:
        while _op_name(name) in first:
            name = first[_op_name(name)]
        return name

    nodes = {}
    for node in graph.node:
        if node.op not in spread | {"TPUReplicateMetadata", "TPUCompilationResult"}:
            inputs = [f"^{_op_name(resolve(_op_name(i)))}" if i.startswith("^") else resolve(i) for i in node.input]
            node.input[:] = [i for i in inputs if _op_name(i) != metadata]
            nodes[node.name] = node
    return nodes, resolve


def _ancestors(nodes: dict[str, Any], names: list[str]) -> set[str]:
    found: set[str] = set()
    ahead = list(names)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += map(_op_name, nodes[name].input)
    return found


def _lower_for_cpu(node: Any) -> None:
    """Ops that only TPU builds of TensorFlow can lower become ops that give the same HLO."""
    if node.op == "CrossReplicaSum":
        node.op = "XlaAllReduce"
        node.attr["reduce_op"].s, node.attr["mode"].s = b"Add", b"CrossReplica"
    elif node.op == "AllToAll":  # how the first replica's value of a variable is spread to all
        node.op = "Identity"
        for name in [name for name in node.attr if name != "T"]:
            del node.attr[name]
        del node.input[1:]
    for name in _TPU_ATTRIBUTES:
        node.attr.pop(name, None)
    node.device = ""
