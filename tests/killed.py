"""A training that may be killed: `python killed.py KIND FOLDER POINT COUNT` (run by test_faults.py).

It trains, with a backup in FOLDER, kills itself by SIGKILL when POINT is reached for the COUNT-th time, and writes
FOLDER/result.npz if it comes to its end.
"""

import os
import pathlib
import signal
import sys
import threading

import keras
import numpy as np
from keras import layers
from kprune.callbacks import BackupAndRestore, GradualPruning, LotteryTicket, SynFlow
from sklearn.datasets import load_digits

import kprune
from kprune import masks, rewind
from kprune.prune import Plan
from kprune.schedules import PolynomialDecay

POINTS = {
    "half a file": (pathlib.Path, "write_bytes"),
    "before the rename": (os, "replace"),
    "in pruning": (Plan, "masks"),
    "in setting masks": (masks, "reset_slots"),
    "in rewinding": (rewind, "reapply_masks"),
    "in a step": (keras.callbacks.History, "on_train_begin"),
}
KINDS = ("lottery", "find_ticket", "synflow", "gradual", "large_init")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point, count):
    """Have the process killed at the `count`-th call of the function that stands for the point."""
    if point == "never":
        return
    owner, name = POINTS[point]
    function, calls = getattr(owner, name), [0]

    def deadly(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count and point == "half a file":
            args[0].open("wb").write(args[1][: len(args[1]) // 2])
        if point == "in a step":
            timer = threading.Timer(0.12 * count, die)
            timer.daemon = True
            timer.start()
        elif calls[0] == count:
            die()
        return function(*args, **kwargs)

    setattr(owner, name, deadly)


def network():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(24, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=3),
            layers.Dense(10, "softmax"),
        ]
    )
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 90)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main(kind, folder, point, count):
    digits = load_digits()
    folder = pathlib.Path(folder)
    model = network()
    batches = kprune.RewindableBatches((digits.data / 16).astype("float32"), digits.target, 60, model, seed=2)

    def fit(epochs, *callbacks, backup="backup.npz"):
        return model.fit(
            batches,
            epochs=epochs,
            callbacks=[*callbacks, BackupAndRestore(folder / backup)],
            shuffle=False,
            verbose=0,
        )

    arm(point, count)
    extra = {}
    if kind == "lottery":
        lottery = LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to=20)
        fit(lottery.total_epochs(len(batches)), lottery)
        extra = {"ticket": np.array(lottery.ticket.checksum), "results": np.array(str(lottery.results))}
    elif kind == "find_ticket":

        def train(model, level):
            return fit(2, *level.callbacks, backup=f"level-{level.number}/backup.npz")

        ticket = kprune.find_ticket(model, train, levels=2, rate=0.5, rewind="none", folder=folder, verbose=False)
        extra = {"ticket": np.array(ticket.checksum), "results": np.array(str(ticket.about["results"]))}
    elif kind == "synflow":
        fit(4, SynFlow(0.8, rounds=10, verbose=False))
    else:
        schedule = PolynomialDecay(0.0, 0.8, begin_step=10, end_step=100, frequency=10)
        fit(4, GradualPruning(schedule, criterion="magnitude" if kind == "gradual" else kind))
    arrays = rewind.snapshot(model).to_arrays() | {f"mask/{k}": m for k, m in masks.current_masks(model).items()}
    np.savez(folder / "result.npz", **extra, **{str(i): array for i, array in enumerate(arrays.values())})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
