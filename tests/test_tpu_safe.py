"""Nothing that kprune does in a train step keeps it from a TPU, and scoring in float64 stays on the host's CPU.

What the TPU's own compiler says of it: tests/tpu/, `make test-tpu`.
"""

import contextlib
import importlib
import pathlib
import re

import keras
import pytest
from contract_rows import CALLBACK_ROWS, KERAS_3_ONLY
from helpers import CHEAP, assert_zero, halve
from keras import layers
from steps import TracedSteps, bool_inputs, compiled, conv_net, images, lowered, violations

import kprune
from kprune.criteria import CRITERIA
from kprune.util.registry import trait

JAX = keras.backend.backend() == "jax"
if JAX:
    import jax
else:
    import tensorflow as tf

# Read when the tests are collected, before any test registers a criterion of its own.
ASK_THE_LOSS = [name for name in CRITERIA if "loss" in trait(CRITERIA.get(name), "needs", ())]


class Computed(layers.Layer):
    """A layer of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def fit(model, *callbacks, epochs=1):
    """Trains six steps an epoch; returns the traces of the step."""
    compiled(model, **CHEAP)
    steps = TracedSteps(model)
    model.fit(*images(48), batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks, steps.count])
    return steps


@pytest.mark.parametrize("name", CALLBACK_ROWS)
def test_the_step_under_a_callback_is_safe_and_traced_once(name):
    row, model = CALLBACK_ROWS[name], conv_net()
    steps = fit(model, row.make(0.8), epochs=row.epochs)
    assert steps.counts == steps.counts[:1] * 6 * row.epochs  # also where masks changed in between
    assert bool(kprune.summary(model).sparsity) == row.prunes
    module = steps.lowered()
    # Masks are inputs of the compiled step: others need no other program.
    assert sorted(bool_inputs(module)) == (["288x10xi1", "3x3x1x8xi1"] if row.masks else [])
    assert violations(module) == []


def wide(x):
    """Computes in float64."""
    if JAX:
        return (x.astype("float64") * 2).astype("float32")
    return tf.cast(tf.cast(x, tf.float64) * 2, tf.float32)


def of_dynamic_shape(x):
    """Adds up the positive entries."""
    if JAX:
        return x[x > 0].sum() + x
    return tf.reduce_sum(tf.boolean_mask(x, x > 0)) + x


def asking_the_host(x):
    """Runs Python in the step."""
    if JAX:
        return jax.pure_callback(lambda array: array, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x))
    return tf.ensure_shape(tf.py_function(lambda array: array, [x], tf.float32), x.shape)


def module_with(function):
    """The lowered step of a masked model one of whose layers computes `function`."""
    model = conv_net(Computed(function))
    kprune.mask(model)
    return fit(model).lowered()


def with_float64():
    if not JAX:
        return contextlib.nullcontext()
    # Before JAX 0.8 it was experimental.
    return (jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")).enable_x64(True)


def test_the_check_sees_float64():
    with with_float64():
        assert "float64: 8x288xf64" in violations(module_with(wide))


def test_the_check_sees_a_dynamic_shape():
    if JAX:
        with pytest.raises(jax.errors.NonConcreteBooleanIndexError):  # JAX itself refuses it
            module_with(of_dynamic_shape)
        symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 4"), "float32")
        assert "dynamic shape: ?x4xf32" in violations(lowered(lambda x: x + 1, symbolic))
    else:
        assert any(found.startswith("dynamic shape: ?") for found in violations(module_with(of_dynamic_shape)))


def test_the_check_sees_a_call_of_the_host():
    # Both refuse it before the check could.
    refused = "different from the lowering platform tpu" if JAX else "EagerPyFunc"
    with pytest.raises(Exception, match=refused):
        module_with(asking_the_host)
    if JAX:
        module = lowered(asking_the_host, jax.ShapeDtypeStruct((3,), "float32"), platform="cpu")
        assert violations(module) == ["host call: custom_call @xla_ffi_python_cpu_callback"]


class Placed(layers.Flatten):
    """Notes where and in which type it computes."""

    seen = ()

    def call(self, x):
        device = jax.config.jax_default_device if JAX else x.device
        self.seen = (*self.seen, (str(device), keras.backend.standardize_dtype(x.dtype)))
        return super().call(x)


def test_synflow_scores_in_float64_on_the_hosts_cpu():
    placed = Placed()
    model = conv_net(placed)
    kprune.mask(model)
    placed.seen = ()
    kprune.prune(model, "synflow", 0.9, rounds=3, verbose=False)
    assert placed.seen == ((str(jax.devices("cpu")[0]) if JAX else "/device:CPU:0", "float64"),)


def test_the_count_sees_another_trace():
    model = conv_net()
    steps = fit(model)
    model.fit(*images(12), batch_size=8, verbose=0, callbacks=[steps.count])  # the last batch is smaller
    assert steps.counts[-1] > steps.counts[0]


@pytest.mark.skipif(not JAX, reason="TensorFlow assigns without compiling anything")
def test_changing_masks_compiles_nothing(caplog):
    model = compiled(conv_net())
    kprune.mask(model)
    model.optimizer.build(model.trainable_variables)
    with jax.log_compiles():
        halve(model)
        assert "ompil" not in caplog.text
        jax.jit(lambda x: x + 1)(1)
        assert "ompil" in caplog.text
    assert_zero(model)


@pytest.mark.skipif(JAX, reason="the same on both backends")
def test_the_documented_table_has_all_that_is_registered():
    """Made by `make test-tpu`: to be made again when it lacks a row."""
    text = (pathlib.Path(__file__).parents[1] / "docs" / "tpu.md").read_text()
    scores = [f"scores: {name}" for name in ASK_THE_LOSS]
    for road, more in {"Keras 3 on JAX": scores, "Keras 3 on TensorFlow": [], "tf_keras": []}.items():
        section = text.partition(f"### {road}\n")[2].partition("###")[0]
        rows = re.findall(r"^\| ([^|]+) \|(?: \d+\.\d s, \d+\.\d\d MiB[^|]*\|){3}$", section, re.MULTILINE)
        missing = {*kprune.callbacks.__all__, *more} - set(rows)
        assert missing == (set(KERAS_3_ONLY) if road == "tf_keras" else set())
