"""A small model and its data, alike on one device, on several, and in several processes; imported by `worker.py`."""

import contextlib

import keras
import numpy as np
from keras import distribution, layers

DISTRIBUTIONS = ("data_parallel", "model_parallel")
BATCH, STEPS = 8, 6


def distribute(name):
    """A context in which Keras trains on all devices of all processes: "data_parallel" or "model_parallel"; or None.

    The names of layers begin anew, as in a new process.
    """
    keras.backend.clear_session()  # which forgets the distribution, too
    devices = distribution.list_devices()
    if name is None:
        return contextlib.nullcontext()
    if name == "data_parallel":
        return distribution.DataParallel(devices=devices, auto_shard_dataset=False).scope()
    mesh = distribution.DeviceMesh((len(devices) // 2, 2), ("batch", "model"), devices)
    layouts = distribution.LayoutMap(mesh)
    layouts[".*/conv/kernel"] = (None, None, None, "model")
    layouts[".*/hidden/kernel"] = (None, "model")
    layouts[".*/logits/kernel"] = ("model", None)
    # An activation too: in training it can be laid out so, in scoring not (test_criteria_on_devices.py).
    layouts[".*/hidden/output"] = ("batch", "model")
    return distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False).scope()


def network(**compile_args):
    """6x6x2 -> convolution -> hidden -> 4, relu; compiled with a slot per weight.."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(8, "relu", name="hidden"),
            layers.Dropout(0.2, seed=5),
            layers.Dense(4, name="logits"),
        ]
    )
    # Not Adam: where a gradient is all but zero, it makes a whole step of a rounding error.
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **compile_args)
    return model


def data():
    """Float32 inputs and targets for `STEPS` batches of `BATCH` samples."""
    rng = np.random.default_rng(0)
    size = STEPS * BATCH
    return rng.normal(size=(size, 6, 6, 2)).astype("float32"), rng.normal(size=(size, 4)).astype("float32")
