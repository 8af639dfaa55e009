"""Small models and checks that several test files use."""

import os
import subprocess
import sys

import keras
import numpy as np
from hypothesis import settings
from keras import layers
from kprune.callbacks.base import Callback

import kprune
from kprune.criteria.engines.derivatives import Gradients

# The same examples in every run.
steady = settings(max_examples=100, deadline=None, derandomize=True, database=None)
# Which compiler takes the least time for small models, as arguments of `compile`.
CHEAP = dict(jit_compile=keras.backend.backend() == "jax")


def mlp(outputs=3, units=12, **dense):
    """8 -> units -> units -> outputs, relu."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(units, "relu", name="hidden1", **dense),
            layers.Dense(units, "relu", name="hidden2", **dense),
            layers.Dense(outputs, name="logits", **dense),
        ]
    )


def built(model):
    """A compiled model, with its optimizer built: TensorFlow then traces the first step once, otherwise twice."""
    model.optimizer.build(model.trainable_variables)
    return model


def data(model_or_shape=(8,), n=32, outputs=(3,), seed=0):
    """Random float32 inputs and targets."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *model_or_shape)).astype("float32"), rng.normal(size=(n, *outputs)).astype("float32")


def momentum_mlp(seed=1, **options):
    """8 -> 6 -> 3, 66 weights, compiled with SGD with momentum."""
    keras.utils.set_random_seed(seed)
    dense = [layers.Dense(6, "relu", name="hidden", **options), layers.Dense(3, name="logits")]
    model = keras.Sequential([keras.Input((8,)), *dense])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **CHEAP)
    return model


def fit(model, *callbacks, epochs=3, **options):
    """Four steps an epoch, on the same data in the same order."""
    x, y = data(n=32)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **options)


def halve(model, seed=0):
    """Prune a random half of each masked weight."""
    rng = np.random.default_rng(seed)
    kprune.set_masks(model, {w.path: rng.random(w.shape) < 0.5 for w in kprune.masked_weights(model)})


def pruned_values(model):
    """The stored values of all pruned entries, in one vector."""
    return np.concatenate([w.value()[~w.kept()].astype("float64") for w in kprune.masked_weights(model)])


def assert_zero(model):
    values = pruned_values(model)
    assert values.size > 0
    np.testing.assert_array_equal(values, 0.0)


def rounds_by_program():
    """Whether two programs of different operations may end in other last bits: on a GPU or TPU, or its imitation."""
    return "like_a_gpu" in sys.modules or any(not d.startswith("cpu") for d in keras.distribution.list_devices())


def assert_programs_agree(actual, expected, rtol=0.0, err_msg=""):
    """What two programs compute, as a masked model and the stripped one: within `rtol` on a CPU, by default to the bit.

    Elsewhere to 1e-5 of the largest, which takes products of full precision: `make test-gpu`. Masks, zeros, copied
    weights, and what one program computes twice are equal everywhere: `np.testing.assert_array_equal`.
    """
    atol = 1e-5 * np.abs(expected).max(initial=0.0) if rounds_by_program() else 0.0
    np.testing.assert_allclose(actual, expected, rtol=0.0 if atol else rtol, atol=atol, err_msg=err_msg)


def assert_finite_differences(context):
    """The Hessian products of a float64 model in training mode are differences of its gradients."""
    derivatives, rng = Gradients(context, training=True), np.random.default_rng(2)
    values, [batch] = context.kept_values(), context.data
    vectors, step = [rng.normal(size=v.shape) for v in values], 1e-5
    products = derivatives.curvature(values, vectors, batch)
    up, down = (
        derivatives.gradient([v + s * d for v, d in zip(values, vectors, strict=True)], batch) for s in (step, -step)
    )
    for product, high, low in zip(products, up, down, strict=True):
        np.testing.assert_allclose(product, (high - low) / (2 * step), rtol=0, atol=1e-5 * np.abs(product).max())


def start_process(*words, env=None, **settings):
    """Starts `python words...` and does not wait for it; it finds what this process finds."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **(env or {})}
    # tfmot leaves this one behind in the process that imports it; no user's process starts with it.
    env.pop("TF_USE_LEGACY_KERAS", None)
    command = [sys.executable, *map(str, words)]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **settings}
    return subprocess.Popen(command, env=env, **settings)


def new_process(*words, **settings):
    """Runs `python words...` to its end: its returncode, stdout and stderr."""
    with start_process(*words, **settings) as process:
        try:
            stdout, stderr = process.communicate(timeout=600)
        finally:
            process.kill()
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


class EachBatch(Callback):
    """Runs a check at every batch end, where a leak between steps would show; in a fit of either Keras."""

    def __init__(self, check):
        super().__init__()
        self.check, self.calls = check, 0

    def on_train_batch_end(self, batch, logs=None):
        self.check(self.model)
        self.calls += 1
