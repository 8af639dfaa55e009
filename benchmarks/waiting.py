"""What a pruning callback costs between two updates: `python benchmarks/waiting.py`.

The same masked network is fitted without a callback, with GradualPruning that has no update due after the first step,
and with others, in turns; each number is the time of an epoch, its end included, by its steps. The first epoch of each
fit does not count: pruning at initialization is in it, and an update.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags
from kprune.callbacks import GradualPruning, PruneAtInit, SparsityLogger
from timing import report, start

import kprune
from kprune.schedules import PolynomialDecay

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 5, "Fits of two epochs of each, in turns.")
flags.DEFINE_integer("steps", 1000, "Steps of an epoch.")

SCHEDULE = PolynomialDecay(0.5, 0.9, 1, 10**9, frequency=10**8)
CALLBACKS = {
    "none": lambda: [],
    "GradualPruning": lambda: [GradualPruning(SCHEDULE)],
    "GradualPruning by movement": lambda: [GradualPruning(SCHEDULE, "movement")],
    "PruneAtInit": lambda: [PruneAtInit("magnitude", 0.5, verbose=0)],
    "SparsityLogger": lambda: [SparsityLogger(table=False)],
}


class Clock(keras.callbacks.Callback):
    """The seconds of the second epoch, with what the callbacks before this one do at its end."""

    def on_epoch_end(self, epoch, logs=None):
        self.seconds, self.before = time.perf_counter() - getattr(self, "before", 0.0), time.perf_counter()


def network():
    model = keras.Sequential([keras.Input((784,)), *(keras.layers.Dense(n, "relu") for n in (300, 100))])
    model.add(keras.layers.Dense(10))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kprune.prune(model, "magnitude", 0.5, verbose=0)
    return model


def main():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(FLAGS.steps * 32, 784)).astype("float32"), draw.integers(0, 10, FLAGS.steps * 32)
    models, seconds = {name: network() for name in CALLBACKS}, {name: [] for name in CALLBACKS}
    for repeat in range(FLAGS.repeats + 1):  # the first compiles
        for name, make in CALLBACKS.items():
            clock = Clock()
            models[name].fit(x, y, batch_size=32, shuffle=False, epochs=2, verbose=0, callbacks=[*make(), clock])
            if repeat:
                seconds[name].append(clock.seconds)
    per_step = {name: [run / FLAGS.steps for run in runs] for name, runs in seconds.items()}
    report("between updates", "lenet-300-100", per_step, "none")


if __name__ == "__main__":
    start(main)
