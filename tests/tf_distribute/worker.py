"""A worker of a cluster: `python worker.py FOLDER [KIND VICTIM EPOCH]` (run by test_multi_worker.py, with TF_CONFIG).

It makes the trainings of FOLDER/killed that have not come to their end: in that of KIND, worker VICTIM kills itself by
SIGKILL in the midst of EPOCH. If none is named it goes on to FOLDER/whole, where each is made without a kill, and to
FOLDER/each, where every callback is in a training, of either Keras.
"""

import json
import os
import signal
import sys
from functools import cache
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from contract_rows import KERAS_3_ONLY
from distributed import BATCH_SIZE, CALLBACKS, STEPS, Record, begin, digits, network
from kprune.callbacks import GradualPruning, LotteryTicket, SparsityLogger, SynFlow
from kprune.callbacks.base import Callback

from kprune.lottery.rewind import snapshot
from kprune.masks.pulls import is_pulled
from kprune.schedules import PolynomialDecay

RANK = json.loads(os.environ["TF_CONFIG"])["task"]["index"] if "TF_CONFIG" in os.environ else 0
# It finds the other workers, which has to come before TensorFlow's first operation.
STRATEGY = tf.distribute.MultiWorkerMirroredStrategy() if "TF_CONFIG" in os.environ else tf.distribute.get_strategy()
# kind -> what makes the callback, given the folder of a worker; and the epochs of its fit.
KINDS = {
    "GradualPruning": (
        lambda own: GradualPruning(PolynomialDecay(0.0, 0.8, begin_step=2, end_step=16, frequency=2), "movement"),
        3,
    ),
    "SynFlow": (lambda own: SynFlow(0.8, rounds=5, verbose=False), 3),
    "LotteryTicket": (
        lambda own: LotteryTicket(levels=2, epochs_per_level=1, rate=0.5, rewind_to=3, path=own / "ticket.npz"),
        3,
    ),
}
# The callbacks of kprune's that are in no training of these, and for Keras 3 all.
WITH = [
    *(("tf_keras", name) for name in CALLBACKS if name not in KINDS and name not in KERAS_3_ONLY),
    *(("keras", name) for name, row in CALLBACKS.items() if row.loops),
]


class Die(Callback):
    """Kills the process in the midst of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.running = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.running = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.running == self.epoch and batch == STEPS // 2:
            os.kill(os.getpid(), signal.SIGKILL)


def train(kind, folder, *more):
    """A fit of tf_keras with a callback, a backup and logs: the model, and the masks at each batch's end."""
    make, epochs = KINDS[kind]
    own = folder / f"worker-{RANK}" / kind
    own.mkdir(parents=True, exist_ok=True)
    with STRATEGY.scope():
        model = network("tf_keras")
    record = Record(replicas=1)
    backup = tf_keras.callbacks.BackupAndRestore(str(folder / f"backup-{kind}"))
    callbacks = [make(own), SparsityLogger(own / "logs"), backup, record, *more]
    x, y = digits()
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return model, record.masks


@cache
def made(library):
    """A model and its begin; one for all callbacks, to trace it once."""
    with STRATEGY.scope():
        model = network(library)
    return model, snapshot(model)


@cache
def step_of_a_loop(pulled):
    """A function of a batch that trains the model of Keras 3, which may have pulls, on it, on all workers."""
    model, _ = made("keras")

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        variables = model.trainable_variables
        model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    return tf.function(lambda batch: STRATEGY.run(step, args=batch), autograph=False)


def loop(model, callbacks, epochs):
    """What Keras 3 can do on several workers: a loop of one's own that calls the callbacks."""
    data = STRATEGY.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(digits()).batch(BATCH_SIZE))
    callbacks = keras.callbacks.CallbackList(callbacks, model=model, epochs=epochs, steps=STEPS)
    callbacks.on_train_begin()
    run = step_of_a_loop(is_pulled(model))
    for epoch in range(epochs):
        callbacks.on_epoch_begin(epoch)
        for number, batch in enumerate(data):
            run(batch)
            callbacks.on_train_batch_end(number)
        callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()


def train_with(library, name, folder):
    """A training with a callback and nothing else; as `train`."""
    row, (model, begins), record = CALLBACKS[name], made(library), Record(replicas=1)
    begin(model, begins, row)
    own = folder / f"worker-{RANK}" / f"{library}-{name}"
    own.mkdir(parents=True, exist_ok=True)
    callbacks = [row.make(own), record]
    if library == "keras":
        loop(model, callbacks, row.epochs)
    else:
        x, y = digits()
        model.fit(x, y, batch_size=BATCH_SIZE, epochs=row.epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return model, record.masks


def keras_fit():
    """Keras's own fit of a plain dense model without kprune."""
    with STRATEGY.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    model.fit(np.ones((8, 4), "float32"), np.ones((8, 1), "float32"), batch_size=4, verbose=0)


def end_of(function, *arguments):
    """How a call ends: the class of its exception, and what it says."""
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", ""


def save(path, model, masks):
    """Weights, statistics and optimizer in the end, and the masks at each batch's end."""
    arrays = {f"model/{name}": array for name, array in snapshot(model).to_arrays().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays, **{f"mask/{b}/{i}": m for b, now in enumerate(masks) for i, m in enumerate(now)})


def train_all(folder, last=None, die=None):
    """Makes each training that has not come to its end yet; the one called `last` with the callback `die`."""
    for kind in KINDS:
        result = folder / f"result-{RANK}" / f"{kind}.npz"
        if not result.exists():
            save(result, *train(kind, folder, *([die] if die and kind == last else [])))


def main(folder, last=None, victim="", epoch=""):
    folder = Path(folder)
    train_all(folder / "killed", last, Die(int(epoch)) if last and int(victim) == RANK else None)
    train_all(folder / "whole")
    each = folder / "each"
    for library, name in WITH:
        save(each / f"result-{RANK}" / f"{library}-{name}.npz", *train_with(library, name, each))
    ends = {"keras_fit": end_of(keras_fit), "backup": end_of(train_with, "tf_keras", "BackupAndRestore", each)}
    (each / f"result-{RANK}" / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
