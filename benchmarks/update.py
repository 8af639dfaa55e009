"""How long one magnitude update takes, beside np.partition of the same numbers: `python benchmarks/update.py`.

An update scores all weights, finds the cut of all of them together, makes the masks, writes masks and weights, and
zeroes the slots of Adam where masks change: what GradualPruning does between two steps. np.partition only finds the
cut, of all magnitudes in one array that lies there already. The two take turns; medians, and one line of JSON per size.
"""

import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags, logging

import kprune

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


def measure(millions):
    keras.utils.set_random_seed(0)
    model = network(float(millions) * 1e6)
    config, sparsity = kprune.PruningConfig("magnitude"), 0.5
    size = sum(weight.size for weight in kprune.masked_weights(model))
    ours, plain = [], []
    for _ in range(FLAGS.repeats + 1):  # the first compiles what there is to compile
        magnitudes = np.concatenate([np.abs(w.value()).ravel() for w in kprune.masked_weights(model)])
        start = time.perf_counter()
        np.partition(magnitudes, int(sparsity * size))
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        kprune.set_masks(model, config.masks(model, sparsity))
        ours.append(time.perf_counter() - start)
        sparsity += 0.4 / FLAGS.repeats
    ours, plain = ours[1:], plain[1:]
    ratio = statistics.median(ours) / statistics.median(plain)
    print(
        f"{size / 1e6:.1f} M weights, {keras.backend.backend()}: update {1e3 * statistics.median(ours):.0f} ms, "
        f"np.partition {1e3 * statistics.median(plain):.0f} ms, ratio {ratio:.2f}"
    )
    versions = {"keras": keras.__version__, "numpy": np.__version__, "kprune": kprune.__version__}
    row = {"weights": size, "backend": keras.backend.backend(), "threads": len(os.sched_getaffinity(0))}
    print(json.dumps({**row, "versions": versions, "update_s": ours, "partition_s": plain, "ratio": ratio}), flush=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    for millions in FLAGS.millions:
        measure(millions)


if __name__ == "__main__":
    app.run(main)
