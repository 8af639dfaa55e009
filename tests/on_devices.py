"""The command line on several CPU devices: `python on_devices.py NUMBER words...`."""

import importlib.metadata
import os
import sys

# Most of the time would go into optimizing steps of which a few are taken. On a busy machine the threads of four
# devices may need more than the 40 s that XLA waits for them to meet. A flag that XLA does not know ends the process,
# though, and JAX 0.7 has no such one.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) >= (0, 10)
    else ""
)

import keras

from kprune.cli import main as cli

if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
else:
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
sys.exit(cli.main(sys.argv[2:]))
