"""A train step as TPUStrategy traces it, compiled by libtpu: for Keras 3 on TensorFlow and for tf_keras."""

import keras
import numpy as np
import tensorflow as tf
from contract_rows import CALLBACK_ROWS
from steps import MoreZeros, TracedSteps, compiled, conv_net, images, violations
from tpu_compiler import TOPOLOGIES, compile_tensorflow, tpu_devices
from tpu_rows import prune_by
from tpu_strategy import ReplicaComputation, TPUStrategyOnCPU, logical_cpus

import kprune

logical_cpus(max(len(tpu_devices(topology)) for topology in TOPOLOGIES))


def masked(library, make=conv_net, store=None):
    """A masked model of either Keras, compiled."""
    return compiled(kprune.mask(make(library=library), store=store).model, library)


def fit(model, *callbacks, epochs=1):
    """Six steps an epoch, or what several cores make of them; returns the traces of the step."""
    steps = TracedSteps(model)
    batches = tf.data.Dataset.from_tensor_slices(images(96)).batch(16, drop_remainder=True)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks, MoreZeros(), steps.count])
    return steps


def compile_step(strategy, topology):
    """The step that the strategy traced last, compiled for a topology."""
    computation = ReplicaComputation(strategy.traced[-1])
    return compile_tensorflow(computation.function, computation.specs, computation.replicas, topology)


def check_callback(library, name, topology):
    """The program of the step under a callback."""
    row = CALLBACK_ROWS[name]
    store = "latent" if row.latent and library is keras else None  # tf_keras refuses it first by the callback's name
    return check_step(library, conv_net, topology, row.make(0.8), epochs=row.epochs, store=store)


def check_step(library, make, topology, *callbacks, epochs=1, store=None):
    """The program of a model's step: traced once for all masks, safe, and of all cores together."""
    cores = len(tpu_devices(topology))
    strategy = TPUStrategyOnCPU(cores)
    with strategy.scope():
        model = masked(library, make, store)
    steps = fit(model, *callbacks, epochs=epochs)
    assert len(strategy.traced) == 1 and steps.counts == steps.counts[:1] * 6 * epochs
    assert kprune.summary(model).sparsity > 0.7
    for weight in kprune.masked_weights(model):
        replicas = [np.asarray(v).astype(bool) for v in replica_values(weight.mask)]
        assert len(replicas) == cores and all((replica == weight.kept()).all() for replica in replicas)
    program = compile_step(strategy, topology)
    assert violations(program.module) == []
    assert bool(program.all_reduces) == (cores > 1)
    return program


def replica_values(variable):
    """The value of a variable of either Keras on each replica."""
    return (variable if isinstance(variable, tf.distribute.DistributedValues) else variable.value).values


def check_scoring(library, criterion):
    """Scores in the strategy's scope, as callbacks do: no computation is asked of a TPU."""
    strategy = TPUStrategyOnCPU(4)
    with strategy.scope():
        model = masked(library)
        prune_by(model, criterion)
    assert strategy.traced == []
