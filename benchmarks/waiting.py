"""What a pruning callback costs between two updates: `python benchmarks/waiting.py`.

The same masked network is fitted without a callback, with GradualPruning that has no update due after the first step,
and with others, in turns; each number is the time of a whole epoch, its end included. Every run and the medians are
printed, with one line of JSON.
"""

import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags, logging
from kprune.callbacks import GradualPruning, PruneAtInit, SparsityLogger

import kprune
from kprune.schedules import PolynomialDecay

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 5, "Epochs of each, in turns.")
flags.DEFINE_integer("steps", 1000, "Steps of an epoch.")

CALLBACKS = {
    "none": lambda: [],
    "GradualPruning": lambda: [GradualPruning(PolynomialDecay(0.5, 0.9, 1, 10**9, frequency=10**8))],
    "PruneAtInit": lambda: [PruneAtInit("magnitude", 0.5, verbose=0)],
    "SparsityLogger": lambda: [SparsityLogger(table=False)],
}


def network():
    model = keras.Sequential([keras.Input((784,)), *(keras.layers.Dense(n, "relu") for n in (300, 100))])
    model.add(keras.layers.Dense(10))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kprune.prune(model, "magnitude", 0.5, verbose=0)
    return model


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.FATAL)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(FLAGS.steps * 32, 784)).astype("float32"), draw.integers(0, 10, FLAGS.steps * 32)
    models, seconds = {name: network() for name in CALLBACKS}, {name: [] for name in CALLBACKS}
    for repeat in range(FLAGS.repeats + 1):  # the first compiles
        for name, make in CALLBACKS.items():
            start = time.perf_counter()
            models[name].fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=make())
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["none"])
    for name, runs in seconds.items():
        ratio = statistics.median(runs) / plain
        shown = " ".join(f"{run:.3f}" for run in runs)
        print(f"{name:<16} {1e3 * plain / FLAGS.steps:.2f} ms a step without, ratio {ratio:.3f} ({shown} s)")
    versions = {"keras": keras.__version__, "kprune": kprune.__version__}
    print(json.dumps({"backend": keras.backend.backend(), "steps": FLAGS.steps, "versions": versions, "s": seconds}))


if __name__ == "__main__":
    app.run(main)
