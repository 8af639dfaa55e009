"""The command line on several CPU devices: `python on_devices.py NUMBER words...`."""

import os
import sys

# On a busy machine the threads of four devices may need more than the 40 s that XLA waits for them to meet.
# Most of the time would go into optimizing steps of which a few are taken.
os.environ["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_backend_optimization_level=0"

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
