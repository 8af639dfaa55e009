"""What a pruning callback costs between two updates: `python benchmarks/waiting.py`.

The same masked network is fitted without a callback, with one that does nothing, with GradualPruning that has no update
due after the first step, and with others, in turns, each time in another order; each number is the time of a fit's
second epoch by its steps, from the first step to the epoch's end, where EarlyBird draws masks. Pruning at
initialization and rewinding come before. With a generator, which adds noise to the inputs, the host has work of its own
that can overlap with the step. What a tracker costs depends on how much a step computes for each weight: little in
LeNet-300-100, more in LeNet-5.
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
    "Callback": lambda: [keras.callbacks.Callback()],
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


def lenet_300_100():
    return [keras.Input((784,)), *(keras.layers.Dense(n, "relu") for n in (300, 100))]


def lenet_5():
    convolutions = [keras.layers.Conv2D(n, 5, activation="relu") for n in (6, 16)]
    pooled = [layer for one in convolutions for layer in (one, keras.layers.MaxPooling2D())]
    dense = [keras.layers.Dense(n, "relu") for n in (120, 84)]
    return [keras.Input((784,)), keras.layers.Reshape((28, 28, 1)), *pooled, keras.layers.Flatten(), *dense]


def network(layers):
    model = keras.Sequential([*layers(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kprune.prune(model, "magnitude", 0.5, verbose=0)
    return model


def measure(case, layers, names, steps, fit):
    models, seconds = {name: network(layers) for name in names}, {name: [] for name in names}
    for repeat in range(FLAGS.repeats + 1):  # the first compiles
        for name in [*names[repeat % len(names) :], *names[: repeat % len(names)]]:
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

    measure("lenet-300-100", lenet_300_100, list(CALLBACKS), FLAGS.steps, on_arrays)
    names = ["none", "GradualPruning", "GradualPruning by movement", "PruneAtInit"]
    measure("lenet-300-100, generator", lenet_300_100, names, FLAGS.steps // 4, on_generator)
    measure("lenet-5", lenet_5, names[:3], FLAGS.steps, on_arrays)


if __name__ == "__main__":
    start(main)
