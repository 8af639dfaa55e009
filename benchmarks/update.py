"""How long one magnitude update takes, and how much memory, beside np.partition: `python benchmarks/update.py`.

An update scores all weights, finds the cut of all of them together, makes the masks, writes masks and weights, and
gives the slots of Adam their initial value where it prunes: what GradualPruning does between two steps. np.partition
only finds the cut, of all magnitudes in one array that lies there already. The two take turns. Memory is what the
process holds at most during an update, beyond what it held before, in bytes for each weight (Linux).
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags
from timing import report, start

import kprune
from kprune.masks import begin_fit, end_fit
from kprune.pruning import Pruner

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 5, "Updates of each size, in turns with np.partition.")
flags.DEFINE_list("millions", ["0.3", "25.5"], "Numbers of weights, in millions.")


def network(weights):
    """A stack of equal layers with as many weights, about, compiled with Adam, whose slots are made."""
    layers = 1 if weights < 1e6 else 12
    units = round((weights / layers) ** 0.5)
    model = keras.Sequential([keras.Input((units,)), *(keras.layers.Dense(units) for _ in range(layers))])
    model.compile("adam", "mse")
    kprune.mask(model)
    model.optimizer.build(model.trainable_variables)
    return model


def wait(model):
    """Until what JAX was asked for is there."""
    if keras.backend.backend() == "jax":
        for v in [*model.variables, *model.optimizer.variables]:
            v.value.block_until_ready()


def resident(peak=False):
    """Bytes of this process in memory: now, or the most since `forget_peak`."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM" if peak else "VmRSS"))
    return 1024 * int(line.split()[1])


def forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Updating(keras.callbacks.Callback):
    """What calls an update in a fit, in which the optimizers are known."""

    def update(self, pruner, model, sparsity):
        pruner.update(model, sparsity)


def measure(millions):
    keras.utils.set_random_seed(0)
    model = network(float(millions) * 1e6)
    pruner, sparsity = Pruner(kprune.PruningConfig("magnitude")), 0.5
    size = sum(weight.size for weight in kprune.masked_weights(model))
    ours, plain, memory = [], [], []
    begin_fit(model)
    for _ in range(FLAGS.repeats + 1):
        magnitudes = np.concatenate([np.abs(w.value()).ravel() for w in kprune.masked_weights(model)])
        start = time.perf_counter()
        np.partition(magnitudes, int(sparsity * size))
        plain.append(time.perf_counter() - start)
        del magnitudes
        forget_peak()
        before, start = resident(), time.perf_counter()
        Updating().update(pruner, model, sparsity)
        wait(model)
        ours.append(time.perf_counter() - start)
        memory.append((resident(peak=True) - before) / size)
        sparsity += 0.4 / FLAGS.repeats
    end_fit(model)
    # The first compiles what there is to compile.
    seconds = {"np.partition": plain[1:], "update": ours[1:]}
    report("update", f"{size / 1e6:.1f} M weights", seconds, "np.partition", bytes_a_weight=max(memory[1:]))


def main():
    for millions in FLAGS.millions:
        measure(millions)


if __name__ == "__main__":
    start(main)
