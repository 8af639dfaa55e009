"""Lottery tickets beside other callbacks: in any order, or refused by name; and where gradients are accumulated."""

import csv

import keras
import numpy as np
import pytest
from helpers import assert_programs_agree
from kprune.callbacks import LotteryTicket, TakeSnapshot
from marks import with_slow
from test_lottery import STEPS, X, Y, network, train

import kprune


def test_early_stopping_sees_each_level_for_itself():
    levels = []

    def fit(model, level):
        stopper = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100)
        history = train(model, 4, *level.callbacks, stopper)
        levels.append(len(history.epoch))
        return history

    kprune.find_ticket(network(), fit, levels=2, verbose=False)
    assert levels == [2, 2, 2]


def test_early_stopping_inside_one_fit_is_refused_by_name():
    lottery = LotteryTicket(levels=2, epochs_per_level=3)
    with pytest.raises(RuntimeError, match=r"level 0 of 2, after 2 of .*EarlyStopping.*find_ticket"):
        train(network(), 9, lottery, keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100))


def test_other_callbacks_beside_it(tmp_path):
    model = network(keras.optimizers.SGD(0.5))
    lottery = LotteryTicket(levels=1, epochs_per_level=2, rate=0.5)
    train(
        model,
        4,
        lottery,
        keras.callbacks.LearningRateScheduler(lottery.within_level(lambda epoch: [0.5, 0.25][epoch])),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
    )
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["learning_rate"]) for row in rows] == [0.5, 0.25, 0.5, 0.25]
    assert [int(float(row["level"])) for row in rows] == [0, 0, 1, 1]
    first, last = (keras.models.load_model(tmp_path / f"{epoch}.keras") for epoch in (2, 4))
    assert [round(kprune.summary(m).sparsity, 3) for m in (first, last)] == [0.0, 0.5]
    assert_programs_agree(last.predict(X[:9], verbose=0), model.predict(X[:9], verbose=0))


def test_the_learning_rate_variable_is_rewound():
    model = network(keras.optimizers.SGD(0.5))
    lottery = LotteryTicket(levels=1, epochs_per_level=1)
    rates = []

    class Reduce(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.125

    train(model, 2, lottery, Reduce())
    assert rates == [0.5, 0.5]


@pytest.mark.parametrize("restarts", [True, False])
def test_a_callback_that_restarts_forgets_the_level_before(restarts):
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100)
    rates = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    lottery = LotteryTicket(levels=1, epochs_per_level=3, restart=[plateau] if restarts else [])
    train(network(keras.optimizers.SGD(0.5)), 6, lottery, plateau, Watch())
    # Before 3.15, Keras's callback keeps its best whenever a training begins.
    forgets = restarts and tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15)
    assert rates == [0.5, 0.5, 0.25, 0.5, *([0.5, 0.25] if forgets else [0.25, 0.125])]


class Begins(keras.callbacks.Callback):
    """What a function of the model sees when each epoch's first batch begins."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.seen.append(self.look(self.model))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (lambda epoch: [0.5, 0.25, 0.125][epoch], [0.5, 0.25, 0.125, 0.25, 0.125]),
        (lambda epoch, rate: rate / 2, [0.25, 0.125, 0.0625, 0.125, 0.0625]),
    ],
    ids=["of the epoch", "of the rate"],
)
def test_a_schedule_within_levels_may_be_listed_before_or_after(schedule, expected, first):
    lottery = LotteryTicket(levels=1, epochs_per_level=3, rewind_to="epoch:1")
    rates = Begins(lambda model: float(model.optimizer.learning_rate))
    scheduler = keras.callbacks.LearningRateScheduler(lottery.within_level(schedule))
    train(network(keras.optimizers.SGD(0.5)), 5, *([scheduler, lottery] if first else [lottery, scheduler]), rates)
    assert rates.seen == expected


@pytest.mark.parametrize("first", [True, False])
def test_swapped_averages_do_not_pass_for_what_was_rewound(first):
    model = network(keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))
    lottery, swap = LotteryTicket(levels=1, epochs_per_level=1), keras.callbacks.SwapEMAWeights(True)
    begins = Begins(lambda model: kprune.masked_weights(model)[0].value())
    if not first:
        with pytest.raises(
            RuntimeError, match=r"before level 1 began.*SwapEMAWeights.* before LotteryTicket in `callbacks`\.$"
        ):
            train(model, 2, lottery, swap, begins)
        return
    train(model, 2, swap, lottery, begins)
    dense, ticket = begins.seen
    np.testing.assert_array_equal(ticket, np.where(ticket == 0, 0, dense))
    assert 0 < np.count_nonzero(ticket) < ticket.size


class Passes(kprune.RewindableBatches):
    """Notes the first pixels that differ of all that an epoch gives out."""

    def __init__(self, *args):
        self.seen = []
        super().__init__(*args)

    def on_epoch_begin(self):
        super().on_epoch_begin()
        self.seen.append([])

    def after(self, taken):
        x, y = super().after(taken)
        self.seen[-1] += x[:, 0].tolist()
        return x, y


@pytest.mark.parametrize("accumulated", [2, 4, 16])
def test_accumulated_gradients_see_all_data_in_each_epoch(accumulated):
    model = network(keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulated))
    x = X.copy()
    x[:, 0] = np.arange(len(x))
    batches = Passes(x, Y, 60, model)
    model.fit(batches, epochs=3, shuffle=False, verbose=0)
    epochs = [epoch for epoch in batches.seen if len(epoch) == len(x)]
    assert len(epochs) == 3 and all(sorted(epoch) == x[:, 0].tolist() for epoch in epochs)


@pytest.mark.parametrize("policy", with_slow(["mixed_float16"], ["float32"]))
@pytest.mark.parametrize(("accumulated", "at", "batches"), [(4, "epoch:3", 30), (16, "epoch:1", 10), (4, 3, 12)])
def test_accumulated_gradients_are_rewound_to_the_batch(accumulated, at, batches, policy):
    keras.config.set_dtype_policy(policy)
    model = network(keras.optimizers.SGD(0.001, gradient_accumulation_steps=accumulated))
    early = TakeSnapshot(at)
    train(model, 4, early)
    [taken] = [array for name, array in early.snapshot.optimizer.items() if name.endswith("/iteration") and array > 0]
    assert taken == batches

    lottery = LotteryTicket(levels=1, epochs_per_level=4, rewind_to=at)
    total = lottery.total_epochs(STEPS / accumulated)
    assert total == 8 - batches // STEPS
    train(network(keras.optimizers.SGD(0.001, gradient_accumulation_steps=accumulated)), total, lottery)
    assert lottery.results[-1]["level"] == 1
