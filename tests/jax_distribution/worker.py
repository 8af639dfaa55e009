"""One of two processes that train together: `python worker.py RANK PORT FOLDER JOBS DEATH` (run by test_processes.py).

A job is "DISTRIBUTION-CALLBACK". Each process writes what a job ends with to FOLDER/JOB-RANK.npz and passes over the
jobs that have come to their end; kprune's own files go to FOLDER/files-RANK. DEATH is "never", or JOB:STEP, where the
second process kills itself by SIGKILL.
"""

import os
import pathlib
import signal
import sys
import traceback

if __name__ == "__main__":
    sys.modules["tensorflow"] = None  # see conftest.py
    # Most of the time goes into compiling steps of which a few are taken.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

import jax
import keras
import numpy as np
from helpers import halve
from kprune.callbacks.base import Callback
from small import BATCH, STEPS, data, distribute, network

import kprune
from kprune import callbacks
from kprune.lottery.rewind import snapshot
from kprune.masks import current_masks
from kprune.runtime.optimizers import iterations
from kprune.schedules import PolynomialDecay

EPOCHS = 4


SNIP_BATCH = tuple(array[:BATCH] for array in data())
# name -> what makes the callback, given a folder for its files
CALLBACKS = {
    "ACDC": lambda folder: callbacks.ACDC(0.7, begin=2, end=18, cycles=2),
    "ADMM": lambda folder: callbacks.ADMM(0.7, rho=0.1, rounds=2, updates=2, begin=2, end=18),
    # By a criterion that computes on the devices.
    "GradualPruning": lambda folder: callbacks.GradualPruning(
        PolynomialDecay(0.0, 0.7, 2, 20, frequency=9), "snip", data=SNIP_BATCH
    ),
    # By sums that lie beside the weights.
    "GradualPruning by movement": lambda folder: callbacks.GradualPruning(
        PolynomialDecay(0.0, 0.7, 2, 20, frequency=9), "movement"
    ),
    "SynFlow": lambda folder: callbacks.SynFlow(0.7, rounds=5, verbose=False),
    "LotteryTicket": lambda folder: callbacks.LotteryTicket(
        levels=2, epochs_per_level=2, rate=0.5, rewind_to=3, path=folder / "ticket.npz"
    ),
    "PruneAtInit": lambda folder: callbacks.PruneAtInit("snip", 0.7, data=SNIP_BATCH, verbose=False),
    "EarlyBird": lambda folder: callbacks.EarlyBird(sparsity=0.7, patience=2, threshold=1.0, stop=False),
    "DynamicSparseTraining": lambda folder: callbacks.DynamicSparseTraining(
        "rigl", 0.7, frequency=5, stop=20, data=SNIP_BATCH
    ),
    "Supermask": lambda folder: callbacks.Supermask("edge_popup", 0.7),
    "SynFlowPenalty": lambda folder: callbacks.SynFlowPenalty(0.01, frequency=4),
    "STR": lambda folder: callbacks.STR(0.7, start=-2.0, decay=1.0, frequency=1),
    # The initial values have faded at step 16.
    "DropBack": lambda folder: callbacks.DropBack(0.7, decay=0.35),
    # Without a folder: TensorFlow, which writes for TensorBoard, cannot be imported here.
    "SparsityLogger": lambda folder: callbacks.SparsityLogger(),
    "TakeSnapshot": lambda folder: callbacks.TakeSnapshot(3),
    "BackupAndRestore": lambda folder: callbacks.BackupAndRestore(folder / "backup.npz"),
}
PRUNE_NOTHING = ("SparsityLogger", "SynFlowPenalty", "TakeSnapshot", "BackupAndRestore")


class Death(Callback):
    """Kills this process at a step of the fit, if it gets there."""

    def __init__(self, step):
        super().__init__()
        self.step, self.begun = step, 0

    def on_train_batch_end(self, batch, logs=None):
        self.begun += 1
        if self.begun == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(distribution, name, folder, death=None):
    """All that a training ends with, as arrays; its files go to the folder."""
    with distribute(distribution):
        model = network()
        if name in PRUNE_NOTHING:
            kprune.mask(model)
            halve(model)
        batches = kprune.RewindableBatches(*data(), BATCH, model, seed=2)
        callback = CALLBACKS[name](folder)
        epochs = callback.total_epochs(STEPS) if name == "LotteryTicket" else EPOCHS
        others = (
            [] if name == "BackupAndRestore" else [callbacks.BackupAndRestore(folder / f"{distribution}-{name}.npz")]
        )
        others += [] if death is None else [Death(death)]
        fitted = model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback, *others])
        masks = {f"mask/{path}": mask for path, mask in current_masks(model).items()}
        steps = {"iterations": np.array(iterations(model.optimizer)), "first epoch": np.array(fitted.epoch[0])}
        return {**masks, **snapshot(model).to_arrays(), **steps}


def main(rank, port, folder, jobs, death):
    folder = pathlib.Path(folder)
    own = folder / f"files-{rank}"
    own.mkdir(exist_ok=True)
    keras.utils.set_random_seed(1)  # or the processes have to agree on one
    keras.distribution.initialize(f"127.0.0.1:{port}", 2, int(rank))
    assert (jax.process_count(), len(keras.distribution.list_devices())) == (2, 2)
    fatal, _, step = death.partition(":")
    for job in jobs.split(","):
        result = folder / f"{job}-{rank}.npz"
        if not result.exists():
            dies = int(step) if job == fatal and rank == "1" else None
            np.savez(result, **train(*job.split("-"), own, dies))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the usual end would wait for the other process, which waits for this one
