"""What the tests of tf.distribute and the workers they start share: networks, data, callbacks, and a record."""

import importlib
from dataclasses import dataclass

import numpy as np
from kprune.callbacks.base import Callback
from sklearn.datasets import load_digits

import kprune
from kprune.schedules import PolynomialDecay

BATCH_SIZE, STEPS = 32, 6
SIZE = 3 * 3 * 4 + 6 * 6 * 4 * 12 + 12 * 10  # of all masked weights of `network`


def digits():
    """Images (192, 8, 8, 1) and classes (192,): six batches of 32."""
    data, size = load_digits(), BATCH_SIZE * STEPS
    return (data.images[:size, ..., None] / 16).astype("float32"), data.target[:size]


def network(library, **compile_args):
    """A compiled network of convolution, normalization and dense layers; on tf_keras under kprune's masks.

    Its statistics are those of the whole batch, over all replicas, so it trains as on one device.
    """
    keras = importlib.import_module(library)
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(synchronized=True, name="norm"),
            layers.Flatten(),
            layers.Dense(12, activation="relu", name="hidden"),
            layers.Dense(10, name="logits"),
        ]
    )
    if library == "tf_keras":
        model = kprune.mask(model).model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, jit_compile=False, **compile_args)
    return model


def on_replicas(model, variable):
    """The variable's value on each replica of this process."""
    value = variable if callable(variable.value) else variable.value  # tf_keras's own; TensorFlow's inside Keras 3's
    return [np.asarray(part) for part in model.distribute_strategy.experimental_local_results(value)]


class Record(Callback):
    """At each batch end: replicas agree on masks and weights, pruned entries are 0; `masks` holds the masks."""

    def __init__(self, replicas):
        super().__init__()
        self.replicas, self.masks = replicas, []

    def on_train_batch_end(self, batch, logs=None):
        now = []
        for weight in kprune.masked_weights(self.model):
            masks, values = on_replicas(self.model, weight.mask), on_replicas(self.model, weight.variable)
            assert len(masks) == len(values) == self.replicas
            for mask, value in zip(masks, values, strict=True):
                np.testing.assert_array_equal(mask, masks[0])
                np.testing.assert_array_equal(value, values[0])
                assert weight.store == "latent" or not np.any(value[~mask.astype(bool)])
            now.append(masks[0].astype(bool))
        self.masks.append(now)


@dataclass(frozen=True)
class CallbackRow:
    """A callback.

    Attributes:
        make: takes a folder for its files.
        epochs: of six steps each.
        zeros: how many weights are zero in the end.
        prunes: False if it prunes none, so that half of the weights are pruned before.
        store: what it needs the masks to do with pruned values; tf_keras has "zero" alone.
        loops: whether a loop of one's own can call it, as Keras 3 takes on several workers.
    """

    make: object
    epochs: int = 1
    zeros: int = int(0.8 * SIZE)
    prunes: bool = True
    store: str = "zero"
    loops: bool = True


def row_of_none(make):
    """The row of a callback that prunes nothing."""
    return CallbackRow(make, zeros=SIZE // 2, prunes=False)


CALLBACKS = {
    "GradualPruning": CallbackRow(
        lambda folder: kprune.callbacks.GradualPruning(
            PolynomialDecay(0.0, 0.8, begin_step=2, end_step=8, frequency=2)
        ),
        epochs=2,
    ),
    "PruneAtInit": CallbackRow(
        lambda folder: kprune.callbacks.PruneAtInit("snip", 0.8, data=digits(), verbose=False),
    ),
    "SynFlow": CallbackRow(lambda folder: kprune.callbacks.SynFlow(0.8, rounds=5, verbose=False)),
    "LotteryTicket": CallbackRow(
        lambda folder: kprune.callbacks.LotteryTicket(
            levels=2, epochs_per_level=1, rate=0.5, rewind_to=3, path=f"{folder}/ticket.npz"
        ),
        epochs=3,
        zeros=int(0.75 * SIZE),
    ),
    "EarlyBird": CallbackRow(
        lambda folder: kprune.callbacks.EarlyBird(sparsity=0.8, patience=2, threshold=1.0, stop=False), epochs=3
    ),
    "DynamicSparseTraining": CallbackRow(
        lambda folder: kprune.callbacks.DynamicSparseTraining("set", 0.8, frequency=2, stop=8), epochs=2
    ),
    "ACDC": CallbackRow(lambda folder: kprune.callbacks.ACDC(0.8, begin=2, end=8, cycles=1), epochs=2),
    "Supermask": CallbackRow(
        lambda folder: kprune.callbacks.Supermask(sparsity=0.8, scope="uniform"), store="latent", loops=False
    ),
    "STR": CallbackRow(lambda folder: kprune.callbacks.STR(0.8, start=-1.0, frequency=1), loops=False),
    "ADMM": CallbackRow(
        lambda folder: kprune.callbacks.ADMM(0.8, rho=0.1, rounds=2, updates=2, begin=1, end=8), epochs=2
    ),
    "DropBack": CallbackRow(lambda folder: kprune.callbacks.DropBack(0.8, decay=0.1), epochs=2),
    "SynFlowPenalty": row_of_none(lambda folder: kprune.callbacks.SynFlowPenalty(0.01, frequency=3)),
    "TakeSnapshot": row_of_none(lambda folder: kprune.callbacks.TakeSnapshot(3)),
    "SparsityLogger": row_of_none(lambda folder: kprune.callbacks.SparsityLogger(folder)),
    "BackupAndRestore": row_of_none(lambda folder: kprune.callbacks.BackupAndRestore(f"{folder}/backup.npz")),
}


def begin(model, begins, row):
    """Take a model back to what it was when it was made, with all weights kept, or half if the callback prunes none."""
    if kprune.masked_weights(model):
        kprune.set_masks(model, {w.path: np.ones(w.shape, bool) for w in kprune.masked_weights(model)})
    kprune.rewind(model, begins)
    if not row.prunes:
        kprune.prune(model, "synflow", 0.5, rounds=5, verbose=False)


def assert_same_masks(one, other):
    """Two lists over batches of lists over weights."""
    assert len(one) == len(other) > 0
    for batch, (masks, others) in enumerate(zip(one, other, strict=True)):
        for i, (mask, expected) in enumerate(zip(masks, others, strict=True)):
            np.testing.assert_array_equal(mask, expected, err_msg=f"batch {batch}, weight {i}")
