"""Prints how many bytes a weight a process holds while 18 million weights are masked, and once they are stripped."""

import ctypes
import gc
import os

# What is freed goes back to the system at once: malloc, and in TensorFlow the pool of oneDNN, keep it for what comes.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD

import keras  # noqa: E402

import kprune  # noqa: E402


def network(units):
    return keras.Sequential([keras.Input((units,)), keras.layers.Dense(units), keras.layers.Dense(units)])


def resident():
    gc.collect()
    with open("/proc/self/status") as status:
        return 1024 * int(status.read().partition("RssAnon:")[2].split()[0])


small, model = network(64), network(3000)
kprune.prune(small, "magnitude", 0.5)  # what is imported and compiled once stays for good
for v in model.variables:
    keras.ops.convert_to_numpy(v)
start = resident()
for sparsity in (0.5, 0.8, 0.9, 0.95, 0.96):
    kprune.prune(model, "magnitude", sparsity)
masked = resident()
kprune.strip(model)
print((masked - start) / model.count_params(), (resident() - start) / model.count_params())
