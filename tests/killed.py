"""Trainings that may be killed: `python killed.py LIBRARY` for test_faults.py.

It reads lines of JSON `[KIND, FOLDER, POINT, COUNT]`. Each trains in a process of its own, with a backup in FOLDER,
kills itself by SIGKILL when POINT is reached for the COUNT-th time, and writes FOLDER/result.npz if it comes to its
end. Says of each in a line how its process ended. The processes are forked after all is imported, which takes longer
than to train, and before anything has run.
"""

import importlib
import json
import os
import pathlib
import signal
import sys
import threading
import traceback

import numpy as np
from helpers import CHEAP, EachBatch
from kprune.callbacks import BackupAndRestore, EarlyBird, GradualPruning, LotteryTicket, SynFlow
from sklearn.datasets import load_digits

import kprune
from kprune.config import PruningConfig
from kprune.lottery import rewind
from kprune.masks import MaskedWeight
from kprune.masks import api as masks
from kprune.schedules import PolynomialDecay

FILES = {"half a file": (pathlib.Path, "write_bytes"), "before the rename": (os, "replace")}
MOMENTS = {
    "in pruning": (PruningConfig, "masks"),
    "in setting masks": (MaskedWeight, "write"),
    "in rewinding": (rewind, "reapply_masks"),
}
POINTS = (*FILES, *MOMENTS, "in a step")
KINDS = (
    "lottery",
    "find_ticket",
    "synflow",
    "gradual",
    "large_init",
    "early_bird",
    *("tf_keras lottery", "tf_keras gradual"),
)
BATCH = 60
STEPS = 30  # 1797 images


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point, count, library):
    """Have the process killed at the `count`-th call of the function that stands for the point.

    Returns:
        A function that `EachBatch` calls.
    """
    if point == "in a step":
        # From the first step on, as the seconds before it are spent on compiling.
        timer = threading.Timer(0.03 * count, die)
        timer.daemon = True
        return lambda model: None if timer.ident else timer.start()
    if point == "never":
        return lambda model: None
    owner, name = {**FILES, **MOMENTS}[point]
    if point in FILES and library == "tf_keras":
        # With these TensorFlow (2.21) writes which checkpoint is the newest; it has no public name for them.
        owner = importlib.import_module("tensorflow.python.lib.io.file_io")
        name = {"half a file": "write_string_to_file", "before the rename": "rename"}[point]
    function, calls = getattr(owner, name), [0]

    def deadly(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            if point == "half a file":
                content = args[1] if isinstance(args[1], bytes) else args[1].encode()
                with open(args[0], "wb") as file:
                    file.write(content[: len(content) // 2])
            die()
        return function(*args, **kwargs)

    setattr(owner, name, deadly)
    return lambda model: None


def network(library):
    keras = importlib.import_module(library)
    layers = keras.layers
    keras.utils.set_random_seed(1)
    # tf_keras saves the state of no dropout.
    dropout = [layers.Dropout(0.2, seed=3)] if library == "keras" else []
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(24, "relu"),
            layers.BatchNormalization(),
            *dropout,
            layers.Dense(10, "softmax"),
        ]
    )
    model = kprune.mask(model).model if library == "tf_keras" else model
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 3 * STEPS)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"], **CHEAP)
    return model


def main(kind, folder, point, count):
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    folder = pathlib.Path(folder)
    library = "tf_keras" if kind.startswith("tf_keras") else "keras"
    kind = kind.removeprefix("tf_keras ")
    model, each_batch = network(library), EachBatch(arm(point, count, library))

    def fit(epochs, *callbacks, backup="backup.npz"):
        if library == "keras":
            data = {"x": kprune.RewindableBatches(x, y, BATCH, model, seed=2)}
            saving = BackupAndRestore(folder / backup)
        else:
            data = {"x": x, "y": y, "batch_size": BATCH}
            saving = importlib.import_module("tf_keras").callbacks.BackupAndRestore(str(folder / "backup"))
        callbacks = [*callbacks, saving, each_batch]
        return model.fit(**data, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)

    extra = {}
    if kind == "lottery":
        lottery = LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to=20)
        fit(lottery.total_epochs(STEPS), lottery)
        extra = {"ticket": np.array(lottery.ticket.checksum), "results": np.array(str(lottery.results))}
    elif kind == "find_ticket":

        def train(model, level):
            return fit(2, *level.callbacks, backup=f"level-{level.number}/backup.npz")

        ticket = kprune.find_ticket(model, train, levels=2, rate=0.5, rewind="none", folder=folder, verbose=False)
        extra = {"ticket": np.array(ticket.checksum), "results": np.array(str(ticket.about["results"]))}
    elif kind == "synflow":
        fit(4, SynFlow(0.8, rounds=10, verbose=False))
    elif kind == "early_bird":
        bird = EarlyBird(sparsity=0.6, threshold=0.02, patience=3)
        fit(8, bird)
        extra = {"settled_at": np.array(bird.settled_at)}
    else:
        schedule = PolynomialDecay(0.0, 0.8, begin_step=10, end_step=100, frequency=10)
        fit(4, GradualPruning(schedule, criterion="magnitude" if kind == "gradual" else kind))
    arrays = rewind.snapshot(model).to_arrays() | {f"mask/{k}": m for k, m in masks.current_masks(model).items()}
    np.savez(folder / "result.npz", **extra, **{str(i): array for i, array in enumerate(arrays.values())})


def run(kind, folder, point, count):
    """How a process ends that trains: 0, or the signal that killed it, negative."""
    child = os.fork()
    if not child:
        try:
            main(kind, folder, point, int(count))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        print(run(*json.loads(line)), flush=True)
