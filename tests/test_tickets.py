"""`kprune.tickets`: the search against all its outcomes, the starts by hand, and a model that is as it was."""

import functools
import json
import math

import keras
import numpy as np
import pytest
from helpers import CHEAP, data
from keras import layers
from test_prune import assert_unchanged, snapshot

import kprune
from kprune import tickets
from kprune.analysis import LinearPath
from kprune.lottery.rewind import Snapshot

pytestmark = pytest.mark.slow_on_jax

X, Y = data()


def network(classes=3, seed=1):
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(12, "relu", name="hidden")
    model = keras.Sequential([keras.Input((8,)), hidden, layers.Dense(classes, name="logits")])
    model.compile("adam", "mse", metrics=["mae"], **CHEAP)
    model.train_on_batch(X[:8], np.ones((8, classes)))  # so that slots and metrics are there
    return model


@functools.cache
def found_ticket():
    model = network()
    kprune.prune(model, "magnitude", 0.5)
    return kprune.Ticket.of(model)


class Starts:
    """A training that only notes what it begins with."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, seed):
        weights = {w.path.split("/")[-2]: (w.kept(), w.value()) for w in kprune.masked_weights(model)}
        self.seen.append((seed, weights, int(model.optimizer.iterations)))
        model.fit(X, np.ones((32, model.output_shape[-1])), batch_size=16, verbose=0)


# Late resetting by search


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_the_search_finds_the_first_stable_step_whichever_it_is(n, monkeypatch):
    steps = [10 * i for i in range(n)]
    snapshots = {step: Snapshot({"step": np.array(step)}, {}) for step in reversed(steps)}
    for first in range(n + 1):

        def path(model, train, evaluate, at, *rest, first=first):
            fall = 0.5 if at.weights["step"] < 10 * first else 0.01
            return LinearPath((0.0, 0.5, 1.0), (1.0, 1.0 - fall, 1.0), "accuracy")

        monkeypatch.setattr(tickets, "instability", path)
        found = tickets.stable_point(None, None, None, snapshots)
        assert found.step == (steps[first] if first < n else None)
        assert len(found.paths) <= math.ceil(math.log2(n)) + 1 and list(found.paths) == sorted(found.paths)
        assert found.barriers == pytest.approx({step: 0.5 if step < 10 * first else 0.01 for step in found.paths})


def test_the_points_table():
    found = tickets.StablePoint(20, {}, {0: 0.5, 20: 0.01}, 0.02)
    assert str(found).splitlines() == [
        " step   barrier   stable",
        " -----------------------",
        "    0    0.5000       no",
        "   20    0.0100      yes",
        "the smallest stable step is 20 (stable means a barrier of at most 0.02)",
    ]
    assert str(tickets.StablePoint(None, {}, {0: 0.5}, 0.02)).splitlines()[-1].startswith("no step is stable (")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"snapshots": {}}, r"Received: snapshots=\{\}"),
        ({"snapshots": 5}, "Received: snapshots=5$"),
        ({"snapshots": {"init": Snapshot({}, {})}}, "Each key of `snapshots` must be .*Received: key='init'$"),
        ({"snapshots": {True: Snapshot({}, {})}}, "Received: key=True$"),
        ({"snapshots": {0: Snapshot({}, {}), 5: None}}, r"a kprune.Snapshot. Received: snapshots\[5\]=NoneType$"),
        ({"threshold": 0}, "Received: threshold=0"),
        ({"barrier": "accuracy"}, "Received: barrier='accuracy'"),
    ],
)
def test_a_search_with_wrong_arguments_trains_nothing(wrong, message):
    model, train = network(), Starts()
    with pytest.raises(ValueError, match=message):
        tickets.stable_point(model, train, (X, Y), **{"snapshots": {0: kprune.snapshot(model)}, **wrong})
    assert not train.seen


# Near the start


def test_noise_has_the_relative_size_that_is_asked_for():
    ticket, model, train = found_ticket(), network(seed=2), Starts()
    before = snapshot(model)
    trials = tickets.neighborhood(model, ticket, train, (X, Y), sizes=[0.0, 0.25], seeds=[3, 4], verbose=0)
    assert_unchanged(model, before)
    assert kprune.masked_weights(model) == []
    assert [seed for seed, _, _ in train.seen] == [3, 4, 3, 4] and {steps for _, _, steps in train.seen} == {1}
    for path, mask in ticket.masks.items():
        name, start = path.split("/")[-2], ticket.weights[path]
        exact, _, near, other = (weights[name] for _, weights, _ in train.seen)
        for kept, value in (exact, near, other):
            np.testing.assert_array_equal(kept, mask)
            assert not value[~mask].any()
        np.testing.assert_array_equal(exact[1], start)
        for _, value in (near, other):
            assert np.linalg.norm(value - start) / np.linalg.norm(start) == pytest.approx(0.25, rel=1e-5)
        assert (near[1] != other[1])[mask].all()
    assert trials.metric == "mae" and list(trials.values) == [0.0, 0.25]
    assert [len(values) for values in trials.values.values()] == [2, 2]


# Other data


def test_a_transfer_trains_the_ticket_and_its_controls():
    ticket, model, train = found_ticket(), network(classes=5, seed=2), Starts()
    before = snapshot(model)
    y = np.ones((32, 5))
    trials = tickets.transfer(model, ticket, train, (X, y), skip="logits", seeds=[0, 1], verbose=0)
    assert_unchanged(model, before)
    assert list(trials.values) == ["dense", "ticket", "reinitialize", "shuffle"]
    path = next(path for path in ticket.masks if "hidden" in path)
    mask, start = ticket.masks[path], ticket.weights[path]
    for seed, found in ((0, train.seen[::2]), (1, train.seen[1::2])):
        assert [one for one, _, _ in found] == [seed] * 4
        (dense, own, redrawn, mixed) = ({name: found[name] for name in found} for _, found, _ in found)
        assert dense["hidden"][0].all()
        for start_of in (dense, own, redrawn, mixed):  # the head is dense and fresh, and the same
            assert start_of["logits"][0].all()
            np.testing.assert_array_equal(start_of["logits"][1], dense["logits"][1])
        np.testing.assert_array_equal(own["hidden"][0], mask)
        np.testing.assert_array_equal(own["hidden"][1], np.where(mask, start, 0))
        np.testing.assert_array_equal(redrawn["hidden"][0], mask)
        np.testing.assert_array_equal(redrawn["hidden"][1], np.where(mask, dense["hidden"][1], 0))
        assert mixed["hidden"][0].sum() == mask.sum() and (mixed["hidden"][0] != mask).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ticket": 5}, "Received: ticket="),
        ({"train": 5}, "Received: train=5"),
        ({"seeds": [0, 0]}, r"Received: seeds=\[0, 0\]"),
        ({"evaluate": 5}, "Received: evaluate=5"),
        ({"sizes": [-1.0]}, "Received: size=-1.0"),
        ({"sizes": []}, r"Received: sizes=\[\]"),
        ({"model": network(classes=4)}, "The ticket does not match the model"),
    ],
)
def test_wrong_arguments_train_nothing(wrong, message):
    given = {"model": network(), "ticket": found_ticket(), "train": Starts(), "evaluate": (X, Y), **wrong}
    before = snapshot(given["model"])
    with pytest.raises(ValueError, match=message):
        tickets.neighborhood(**given, verbose=0)
    assert_unchanged(given["model"], before)
    assert kprune.masked_weights(given["model"]) == [] and (given["train"] == 5 or not given["train"].seen)


def test_the_report(tmp_path):
    trials = tickets.Trials({"dense": (0.5, 0.7), "ticket": (0.8, 0.8)}, (0, 1), "accuracy", "start")
    assert str(trials).splitlines() == [
        "  start   accuracy    least     most",
        " -----------------------------------",
        "  dense     0.6000   0.5000   0.7000",
        " ticket     0.8000   0.8000   0.8000",
        "mean, least and greatest value of 2 seeds",
    ]
    assert json.loads(json.dumps(trials.to_dict()))["values"] == {"dense": [0.5, 0.7], "ticket": [0.8, 0.8]}
    figure = trials.plot(tmp_path / "trials.png")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.6, 0.8])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dense", "ticket"]


def test_each_lottery_trains_its_levels_as_long_and_the_tickets_equally_long():
    model, lengths, starts = network(), [], []
    before = snapshot(model)

    def train(model, seed, epochs):
        lengths.append((seed, epochs))
        starts.append({w.path: (w.kept(), w.value()) for w in kprune.masked_weights(model)})
        model.fit(X, np.ones((len(X), 3)), epochs=epochs, batch_size=32, shuffle=False, verbose=0)

    found = tickets.short_levels(
        model, train, (X, np.ones((len(X), 3))), epochs=[1, 3], full=2, levels=2, rate=0.5, seeds=[0, 4], verbose=0
    )
    # Levels 0, 1 and 2; then comes the training that is measured.
    assert lengths == [(seed, n) for e in (1, 3) for seed in (0, 4) for n in (e, e, e, 2)]
    assert (list(found.values), found.seeds, found.starts) == ([1, 3], (0, 4), "epochs per level")
    initial = {path: value for path, (_, value) in starts[0].items()}
    for place in (3, 7, 11, 15):  # a quarter is left, at its initial values
        kept = sum(int(mask.sum()) for mask, _ in starts[place].values())
        assert kept == 132 // 4
        for path, (mask, value) in starts[place].items():
            np.testing.assert_array_equal(value, np.where(mask, initial[path], 0))
    assert_unchanged(model, before)
    for wrong in (dict(epochs=[0]), dict(epochs=[1, 1]), dict(full=0), dict(epochs=[])):
        with pytest.raises(ValueError, match="Received: "):
            tickets.short_levels(model, train, (X, Y), **{"epochs": [1], "full": 1, **wrong})
    assert len(lengths) == 16
