"""Keras gives the buffers of a step's state to the next step (here on CPUs, too): no callback may hold on to one."""

import dataclasses

import jax
import keras
import numpy as np
import pytest
from contract_rows import CALLBACK_ROWS
from helpers import EachBatch, halve
from kprune.callbacks.base import Callback
from small import BATCH, data, distribute, network

import kprune


def tensors_in(thing, seen=None):
    """JAX's arrays, and NumPy's views of them, that an object reaches without going through models and variables."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, keras.Layer | keras.Variable | keras.optimizers.Optimizer):
        return []
    seen[id(thing)] = thing  # held, so that no other object gets its id
    if isinstance(thing, jax.Array | memoryview):
        return [thing]
    if isinstance(thing, np.ndarray):
        return tensors_in(thing.base, seen)  # of a view of JAX's array a memoryview; it keeps the buffer from donation
    if isinstance(thing, dict):
        below = list(thing.values())
    elif isinstance(thing, list | tuple | set):
        below = list(thing)
    else:
        below = list(vars(thing).values()) if hasattr(thing, "__dict__") and not isinstance(thing, type) else []
    return [found for part in below for found in tensors_in(part, seen)]


class Holding(Callback):
    """What no callback should do."""

    @dataclasses.dataclass
    class Kept:
        values: dict

    def on_train_begin(self, logs=None):
        self.kept = self.Kept({"values": [v.value for v in self.model.trainable_variables]})


def state(model):
    return [v.value for v in [*model.variables, *model.optimizer.variables]]


def test_old_buffers_are_gone_here_and_would_be_found():
    """The control: this JAX does donate, and the search below finds what is held."""
    with distribute("model_parallel"):
        model, seen, holding = network(), [], Holding()
        kprune.mask(model)
        fitting = dict(batch_size=BATCH, shuffle=False, verbose=0)
        watching = EachBatch(lambda model: seen.append(state(model)))
        model.fit(*data(), callbacks=[holding, watching], **fitting)
    assert len(seen) == 6
    for earlier in seen[:-1]:
        assert all(value.is_deleted() for value in earlier)
    held = tensors_in(holding)
    assert len(held) == 6 and all(value.is_deleted() for value in held)
    buffer = jax.numpy.ones(3)
    assert len(tensors_in([np.asarray(buffer)])) == 1 and not tensors_in([np.array(buffer)])
    with pytest.raises(RuntimeError, match="deleted"):
        np.array(held[0])


@pytest.mark.parametrize("name", kprune.callbacks.__all__)
def test_a_callback_holds_none_of_them(name):
    row = CALLBACK_ROWS[name]
    held = []

    class Watch(Callback):
        def on_train_batch_begin(self, batch, logs=None):
            held.extend(tensors_in(callback))

        def on_epoch_end(self, epoch, logs=None):
            held.extend(tensors_in(callback))

    with distribute("model_parallel"):
        model, callback = network(), row.make(0.7)
        kprune.mask(model, store="latent" if row.latent else None)
        halve(model)
        fitting = dict(batch_size=BATCH, epochs=row.epochs, shuffle=False, verbose=0)
        model.fit(*data(), callbacks=[callback, Watch()], **fitting)
    assert not held and not tensors_in(callback)
