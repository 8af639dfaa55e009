"""The command line on several CPU devices: `python on_devices.py NUMBER words...`."""

import sys

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
