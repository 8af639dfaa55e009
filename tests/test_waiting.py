"""On JAX, Keras waits for a step only where a callback has work after it; in between it goes on at once."""

import copy
import threading

import keras
import numpy as np
import pytest
from contract_rows import CALLBACK_ROWS
from helpers import CHEAP, built, data, mlp
from kprune.callbacks import EarlyBird, GradualPruning, LotteryTicket, PruneAtInit, SparsityLogger, TakeSnapshot
from kprune.callbacks._counter import Counter

import kprune
from kprune.criteria import Movement
from kprune.schedules import PolynomialDecay

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="elsewhere Keras waits for every step")

SCHEDULE = PolynomialDecay(0.0, 0.75, 4, 8, frequency=2)


class Waited(keras.callbacks.Callback):
    """Notes after which batches Keras waits, and how many weights are pruned then; by itself it has it not wait."""

    async_safe = True

    def __init__(self):
        super().__init__()
        self.batches, self.zeros = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.thread = threading.get_ident()

    def on_train_batch_end(self, batch, logs=None):
        if threading.get_ident() == self.thread:
            self.batches.append(batch)
            self.zeros.append(sum(int((~weight.kept()).sum()) for weight in kprune.masked_weights(self.model)))


class Plain(keras.callbacks.Callback):
    """Has Keras wait for each step, as any callback does that is not `async_safe`."""

    def on_train_batch_end(self, batch, logs=None):
        pass


def compiled(accumulated=None, **options):
    keras.utils.set_random_seed(0)
    model = mlp()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=accumulated)
    model.compile(optimizer, "mse", **CHEAP, **options)
    return built(model)


def fit(model, *callbacks, steps=10, epochs=1):
    x, y = data(n=8 * steps)
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


@pytest.mark.private_api
@pytest.mark.parametrize(
    ("options", "batches"),
    [
        # The first, since a train_step may take several steps; then those that may end at an update.
        ({}, [0, 3, 5, 7]),
        ({"accumulated": 2}, [0, 7, 10, 11, 14, 15]),
        ({"steps_per_execution": 3}, [2, 5, 8]),
    ],
)
def test_keras_waits_only_where_an_update_may_be_due(options, batches):
    model, waited = compiled(**options), Waited()
    fit(model, GradualPruning(SCHEDULE), TakeSnapshot(), SparsityLogger(table=False), waited, steps=18, epochs=2)
    assert waited.batches == batches
    assert kprune.summary(model).sparsity == 0.75


@pytest.mark.private_api
def test_a_thread_that_lags_behind_finds_no_work(monkeypatch):
    """The call after the third step goes on only when Keras is to wait for the fourth, after which there is work."""
    flushed, threads = threading.Event(), []
    flush, record = keras.callbacks.CallbackList._flush_futures, Counter.after_batch

    class Lags(keras.callbacks.Callback):
        async_safe = True

        def on_train_batch_end(self, batch, logs=None):
            assert batch != 2 or flushed.wait(60)

    monkeypatch.setattr(keras.callbacks.CallbackList, "_flush_futures", lambda self: flushed.set() or flush(self))
    monkeypatch.setattr(Counter, "after_batch", lambda *given: threads.append(threading.get_ident()) or record(*given))
    fit(compiled(), Lags(), GradualPruning(SCHEDULE))
    assert threads == 4 * [threading.get_ident()]


@pytest.mark.private_api
def test_keras_waits_for_each_step_that_any_callback_has_work_after():
    waited = Waited()
    first, second = GradualPruning(PolynomialDecay(0.0, 0.25, 2, 3)), GradualPruning(PolynomialDecay(0.0, 0.5, 6, 7))
    fit(compiled(), first, PruneAtInit("magnitude", 0.1), second, TakeSnapshot(5), waited)
    assert waited.batches == [0, 1, 2, 4, 5, 6]


class OwnEnd(GradualPruning):
    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch)


class OwnBatchEnd(PruneAtInit):
    def on_batch_end(self, batch, logs=None):
        pass


class OwnBegin(GradualPruning):
    def on_train_batch_begin(self, batch, logs=None):
        pass


class OwnStart(PruneAtInit):
    def on_train_begin(self, logs=None):
        pass

    def on_train_batch_end(self, batch, logs=None):
        pass


@pytest.mark.private_api
@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnEnd(SCHEDULE),
        lambda: OwnBatchEnd("magnitude", 0.5),
        lambda: OwnBegin(SCHEDULE),
        lambda: OwnStart("magnitude", 0.5),
        lambda: LotteryTicket(levels=1, epochs_per_level=1, rate=0.5, criterion="movement"),
        lambda: EarlyBird("movement", 0.5),
    ],
    ids=["end", "batch end", "begin", "start", "lottery by movement", "early bird by movement"],
)
def test_keras_waits_for_every_step_where_it_is_not_known_that_there_is_no_work(make):
    waited = Waited()
    fit(compiled(), make(), waited, epochs=2)
    assert waited.batches == 2 * list(range(10))


@pytest.mark.private_api
def test_keras_waits_for_every_step_of_a_ticket_that_is_found_by_movement():
    waited = Waited()
    kprune.find_ticket(
        compiled(),
        lambda model, level: fit(model, *level.callbacks, waited),
        levels=1,
        rate=0.5,
        criterion="movement",
        verbose=0,
    )
    assert waited.batches == 2 * list(range(10))


@pytest.mark.private_api
def test_a_loop_of_the_users_own_waits_for_every_step():
    model, callback, waited = compiled(), GradualPruning(SCHEDULE), Waited()
    for _ in range(2):  # also after a fit
        listed = keras.callbacks.CallbackList([callback, waited], model=model, epochs=1, steps=10)
        listed.on_train_begin()
        listed.on_epoch_begin(0)
        for batch in range(10):
            listed.on_train_batch_begin(batch)
            listed.on_train_batch_end(batch)
        assert waited.batches[-10:] == list(range(10))
        listed.on_epoch_end(0)
        listed.on_train_end()
        fit(compiled(), callback)


class Inherited(keras.callbacks.CallbackList):
    pass


@pytest.mark.private_api
@pytest.mark.parametrize("listed", [keras.callbacks.CallbackList, Inherited])
def test_a_list_of_callbacks_is_afterwards_as_it_was(listed):
    model, waited, (x, y) = compiled(), Waited(), data(n=80)
    given = listed([GradualPruning(SCHEDULE), waited], add_history=True, model=model, epochs=1, steps=10)
    before = given._async_train
    model.fit(x, y, batch_size=8, verbose=0, callbacks=given)
    assert waited.batches == [0, 3, 5, 7]
    assert given._async_train == before


def test_a_callback_can_be_copied_in_a_fit():
    callback, copies = GradualPruning(SCHEDULE), []

    class Copies(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.built and batch == 2:  # to ask for the model is to bring it up to date
                copies.append(copy.deepcopy(callback))

    fit(compiled(), callback, Copies())
    assert copies[0].schedule == SCHEDULE


def test_another_optimizer_than_the_compiled_one_may_be_asked():
    """The one that is passed takes no steps, so batches are counted from the first on, at which the other has moved."""
    model = compiled()
    fit(model, GradualPruning(PolynomialDecay(0.0, 0.5, 4, 5), optimizer=keras.optimizers.SGD()))
    assert kprune.summary(model).sparsity == 0.5


class Idle(keras.Sequential):
    """Trains by hand, so the compiled optimizer takes no steps, as is known after an epoch."""

    def train_step(self, state, data):
        import jax

        trainable, *others = state

        def loss(values):
            return ((self.stateless_call(values, others[0], data[0])[0] - data[1]) ** 2).mean()

        value, gradients = jax.value_and_grad(loss)(trainable)
        return {"loss": value}, ([v - 0.05 * g for v, g in zip(trainable, gradients, strict=True)], *others)


def test_where_batches_are_counted_in_place_of_steps_none_is_missed():
    waited = Waited()
    model = Idle([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    model.compile("sgd", steps_per_execution=2)
    fit(model, GradualPruning(PolynomialDecay(0.0, 0.5, 8, 9, frequency=1)), waited, steps=5, epochs=2)
    assert waited.batches == [1, 1, 3, 5]
    assert waited.zeros == [0, 0, 22, 22]  # after 9 batches half of 44 weights


@pytest.mark.parametrize(
    ("name", "together"),
    [
        *((name, 1) for name in ("ACDC", "DynamicSparseTraining", "EarlyBird", "GradualPruning", "LotteryTicket")),
        ("GradualPruning", 3),
        ("TakeSnapshot", 3),
    ],
)
def test_the_network_is_the_same_as_if_keras_waited_for_each_step(name, together):
    def trained(*others):
        model, row = compiled(steps_per_execution=together), CALLBACK_ROWS[name]
        callback = row.make(0.8)
        fit(model, callback, *others, steps=8, epochs=row.epochs)
        snapshot = getattr(callback, "snapshot", None)
        return [*model.get_weights(), *(weight.kept() for weight in kprune.masked_weights(model))], snapshot

    (alone, early), (waiting, same) = trained(), trained(Plain())
    for one, other in zip(alone, waiting, strict=True):
        np.testing.assert_array_equal(one, other)
    if early is not None:
        for one, other in zip(early.to_arrays().values(), same.to_arrays().values(), strict=True):
            np.testing.assert_array_equal(one, other)


def by_movement(*others, first=(), update=SCHEDULE, fitted=fit, **options):
    """The weights, masks and sums of a fit with GradualPruning by movement."""
    model, callback = compiled(**options), GradualPruning(update, "movement")
    fitted(model, *first, callback, *others, steps=10, epochs=2)
    masks = [weight.kept() for weight in kprune.masked_weights(model)]
    return [*model.get_weights(), *masks, *callback.pruner.tracker.arrays]


@pytest.mark.private_api
@pytest.mark.parametrize(
    ("options", "batches"),
    [
        # The last of each epoch, too, after which other callbacks may set weights.
        ({}, [0, 3, 5, 7, 9, 9]),
        ({"steps_per_execution": 3}, [2, 5, 8, 11, 11]),
    ],
)
def test_keras_does_not_wait_for_the_steps_that_movement_adds_up(options, batches):
    waited = Waited()
    by_movement(waited, **options)
    assert waited.batches == batches


def unknown_length(model, *callbacks, steps, epochs):
    x, y = data(n=8 * steps)
    batches = [(x[at : at + 8], y[at : at + 8]) for at in range(0, 8 * steps, 8)]
    for _ in range(epochs):
        model.fit((batch for batch in batches), shuffle=False, verbose=0, callbacks=list(callbacks))


def ends_early(model, *callbacks, steps, epochs):
    """An epoch of fewer batches than promised."""
    x, y = data(n=8 * steps)
    batches = ((x[at : at + 8], y[at : at + 8]) for at in range(0, 8 * steps, 8))
    options = {"steps_per_epoch": steps + 5, "shuffle": False, "verbose": 0}
    model.fit(batches, callbacks=list(callbacks), **options)


class Swaps(keras.callbacks.Callback):
    """Has other weights in place between two epochs, as SwapEMAWeights does."""

    def on_epoch_end(self, epoch, logs=None):
        self.held = self.model.get_weights()
        self.model.set_weights([1.5 * value if value.dtype == np.float32 else value for value in self.held])

    def on_epoch_begin(self, epoch, logs=None):
        if epoch:
            self.model.set_weights(self.held)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps_per_execution": 3},
        {"accumulated": 2},
        {"fitted": unknown_length},
        {"fitted": ends_early},
        {"fitted": ends_early, "update": PolynomialDecay(0.0, 0.5, 2, 3)},
    ],
)
@pytest.mark.parametrize("first", [[], [Swaps]])
def test_the_sums_of_movement_are_the_same_as_if_keras_waited(options, first):
    alone = by_movement(**options, first=[make() for make in first])
    waiting = by_movement(Plain(), **options, first=[make() for make in first])
    for one, other in zip(alone, waiting, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.private_api
def test_keras_waits_for_the_steps_of_movement_beside_a_callback_that_acts_as_they_begin():
    class Begins(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 6:
                self.model.get_layer(index=0).kernel.assign(self.model.get_layer(index=0).kernel * 0.5)

    waited = Waited()
    by_movement(Begins(), waited)
    assert waited.batches == 2 * list(range(10))


class Saves(GradualPruning):
    """Asks for its state as some steps begin."""

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch)
        if batch in (2, 6):
            self.get_state()
            self.model.evaluate(*data(n=8), verbose=0)
            self.get_state()


class Reads(Movement):
    """Reads the weights itself."""

    def after_step(self, model):
        super().after_step(model)
        self.seen = [weight.value() for weight in kprune.masked_weights(model)]


def of_its_own(context):
    return context.tracker.of(context.weights)


of_its_own.tracker = Reads


@pytest.mark.parametrize("make", [lambda: Saves(SCHEDULE, "movement"), lambda: GradualPruning(SCHEDULE, of_its_own)])
def test_no_step_is_told_twice_or_lost(make):
    def trained(*others):
        callback = make()
        fit(compiled(), callback, *others, epochs=2)
        return callback.pruner.tracker.arrays

    for one, other in zip(trained(), trained(Plain()), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("first", [True, False])
def test_movement_is_added_up_before_another_callback_prunes(first):
    """That one has work after a step for which Keras would not wait otherwise."""

    def trained(*others):
        model, magnitude = compiled(), GradualPruning(PolynomialDecay(0.0, 0.5, 6, 7))
        movement = GradualPruning(PolynomialDecay(0.0, 0.6, 8, 9), "movement")
        fit(model, *((magnitude, movement) if first else (movement, magnitude)), *others)
        return [*model.get_weights(), *movement.pruner.tracker.arrays]

    for one, other in zip(trained(), trained(Plain()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_interrupted_fit_leaves_movement_nothing_to_catch_up_with():
    class Breaks(keras.callbacks.Callback):
        async_safe = True  # so that Keras does not wait, and raises this as a later step ends

        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise RuntimeError("broken")

    late = PolynomialDecay(0.0, 0.75, 90, 98)
    interrupted, other = (GradualPruning(late, "movement") for _ in range(2))
    model = compiled()
    with pytest.raises(RuntimeError, match="broken"):
        fit(model, interrupted, Breaks(), steps=100)
    assert interrupted.pruner._untold is not None
    for callback in (interrupted, other):
        fit(compiled(), callback, steps=100)
    for one, same in zip(interrupted.pruner.tracker.arrays, other.pruner.tracker.arrays, strict=True):
        np.testing.assert_array_equal(one, same)
