"""All that Keras 3 users do, on JAX where no TensorFlow is installed: `python without_tensorflow.py FOLDER`."""

import importlib.abc
import pathlib
import sys


class Absent(importlib.abc.MetaPathFinder):
    """Nothing of TensorFlow's can be imported."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras", "tensorflow_model_optimization"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())

import keras  # noqa: E402
from helpers import assert_programs_agree  # noqa: E402

import kprune  # noqa: E402
from kprune import callbacks  # noqa: E402
from kprune.criteria import CRITERIA  # noqa: E402

folder = pathlib.Path(sys.argv[1])
digits = kprune.data.load("digits")


def network():
    model = kprune.models.conv_2(digits.input_shape, digits.classes, width=0.05)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def fit(model, *more, epochs=1):
    model.fit(**digits.fit_kwargs(), epochs=epochs, callbacks=list(more), verbose=0)
    return model


model = fit(network(), callbacks.SynFlow(0.5, rounds=3, verbose=False), callbacks.SparsityLogger())
schedule = kprune.schedules.Linear(0.5, 0.8, begin_step=0, end_step=20, frequency=5)
fit(model, callbacks.GradualPruning(schedule), callbacks.BackupAndRestore(folder / "backup.npz"))
lottery = callbacks.LotteryTicket(levels=1, epochs_per_level=1, rate=0.5, path=folder / "ticket.npz")
fit(model, lottery, epochs=2)
assert abs(kprune.summary(model).sparsity - 0.9) < 0.001, kprune.summary(model)
for criterion in CRITERIA:
    tracker = kprune.PruningConfig(criterion).tracker()
    if tracker is not None:
        tracker.arrays = [w.value() for w in kprune.masked_weights(model)]
    given = {"data": digits.sample(per_class=1), "batches": None, "trackers": tracker}
    kprune.prune(model, criterion, 0.92, rounds=2, verbose=0, **given)
model.save(folder / "masked.keras")
loaded = kprune.strip(keras.models.load_model(folder / "masked.keras"))
x = digits.test[0][:9]
assert_programs_agree(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
kprune.Ticket.load(folder / "ticket.npz").apply(network())
kprune.sensitivity(model, digits.test, sparsities=[0.95], verbose=False)
assert not any(name.split(".")[0] in ("tensorflow", "tf_keras") for name in sys.modules)
print("done")
