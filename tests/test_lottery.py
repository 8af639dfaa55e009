"""Lottery tickets: a rewind is exact, and levels are what they say."""

import keras
import numpy as np
import pytest
from helpers import assert_zero
from keras import layers
from kprune.callbacks import LotteryTicket, TakeSnapshot
from marks import with_slow
from sklearn.datasets import load_digits

import kprune
from kprune.lottery.levels import Lottery, State
from kprune.lottery.rewind import RewindPoint, rewind, snapshot
from kprune.pruning import Pruner
from kprune.runtime.files import unpack

DIGITS = load_digits()
X, Y = (DIGITS.data / 16).astype("float32")[:600], DIGITS.target[:600]
STEPS = 10  # an epoch of 600 images in batches of 60


def network(optimizer=None, seed=1):
    """With everything that a rewind must bring back: statistics, dropout, slots, a learning rate schedule."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(24, "relu", name="hidden1"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.1, seed=3, name="dropout"),
            layers.Dense(16, "relu", name="hidden2"),
            layers.Dense(10, "softmax", name="logits"),
        ],
        name="net",
    )
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 3 * STEPS)
    model.compile(optimizer or keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["acc"])
    return model


def train(model, epochs, *callbacks, initial_epoch=0):
    batches = kprune.RewindableBatches(X, Y, 60, model, seed=2)
    return model.fit(
        batches, epochs=epochs, initial_epoch=initial_epoch, callbacks=list(callbacks), shuffle=False, verbose=0
    )


def assert_same(one, other, but=()):
    """All weights, statistics, seeds, slots and counters of two snapshots are equal bit for bit."""
    for part in ("weights", "optimizer"):
        assert list(getattr(one, part)) == list(getattr(other, part))
        for name, array in getattr(one, part).items():
            if name not in but:
                np.testing.assert_array_equal(array, getattr(other, part)[name], err_msg=name)


def masks(model):
    return {weight.path: weight.kept() for weight in kprune.masked_weights(model)}


@pytest.mark.parametrize(
    ("words", "point"),
    [
        (["init", 0, "0", "step:0"], RewindPoint(steps=0)),
        ([100, "100", "step:100"], RewindPoint(steps=100)),
        (["epoch:2", "epoch:2.0"], RewindPoint(epochs=2.0)),
        ([0.25, "0.25", "fraction:0.25", RewindPoint(share=0.25)], RewindPoint(share=0.25)),
        ([1e-5, "1e-05"], RewindPoint(share=1e-5)),
    ],
)
def test_a_rewind_point_is_told_in_one_way_everywhere(words, point):
    assert [RewindPoint.of(word) for word in words] == [point] * len(words)


@pytest.mark.parametrize(
    "wrong",
    ["", ".", "begin", "1.5", "step:1.5", "step:", "epoch:nan", "epoch:-1", "-1", "1_0", "e-5", None, [1], True],
)
def test_other_words_for_a_rewind_point_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: rewind_to="):
        RewindPoint.of(wrong)


def test_the_old_word_is_answered_with_the_new_one():
    with pytest.raises(ValueError, match=r"'finetune' is now called 'none'\. Received: rewind='finetune'"):
        LotteryTicket(levels=1, epochs_per_level=1, rewind="finetune")


@pytest.mark.parametrize("optimizer", with_slow([None, "adamw"], ["sgd", "lion"]))
def test_a_level_after_a_rewind_to_init_is_a_fresh_fit_under_its_mask(optimizer):
    model = network(optimizer)
    lottery = LotteryTicket(levels=1, epochs_per_level=2, rate=0.6)
    train(model, lottery.total_epochs(), lottery)

    fresh = network(optimizer)
    kprune.mask(fresh)
    kprune.set_masks(fresh, masks(model))
    train(fresh, 2)
    assert_same(snapshot(model), snapshot(fresh))
    assert_zero(model)


def test_epochs_may_be_a_number_of_numpy():
    taker = TakeSnapshot("epoch:1")
    train(network(), np.int64(2), taker)
    assert taker.snapshot is not None


@pytest.mark.parametrize("at", with_slow([7, "fraction:0.35"], ["epoch:1", "step:7", 0.35]))
def test_a_rewind_to_a_step_is_a_run_that_stopped_there(at):
    model = network()
    early = TakeSnapshot(at)
    train(model, 2, early)
    rewind(model, early.snapshot)

    step = RewindPoint.of(at).in_batches(2, STEPS)
    assert step == (10 if at == "epoch:1" else 7)
    stopped = network()
    kprune.mask(stopped)
    batches = kprune.RewindableBatches(X, Y, 60, stopped, seed=2)
    stopped.fit(batches, steps_per_epoch=step, shuffle=False, verbose=0)
    assert_same(snapshot(model), snapshot(stopped))
    train(model, 1)
    train(stopped, 1)
    assert_same(snapshot(model), snapshot(stopped))


def test_later_levels_start_from_the_rewind_point_and_share_its_history():
    model = network()
    lottery = LotteryTicket(levels=2, epochs_per_level=3, rate=0.5, rewind_to="epoch:1")
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen[epoch] = snapshot(self.model)

    assert lottery.total_epochs() == 7
    history = train(model, 7, lottery, Look()).history
    assert history["level"] == [0, 0, 0, 1, 1, 2, 2]
    size = sum(weight.size for weight in kprune.masked_weights(model))
    zeros = [0, 0, 0, *2 * [size // 2], *2 * [size * 3 // 4]]
    assert [round(s * size) for s in history["sparsity"]] == zeros
    for epoch in (3, 5):
        for path, value in seen[1].weights.items():
            rewound = seen[epoch].weights[path]
            np.testing.assert_array_equal(rewound, np.where(rewound == 0, 0, value) if "kernel" in path else value)
        assert seen[epoch].optimizer["0/iteration"] == STEPS
    assert int(model.optimizer.iterations) == 3 * STEPS
    assert [row["level"] for row in lottery.results] == [0, 1, 2]
    assert lottery.results[1]["acc"] == history["acc"][4]


def test_a_rewind_point_in_steps_needs_no_steps_per_epoch_within_the_first_epoch():
    early = LotteryTicket(levels=1, epochs_per_level=2, rewind_to=STEPS - 1)
    late = LotteryTicket(levels=1, epochs_per_level=2, rewind_to=STEPS)
    assert early.total_epochs() == early.total_epochs(STEPS) == late.fit_kwargs()["epochs"] == 4
    with pytest.raises(ValueError, match=r"call fit with epochs=3\. Received: epochs=4"):
        train(network(), late.total_epochs(), late)


@pytest.mark.parametrize("how", ["weights", "learning_rate", "none"])
def test_what_each_rewind_brings_back(how):
    model = network()
    kprune.mask(model)
    before = snapshot(model)
    train(model, 1)
    trained = snapshot(model)
    rewind(model, before, how)
    now = snapshot(model)
    for part, back in (("weights", how == "weights"), ("optimizer", how != "none")):
        for name, array in getattr(now, part).items():
            np.testing.assert_array_equal(array, getattr(before if back else trained, part)[name], err_msg=name)


def test_a_learning_rate_rewind_ends_at_the_same_step():
    model = network()
    lottery = LotteryTicket(levels=1, epochs_per_level=2, rewind_to="epoch:1", rewind="learning_rate")
    train(model, lottery.total_epochs(), lottery)
    assert int(model.optimizer.iterations) == 2 * STEPS


def test_two_runs_are_the_same():
    tickets = []
    for _ in range(2):
        lottery = LotteryTicket(levels=2, epochs_per_level=1, rate=0.5)
        train(network(), 3, lottery)
        tickets.append(lottery.ticket)
    assert tickets[0].checksum == tickets[1].checksum
    assert tickets[0].about == tickets[1].about


def test_a_second_fit_begins_anew():
    model = network()
    lottery = LotteryTicket(levels=1, epochs_per_level=1, rate=0.5)
    train(model, 2, lottery)
    train(model, 2, lottery)
    assert [round(row["sparsity"], 3) for row in lottery.results] == [0.5, 0.75]


def test_steps_per_execution_takes_the_snapshot_at_the_next_batch_end():
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", steps_per_execution=5)
    early = TakeSnapshot(7)
    train(model, 1, early)
    assert early.snapshot.optimizer["0/iteration"] == 10


def test_find_ticket_is_the_callback_around_the_users_own_fits(tmp_path):
    model, levels = network(), []

    def fit(model, level):
        levels.append(level)
        return train(model, 2, *level.callbacks, initial_epoch=level.initial_epoch)

    found = kprune.find_ticket(
        model, fit, levels=2, rate=0.5, rewind_to="epoch:1", folder=tmp_path / "run", verbose=False
    )
    other = network()
    lottery = LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to="epoch:1", path=tmp_path / "other.npz")
    train(other, lottery.total_epochs(), lottery)
    assert found.checksum == lottery.ticket.checksum == kprune.Ticket.load(tmp_path / "other.npz").checksum
    assert_same(snapshot(model), snapshot(other))
    assert [(level.number, level.initial_epoch) for level in levels] == [(0, 0), (1, 1), (2, 1)]
    assert kprune.Ticket.load(tmp_path / "run" / "level-1.npz").sparsity == pytest.approx(0.5, abs=1e-3)
    files = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_file())
    assert files == ["level-0.npz", "level-1.npz", "level-2.npz", "rewind-point.npz", "state.npz"]
    arrays, _ = unpack((tmp_path / "run" / "state.npz").read_bytes(), "state.npz")
    assert {name.partition("/")[0] for name in arrays} == {"mask", "now"}  # the rewind point is kept once
    assert [row["acc"] for row in found.about["results"]] == [row["acc"] for row in lottery.results]


def test_find_ticket_goes_on_where_it_was_stopped(tmp_path):
    def fit(model, level):
        if level.number == stop:
            raise KeyboardInterrupt
        called.append(level.number)
        return train(model, 1, *level.callbacks)

    options = {"levels": 3, "rate": 0.5, "verbose": False}
    called, stop = [], None
    whole = kprune.find_ticket(network(), fit, **options)
    called, stop = [], 2
    with pytest.raises(KeyboardInterrupt):
        kprune.find_ticket(network(), fit, folder=tmp_path, **options)
    assert called == [0, 1]
    stop = None
    resumed = kprune.find_ticket(network(seed=9), fit, folder=tmp_path, **options)
    assert called == [0, 1, 2, 3]
    assert resumed.checksum == whole.checksum and resumed.about == whole.about
    with pytest.raises(ValueError, match=r"a lottery with different settings.*Received: folder="):
        kprune.find_ticket(network(), fit, folder=tmp_path, **{**options, "rate": 0.4})


def test_the_levels_are_an_iterator_that_any_loop_can_go_through():
    model, seen = network(), []
    kprune.mask(model)
    lottery = Lottery.of(2, 0.5, "init", "weights", Pruner(kprune.PruningConfig()))
    state = State.load(None, lottery, model)
    for level in lottery.run(model, state):
        seen.append((level.number, round(level.sparsity, 3), level.initial_epoch))
        train(model, 1)
        state.end(level, {}, None, lottery, model)
    assert seen == [(0, 0.0, 0), (1, 0.5, 0), (2, 0.75, 0)]

    def fit(model, level):
        train(model, 1, *level.callbacks)

    found = kprune.find_ticket(network(), fit, levels=2, rate=0.5, verbose=False)
    ticket = state.ticket(lottery, model)
    assert ticket.checksum == found.checksum and ticket.about == found.about


def test_a_rewind_point_is_kept_once_and_that_of_a_killed_level_counts_no_more(tmp_path):
    def fit(model, level):
        train(model, 2, *level.callbacks, initial_epoch=level.initial_epoch)
        if level.number == stop:
            raise KeyboardInterrupt

    options = {"levels": 2, "rate": 0.5, "rewind_to": "epoch:1", "verbose": False, "folder": tmp_path}
    stop, point = 0, tmp_path / "rewind-point.npz"
    with pytest.raises(KeyboardInterrupt):
        kprune.find_ticket(network(), fit, **options)
    point.write_bytes(b"of a level that did not end")
    stop = 1
    with pytest.raises(KeyboardInterrupt):
        kprune.find_ticket(network(), fit, **options)
    kept = point.read_bytes()
    point.unlink()
    missing = r"rewind point is missing: restore this file, .*\. Received: file='.*rewind-point\.npz'"
    with pytest.raises(ValueError, match=missing):
        kprune.find_ticket(network(), fit, **options)
    point.write_bytes(kept)
    stop = None
    resumed = kprune.find_ticket(network(), fit, **options)
    whole = kprune.find_ticket(network(), fit, **{**options, "folder": None})
    assert point.read_bytes() == kept and resumed.checksum == whole.checksum


def test_find_ticket_shuffles_each_level_alike_with_a_seed():
    seen = []

    class Losses(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    def fit(model, level):
        model.fit(X, Y, batch_size=20, callbacks=[*level.callbacks, Losses()], verbose=0)

    model = keras.Sequential([keras.Input((64,)), layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(True))
    kprune.find_ticket(model, fit, levels=1, rate=0.001, rewind="none", shuffle_seed=5, verbose=False)
    # One weight less changes a loss by far less than other examples do.
    assert len(seen) == 60 and seen[:30] == pytest.approx(seen[30:], rel=5e-3)
    assert np.ptp(seen[:5]) > 0.03 * seen[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": 0},
        {"levels": 1.5},
        {"rate": 0.0},
        {"rate": 1.0},
        {"rate": 1},
        {"rate": True},
        {"rate": "0.5"},
        {"epochs_per_level": 0},
        {"rewind": "all"},
        {"rewind": "finetune"},
        {"rewind_to": "begin"},
        {"rewind_to": -1},
        {"rewind_to": 1.0},
        {"rewind_to": "fraction:1.5"},
        {"rewind_to": True},
        {"criterion": "magnitud"},
        {"criterion": "snip"},
        {"criterion": kprune.PruningConfig(), "seed": 1},
        {"path": "ticket"},
        {"path": 5},
        {"restart": 5},
        {"restart": [5]},
        {"restart": keras.callbacks.ReduceLROnPlateau()},
    ],
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        LotteryTicket(**{"levels": 1, "epochs_per_level": 1, **wrong})


def test_a_rate_may_be_a_number_of_numpy():
    assert LotteryTicket(1, 1, rate=np.float32(0.25)).lottery.settings["rate"] == 0.25


@pytest.mark.parametrize(
    ("epochs", "rewind_to", "message"),
    [
        (3, "init", "call fit with epochs=4. Received: epochs=3"),
        (4, 20, r"before the end of a level \(batch 20\)"),
        (4, "epoch:2", "before the end"),
    ],
)
def test_a_fit_that_does_not_fit_the_levels_is_refused_before_it_begins(epochs, rewind_to, message):
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        train(model, epochs, LotteryTicket(levels=1, epochs_per_level=2, rewind_to=rewind_to))
    assert kprune.masked_weights(model) == []
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fit_that_begins_in_a_later_level_without_its_state_is_refused():
    model = network()
    with pytest.raises(ValueError, match=r"no lottery state was restored.*Received: initial_epoch=2"):
        train(model, 4, LotteryTicket(levels=1, epochs_per_level=2), initial_epoch=2)
    assert kprune.masked_weights(model) == []


@pytest.mark.parametrize(("at", "initial_epoch"), [("epoch:3", 0), (20, 0), ("epoch:1", 1), (10, 1)])
def test_a_snapshot_that_the_fit_does_not_reach_is_refused_before_it_begins(at, initial_epoch):
    model = network()
    with pytest.raises(ValueError, match="Received: "):
        train(model, 2, TakeSnapshot(at), initial_epoch=initial_epoch)
    assert kprune.masked_weights(model) == [] and int(model.optimizer.iterations) == 0


def test_a_metric_of_several_values_is_noted_as_they_are(tmp_path):
    model, targets = network(), keras.utils.to_categorical(Y)
    model.compile("adam", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    lottery = LotteryTicket(levels=1, epochs_per_level=1, path=tmp_path / "ticket.npz")
    history = model.fit(X, targets, epochs=2, verbose=0, callbacks=[lottery]).history
    results = kprune.Ticket.load(tmp_path / "ticket.npz").about["results"]
    for row, values in zip(results, history["f1_score"], strict=True):
        assert row["f1_score"] == np.asarray(values).tolist() and len(values) == 10


def test_what_train_returns_is_noted_and_must_be_numbers():
    def returning(result):
        def fit(model, level):
            train(model, 1, *level.callbacks)
            return result

        return kprune.find_ticket(network(), fit, levels=1, rate=0.5, verbose=False).about["results"]

    assert returning({"f1": [0.5, 1], "level": 99}) == [
        {"f1": [0.5, 1.0], "level": 0, "sparsity": 0.0},
        {"f1": [0.5, 1.0], "level": 1, "sparsity": 0.5},
    ]
    assert [row["result"] for row in returning(0.25)] == [0.25, 0.25]
    for wrong in ("x", {"a": "b"}):
        with pytest.raises(ValueError, match="Received: "):
            returning(wrong)


def test_find_ticket_refuses_what_it_cannot_drive_and_changes_nothing():
    model = network()
    with pytest.raises(ValueError, match="Received: train=5"):
        kprune.find_ticket(model, 5, levels=1)
    assert kprune.masked_weights(model) == []


def test_a_training_may_compile_the_model_itself(tmp_path):
    def begin():
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((64,)), layers.Dense(10, "softmax")])

    def fit(model, level):
        if level.number == stop:
            raise KeyboardInterrupt
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        return train(model, 1, *level.callbacks)

    stop, model = None, begin()
    ticket = kprune.find_ticket(model, fit, levels=2, rate=0.5, verbose=False)
    assert int(model.optimizer.iterations) == STEPS
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        kprune.find_ticket(begin(), fit, levels=2, rate=0.5, folder=tmp_path, verbose=False)
    stop, again = None, begin()
    assert kprune.find_ticket(again, fit, levels=2, rate=0.5, folder=tmp_path, verbose=False).sparsity == 0.75
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert ticket.sparsity == 0.75
    with pytest.raises(ValueError, match="match this optimizer"):
        kprune.find_ticket(begin(), fit, levels=1, rewind="learning_rate", verbose=False)


def test_a_training_of_several_fits_is_rewound_to_a_step_of_all():
    model, begun = network(), []

    def fit(model, level):
        begun.append(int(model.optimizer.iterations))
        train(model, 1, *level.callbacks)
        return train(model, 2, *level.callbacks)

    kprune.find_ticket(model, fit, levels=1, rewind_to=4, verbose=False)
    assert begun == [0, 4]
    assert int(model.optimizer.iterations) == 4 + 3 * STEPS


def test_a_folder_of_another_lottery_is_refused(tmp_path):
    def stopped(model, level):
        if level.number == 1:
            raise KeyboardInterrupt
        return train(model, 1, *level.callbacks)

    with pytest.raises(KeyboardInterrupt):
        kprune.find_ticket(network(), stopped, levels=1, folder=tmp_path, verbose=False)
    for other in ({"pattern": "channel"}, {"scope": "layerwise"}, {"rounds": 3}, {"rate": 0.25}):
        with pytest.raises(ValueError, match="belongs to a lottery with different settings"):
            kprune.find_ticket(network(), stopped, levels=1, folder=tmp_path, verbose=False, **other)


def test_rewinding_to_another_model_or_optimizer_is_refused_and_changes_nothing():
    model, other = network(), network("sgd")
    taken = snapshot(other)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"match this optimizer.*Received: arrays=2"):
        rewind(model, taken)
    with pytest.raises(ValueError, match="Received: what='all'"):
        rewind(model, before, "all")
    assert_same(snapshot(model), before)


def test_batches_come_in_the_order_of_the_optimizers_steps():
    x, y = X[:25], Y[:25]
    model, other = (keras.Sequential([keras.Input((64,)), layers.Dense(10, "softmax")]) for _ in range(2))
    other.set_weights(model.get_weights())
    for each in (model, other):
        each.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    batches = kprune.RewindableBatches(x, y, 10, model, seed=1)
    for epochs in (2, 1):  # a second fit goes on where the first one ended
        model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    model.optimizer.iterations.assign(4)
    model.fit(batches, shuffle=False, verbose=0)
    for step in (*range(9), 4, 5, 6):
        order = np.random.default_rng([1, step // 3]).permutation(25)
        chosen = order[step % 3 * 10 :][:10]
        other.train_on_batch(x[chosen], y[chosen])
    for value, wanted in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-7)


def test_batches_in_another_order_are_refused():
    model = network()
    with pytest.raises(Exception, match="shuffle=False"):
        model.fit(kprune.RewindableBatches(X, Y, 60, model), shuffle=True, verbose=0)


def test_batches_that_end_an_epoch_early_are_refused():
    model = network()
    with pytest.raises(Exception, match="without steps_per_epoch"):
        model.fit(kprune.RewindableBatches(X, Y, 60, model), epochs=2, steps_per_epoch=4, shuffle=False, verbose=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": None},
        {"model": keras.Sequential([layers.Dense(1)])},
        {"y": list(Y)},
        {"y": 5},
        {"y": Y[:5]},
        {"batch_size": True},
        {"batch_size": 0},
        {"seed": -1},
        {"seed": "a"},
    ],
)
def test_wrong_batches_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        kprune.RewindableBatches(**{"x": X, "y": Y, "batch_size": 60, "model": network(), **wrong})
