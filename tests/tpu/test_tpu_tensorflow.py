"""Keras 3 on TensorFlow under TPUStrategy: what libtpu makes of the train step under each callback."""

import keras
import pytest
import tensorflow as tf
from steps import conv_net, violations
from test_tpu_safe import Computed, asking_the_host, of_dynamic_shape, wide
from tpu_compiler import TOPOLOGIES, compile_tensorflow
from tpu_rows import MODELS
from tpu_strategy import TPUStrategyOnCPU
from under_strategy import check_callback, check_scoring, check_step, compile_step, fit, masked

import kprune
from kprune.criteria import CRITERIA

ROAD = "Keras 3 on TensorFlow"


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", kprune.callbacks.__all__)
def test_train_step(name, topology, note):
    note(ROAD, name, topology, check_callback(keras, name, topology))


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", MODELS)
def test_model(name, topology, note):
    note(ROAD, name, topology, check_step(keras, MODELS[name], topology))


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_scoring(criterion):
    check_scoring(keras, criterion)


def program_with(function):
    """The program of the step of a masked model one of whose layers computes `function`."""
    strategy = TPUStrategyOnCPU(4)
    with strategy.scope():
        model = masked(keras, lambda library: conv_net(Computed(function)))
    fit(model)
    return compile_step(strategy, "v5e:2x2")


def test_libtpu_refuses_what_the_memory_cannot_hold():
    @tf.function(jit_compile=True)
    def add_one(x):
        return x + 1.0

    with pytest.raises(Exception, match="Ran out of memory on HBM"):
        compile_tensorflow(add_one, [tf.TensorSpec((6_000_000_000,))], 1, "v5e:1x1")


def test_a_call_of_the_host_is_refused():
    with pytest.raises(Exception, match="EagerPyFunc"):
        program_with(asking_the_host)


def test_libtpu_compiles_float64_and_the_check_sees_it():
    found = violations(program_with(wide).module)
    assert found and all(violation.startswith("float64: ") for violation in found)


def test_libtpu_compiles_a_dynamic_shape_and_the_check_sees_it():
    function = tf.function(of_dynamic_shape, jit_compile=True, autograph=False)
    program = compile_tensorflow(function, [tf.TensorSpec((16,))], 1, "v5e:1x1")
    assert "dynamic shape: " in "".join(violations(program.module))
