"""The one counter of all callbacks: it asks the optimizer only where it may matter, and misses no step."""

import logging
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, assert_zero, data, mlp, steady
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from kprune.callbacks import GradualPruning, LotteryTicket, TakeSnapshot
from kprune.callbacks._counter import Counter

import kprune
from kprune.schedules import Linear, PolynomialDecay
from kprune.util.ranking import zeros_for

JAX = keras.backend.backend() == "jax"
TOTAL = 8 * 12 + 12 * 12 + 12 * 3


class Optimizer:
    """Says how many steps it has taken, and notes how often it was asked."""

    def __init__(self, accumulates=None):
        self.taken = self.asked = 0
        self.gradient_accumulation_steps = accumulates
        self.variables = [SimpleNamespace(name="iteration", numpy=lambda: np.array(self.taken))]

    @property
    def iterations(self):
        self.asked += 1
        return self.taken // (self.gradient_accumulation_steps or 1)


def counter(optimizer, steps=None, **options):
    model = keras.layers.Layer()
    model.optimizer = optimizer
    said = []
    callback = SimpleNamespace(model=model, params={"steps": steps}, say_once=lambda *words: said.append(words))
    made = Counter(callback, **options)
    made.said = said
    return made


def test_it_asks_when_a_step_may_be_due():
    optimizer = Optimizer()
    count, reached = counter(optimizer), []
    count.begin_epoch()
    for batch in range(1000):
        optimizer.taken += 1
        if batch == 1:
            optimizer.asked = 0  # the beginning of a fit is over
        if (now := count.after_batch(batch, 400 if batch < 400 else 900)) is not None and batch:
            reached.append((batch, now))
    assert reached[:1] == [(399, 400)] and (899, 900) in reached
    assert optimizer.asked <= 2 + (1000 - 899)  # nobody has taken the 900 away


@pytest.mark.parametrize("per_batch", [1, 3])
@steady
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 50))
def test_it_misses_no_step(per_batch, steps, due):
    """Steps that are skipped, as by a loss scale, make it ask again; several in a batch, ask earlier."""
    optimizer = Optimizer()
    optimizer.taken = 7
    count = counter(optimizer)
    count.begin_epoch()
    for batch, step in enumerate([True, *steps]):  # the first says how many come to a batch
        before, optimizer.taken = optimizer.taken, optimizer.taken + per_batch * step
        now = count.after_batch(batch, 7 + due)
        if before < 7 + due <= optimizer.taken:
            assert now == optimizer.taken
            return
        assert now is None or now < 7 + due


@steady
@given(st.integers(2, 5), st.integers(1, 12), st.integers(0, 4))
def test_it_counts_accumulated_gradients(accumulates, due, before):
    optimizer = Optimizer(accumulates)
    optimizer.taken = before  # in the middle of a step
    count, found = counter(optimizer), None
    start = count.begin_epoch()
    assert start == before // accumulates
    for batch in range((due + 1) * accumulates):
        optimizer.taken += 1
        now = count.after_batch(batch, start + due)
        if now is not None and now >= start + due:
            found = batch
            break
    assert found is not None and before + found + 1 == (start + due) * accumulates


def test_several_batches_may_end_together():
    optimizer = Optimizer()
    count = counter(optimizer, steps=8)
    count.begin_epoch()
    seen = []
    for last, taken in ((2, 3), (5, 6), (8, 8)):  # the index of the last one lies past the end of the epoch
        optimizer.taken = taken
        seen.append(count.after_batch(last, 6))
    assert seen == [3, 6, 8] and count.get_state()[:2] == [0, 8]


@pytest.mark.parametrize("batches", [True, False])
def test_an_idle_optimizer_is_found_out_at_the_end_of_an_epoch(batches):
    count = counter(Optimizer(), batches=batches)
    for epoch in range(2):
        assert count.begin_epoch() == 5 * epoch
        now = [count.after_batch(batch, 3) for batch in range(5)]
        assert now[1:] == ([None, None, 0, None] if epoch == 0 else [7, 8, 9, 10])
        assert count.end_epoch() == 5 * (epoch + 1)
    assert len(count.said) == 1


def test_an_optimizer_that_skips_its_steps_is_not_idle():
    optimizer = Optimizer()
    optimizer.dynamic_scale = SimpleNamespace(numpy=lambda: np.float32(2.0**15))
    count = counter(optimizer)
    count.begin_epoch()
    count.after_batch(0, 3)
    optimizer.dynamic_scale = SimpleNamespace(numpy=lambda: np.float32(2.0**14))
    assert count.end_epoch() == 0 and not count.said


def test_what_a_backup_holds_goes_on():
    """Also one that was written before the counter had found out."""
    first = counter(Optimizer())
    first.begin_epoch()
    for batch in range(5):
        first.after_batch(batch, None)
    early = first.get_state()
    first.end_epoch()
    for state in (early, first.get_state()):
        other = counter(Optimizer())
        other.set_state(np.array(state, "float64"))
        assert other.begin_epoch() == 5 and other.begun == 0
        assert other.after_batch(0, None) == 6


def fit(model, *callbacks, steps=8, **options):
    options = {"batch_size": 8, "verbose": 0, "shuffle": False, "callbacks": list(callbacks), **options}
    return model.fit(*data(n=8 * steps), **options)


def zeros(model):
    return sum(int((~w.kept()).sum()) for w in kprune.masked_weights(model))


def test_a_fit_asks_a_few_times_only(monkeypatch):
    model = mlp()
    model.compile("sgd", "mse", **CHEAP)
    callback = GradualPruning(Linear(0.2, 0.8, begin_step=10, end_step=30, frequency=10))
    asked, synced, ask = [], [], callback._counter._ask
    callback._counter._ask = lambda optimizer: asked.append(1) or ask(optimizer)
    if JAX:  # what touches the model there brings all of it up to date
        sync = type(model).jax_state_sync
        monkeypatch.setattr(type(model), "jax_state_sync", lambda model: synced.append(1) or sync(model))
    fit(model, callback, steps=60)
    assert zeros(model) == zeros_for(TOTAL, 0.8)
    assert len(asked) <= 8 and len(synced) < 60  # a look at the zeros after 1, 2, 4, 8 ... steps included


class Own(keras.Model):
    """Its train step is its own: another optimizer in TensorFlow, a plain gradient step in JAX."""

    every = 1

    def train_step(self, *given):
        return (self._in_jax if JAX else self._in_tensorflow)(*given)

    def _in_tensorflow(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        if self.every == 1:
            self.box.own.apply(gradients, self.trainable_variables)
        else:
            self.turn.assign_add(1)
            tf.cond(
                self.turn % self.every == 0,
                lambda: self.box.own.apply(gradients, self.trainable_variables) or 0,
                lambda: 0,
            )
        return {"loss": loss}

    def _in_jax(self, state, data):
        import jax

        x, y = data
        trainable, others, *rest = state

        def loss(trainable):
            return ((self.stateless_call(trainable, others, x, training=True)[0] - y) ** 2).mean()

        value, gradients = jax.value_and_grad(loss)(trainable)
        trainable = [v - 0.01 * gradient for v, gradient in zip(trainable, gradients, strict=True)]
        return {"loss": value}, (trainable, others, *rest)


def own(compiled=True, every=1, boxed=False):
    inputs = keras.Input((8,))
    hidden = layers.Dense(12, "relu", name="hidden1")(inputs)
    hidden = layers.Dense(12, "relu", name="hidden2")(hidden)
    model = Own(inputs, layers.Dense(3, name="logits")(hidden))
    model.every = every
    if not JAX:
        import tensorflow as tf

        # No walk over attributes finds what is in the box; without slots no harm is done.
        made = keras.optimizers.SGD(0.01) if boxed else keras.optimizers.Adam(0.01)
        model.box = SimpleNamespace(own=made)
        if not boxed:
            model.own = model.box.own
        model.turn = tf.Variable(0)
    model.compile(**({} if compiled else {"optimizer": None}), **CHEAP)
    return model


def slots_at_pruned_entries(model):
    at = {id(w.variable): ~w.kept() for w in kprune.masked_weights(model)}
    named = zip(model.own._trainable_variables, model.own._momentums, strict=True)
    return np.concatenate([np.asarray(slot)[at[id(v)]] for v, slot in named if id(v) in at])


@pytest.mark.parametrize("compiled", [True] if JAX else [True, False])  # Keras's trainer for JAX needs an optimizer
def test_a_train_step_of_ones_own_is_pruned_by_batches(compiled, caplog):
    model, seen = own(compiled), []
    schedule = PolynomialDecay(0.2, 0.8, begin_step=10, end_step=20, frequency=2)
    with caplog.at_level(logging.WARNING, logger="absl"):
        callbacks = [GradualPruning(schedule), TakeSnapshot(12), EachBatch(lambda model: seen.append(zeros(model)))]
        fit(model, *callbacks, epochs=3)
    due = [schedule.last_due(step) for step in range(1, 25)]
    expected = [0 if step is None else zeros_for(TOTAL, schedule(step)) for step in due]
    assert seen == expected
    assert callbacks[1].snapshot is not None
    assert_zero(model)
    assert caplog.text.count("Batches are counted as steps") == 1
    if not JAX:
        np.testing.assert_array_equal(slots_at_pruned_entries(model), 0.0)
        assert int(model.own.iterations) == 24


def test_an_epoch_says_that_no_other_optimizer_is_known():
    """Where no attribute gives away at once what trains: what was due in the first epoch comes at its end."""
    model, seen = own(boxed=True), []
    callback = GradualPruning(Linear(0.2, 0.8, begin_step=2, end_step=12, frequency=2))
    fit(model, callback, EachBatch(lambda model: seen.append(zeros(model))), epochs=2)
    of = [zeros_for(TOTAL, callback.schedule.applied(step)) for step in range(17)]
    assert seen == [0] * 8 + of[9:]


@pytest.mark.skipif(JAX, reason="Keras's trainer for JAX carries the variables of the compiled optimizer only")
def test_an_optimizer_that_is_given_is_counted(caplog):
    model, seen = own(every=2), []
    schedule = Linear(0.2, 0.8, begin_step=2, end_step=6, frequency=2)
    callback, taken = GradualPruning(schedule, optimizer=model.own), TakeSnapshot(3, optimizer=model.own)
    with caplog.at_level(logging.WARNING, logger="absl"):
        fit(model, callback, taken, EachBatch(lambda model: seen.append(zeros(model))), epochs=2)
    steps = [batch // 2 for batch in range(1, 17)]
    assert seen == [zeros_for(TOTAL, schedule.applied(step)) for step in steps]
    assert taken.snapshot.optimizer["0/iteration"] == 3
    assert "counted as steps" not in caplog.text


@pytest.mark.skipif(JAX, reason="Keras's trainer for JAX carries the variables of the compiled optimizer only")
@pytest.mark.parametrize("rewind_to", ["init", 4])
def test_a_lottery_rewinds_the_optimizers_of_ones_own(rewind_to):
    model, steps = own(), []
    begins = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: steps.append(int(model.own.iterations)))
    lottery = LotteryTicket(levels=1, epochs_per_level=2, rewind_to=rewind_to)
    fit(model, lottery, begins, epochs=4)
    due = 0 if rewind_to == "init" else rewind_to
    assert steps == [0, 8, due, due + 8]
    assert kprune.summary(model).zeros == zeros_for(TOTAL, 0.2)
    np.testing.assert_array_equal(slots_at_pruned_entries(model), 0.0)


@pytest.mark.skipif(JAX, reason="Keras's trainer for JAX carries the variables of the compiled optimizer only")
def test_what_is_raised_as_a_fit_begins_takes_the_optimizers_of_ones_own_back():
    model = own()
    fit(model, steps=2)
    before = [np.array(v) for v in model.own.variables]
    schedule, bad = Linear(0.2, 0.8, 0, 4), GradualPruning(Linear(0.2, 0.8, 0, 4), lambda context: {})
    with pytest.raises(ValueError, match="must return an array"):
        fit(model, GradualPruning(schedule), bad)
    for v, value in zip(model.own.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)


@pytest.mark.parametrize("make", [GradualPruning, TakeSnapshot])
def test_what_is_no_optimizer_is_refused(make):
    with pytest.raises(ValueError, match=r"must be a Keras optimizer.*Received: optimizer='adam'$"):
        make(0.5, optimizer="adam")


def test_a_snapshot_that_was_not_taken_is_said(caplog):
    model, callback = mlp(), TakeSnapshot(12)
    model.compile("sgd", "mse", **CHEAP)
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: setattr(model, "stop_training", True))
    with caplog.at_level(logging.WARNING, logger="absl"):
        fit(model, callback, stop, epochs=2)
    assert callback.snapshot is None and "training ended before batch 12" in caplog.text
