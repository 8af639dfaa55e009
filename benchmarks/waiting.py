"""What a pruning callback costs between two updates: `python benchmarks/waiting.py`.

The same masked network is fitted without a callback, with GradualPruning that has no update due after the first step,
and with others, in turns; each number is the time of a fit's second epoch by its steps, from the first step to the
epoch's end, where EarlyBird draws masks. Pruning at initialization and rewinding come before. With a generator, which
adds noise to the inputs, the host has work of its own that can overlap with the step.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags
from kprune.callbacks import EarlyBird, GradualPruning, LotteryTicket, PruneAtInit, SparsityLogger
from timing import report, start

import kprune
from kprune.schedules import PolynomialDecay

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 5, "Fits of two epochs of each, in turns.")
flags.DEFINE_integer("steps", 1000, "Steps of an epoch; with a generator, a quarter of them.")

SCHEDULE = PolynomialDecay(0.5, 0.9, 1, 10**9, frequency=10**8)
CALLBACKS = {
    "none": lambda: [],
    "GradualPruning": lambda: [GradualPruning(SCHEDULE)],
    "GradualPruning by movement": lambda: [GradualPruning(SCHEDULE, "movement")],
    "PruneAtInit": lambda: [PruneAtInit("magnitude", 0.5, verbose=0)],
    "LotteryTicket": lambda: [LotteryTicket(levels=1, epochs_per_level=1)],
    "EarlyBird": lambda: [EarlyBird("magnitude", 0.5, stop=False)],
    "SparsityLogger": lambda: [SparsityLogger(table=False)],
}


class Clock(keras.callbacks.Callback):
    """The seconds of the last epoch, with what the callbacks before this one do at its end."""

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self.begun


def network():
    model = keras.Sequential([keras.Input((784,)), *(keras.layers.Dense(n, "relu") for n in (300, 100))])
    model.add(keras.layers.Dense(10))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kprune.prune(model, "magnitude", 0.5, verbose=0)
    return model


def measure(case, names, steps, fit):
    models, seconds = {name: network() for name in names}, {name: [] for name in names}
    for repeat in range(FLAGS.repeats + 1):  # the first compiles
        for name in names:
            clock = Clock()
            fit(models[name], epochs=2, verbose=0, callbacks=[*CALLBACKS[name](), clock])
            if repeat:
                seconds[name].append(clock.seconds)
    report("between updates", case, {name: [run / steps for run in runs] for name, runs in seconds.items()}, "none")


def main():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(FLAGS.steps * 32, 784)).astype("float32"), draw.integers(0, 10, FLAGS.steps * 32)

    def noisy():
        while True:
            yield x[:128] + draw.normal(0, 0.1, (128, 784)).astype("float32"), y[:128]

    def on_arrays(model, **options):
        model.fit(x, y, batch_size=32, shuffle=False, **options)

    def on_generator(model, **options):
        model.fit(noisy(), steps_per_epoch=FLAGS.steps // 4, **options)

    measure("lenet-300-100", list(CALLBACKS), FLAGS.steps, on_arrays)
    measure("lenet-300-100, generator", ["none", "GradualPruning", "PruneAtInit"], FLAGS.steps // 4, on_generator)


if __name__ == "__main__":
    start(main)
