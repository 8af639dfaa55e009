"""kprune.search: bisection over sparsities, the accepted one measured anew."""

import csv

import keras
import numpy as np
import pytest
from keras import layers

import kprune

pytestmark = pytest.mark.slow_on_jax

X = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")


def network(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(125)])
    model.compile("sgd", "mse")
    return model


class Trainings:
    """Counts trainings of networks whose value is a function of their sparsity and seed, so no training matters."""

    def __init__(self, value):
        self.value_of, self.done = value, []

    def train(self, model, trial):
        model.fit(X, X @ np.ones((8, 125)), batch_size=4, epochs=2, verbose=0, callbacks=trial.callbacks)
        self.done.append((trial.sparsity, trial.seed))

    def quality(self, model):
        return self.value_of(round(kprune.summary(model).sparsity, 3), self.done[-1][1])

    def search(self, model, **options):
        return kprune.search(model, self.train, self.quality, verbose=0, **options)


@pytest.mark.slow
def test_the_sparsest_network_within():
    model, trainings = network(), Trainings(lambda sparsity, seed: 1.0 if sparsity <= 0.9 else 0.9)
    found = trainings.search(model, steps=5, seeds=(0, 1))
    tried = [row.sparsity for row in found.rows if not row.anew]
    third, two_thirds = (round(1 - 0.5 * 50 ** (-n / 3), 6) for n in (1, 2))
    assert tried[0] == 0 and {0.5, 0.99, third, two_thirds} <= set(tried) and len(tried) == 3 + 5
    assert [row.accepted for row in found.rows] == [row.sparsity < 0.901 for row in found.rows]
    assert 0.88 < found.sparsity < 0.901
    assert (found.value, found.dense, found.within, found.metric) == (1.0, 1.0, 0.01, "quality")
    [again] = [row for row in found.rows if row.anew]
    assert (again.sparsity, again.accepted) == (found.sparsity, True)
    # Each training once: the sparsities on both seeds, the one found on fresh ones, beside the dense network.
    expected = [(s, seed) for s in tried for seed in (0, 1)]
    expected += [(s, seed) for s in (0.0, found.sparsity) for seed in (2, 3)]
    assert sorted(trainings.done) == sorted(expected)
    assert found.model is model and kprune.summary(model).zeros == int(1000 * found.sparsity)
    assert not found.rises
    assert "measured again: accepted" in str(found) and found.to_dict()["sparsity"] == found.sparsity


def test_the_sparsest_of_all_costs_one_sparsity():
    trainings = Trainings(lambda sparsity, seed: 0.5)
    found = trainings.search(network(), high=0.75)
    assert found.sparsity == 0.75 and trainings.done == [(0.0, 0), (0.75, 0), (0.0, 1), (0.75, 1)]


def test_what_does_not_hold_anew_is_given_up_for_the_next():
    trainings = Trainings(lambda sparsity, seed: 0.0 if seed == 1 and sparsity > 0.8 else 1.0)
    found = trainings.search(network(), high=0.9, low=0.7, steps=0)
    assert [(row.sparsity, row.accepted) for row in found.rows if row.anew] == [(0.7, True), (0.9, False)]
    assert found.sparsity == 0.7
    lucky = Trainings(lambda sparsity, seed: 0.0 if sparsity > (0.93 if seed == 0 else 0.88) else 1.0)
    found = lucky.search(network(), steps=5)
    again = {row.sparsity: row.accepted for row in found.rows if row.anew}
    assert (
        again == {s: s < 0.881 for s in again}
        and len(again) > 1
        and max(s for s in again if again[s]) == found.sparsity
    )


def test_nothing_within_leaves_the_model_as_it_was(caplog):
    model, trainings = network(), Trainings(lambda sparsity, seed: -sparsity)
    before = [np.array(v) for v in model.weights]
    found = trainings.search(model, within=0.25)
    assert (found.sparsity, found.value, found.dense, found.model) == (0.0, 0.0, 0.0, None)
    assert trainings.done == [(0.0, 0), (0.99, 0), (0.5, 0)]
    for v, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(v, value)
    assert "within 0.25 of the dense network" in str(found)


def test_a_value_that_rises_with_sparsity_is_reported(caplog):
    trainings = Trainings(
        lambda sparsity, seed: 0.2 if 0.8 < sparsity < 0.9 or sparsity > 0.97 else 1 - sparsity / 1000
    )
    found = trainings.search(network(), steps=3)
    dip, after = round(1 - 0.5 * 50 ** (-1 / 3), 6), round(1 - 0.5 * 50 ** (-2 / 3), 6)
    assert found.rises == ((dip, after),) and found.sparsity == after
    assert f"does not fall steadily: it rises from sparsity {dip} to {after}" in str(found)
    assert found.to_dict()["rises"] == [[dip, after]]


def test_networks_of_their_own_by_seed():
    seen = []

    def build(seed):
        seen.append(seed)
        return network(seed)

    found = Trainings(lambda sparsity, seed: 1.0).search(build, high=0.5, low=0.25, seeds=(3, 5))
    assert seen == [3, 5, 6, 7] and found.sparsity == 0.5


def test_a_search_resumes(tmp_path):
    class Stopped(Exception):
        pass

    def value(sparsity, seed):
        if stop and len(trainings.done) == stop:
            raise Stopped
        return 1.0 if sparsity < 0.8 else 0.5

    options = {"steps": 2, "folder": tmp_path, "settings": {"epochs": 2}}
    stop, trainings = 3, Trainings(value)
    with pytest.raises(Stopped):
        trainings.search(network(), **options)
    with open(tmp_path / "search.csv", newline="") as file:
        assert [float(row["sparsity"]) for row in csv.DictReader(file)] == [0.0, 0.99]
    stop, trainings = 0, Trainings(value)
    found = trainings.search(network(), **options)
    assert not {(0.0, 0), (0.99, 0)} & set(trainings.done) and len(trainings.done) == 5
    once_more = Trainings(value)
    again = once_more.search(network(), **options)
    # The network that was found is trained, and nothing else; its row stays.
    assert once_more.done == [(found.sparsity, 1)] and again.to_dict() == found.to_dict()
    wider = Trainings(value)
    assert wider.search(network(), **{**options, "within": 0.6}).sparsity == 0.99
    assert wider.done == [(0.99, 1)], "with another `within`, only what is new"
    with pytest.raises(ValueError, match="epochs=2 in the file, 3 now"):
        trainings.search(network(), **{**options, "settings": {"epochs": 3}})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"within": -0.1}, "`within` must be a number >= 0. Received: within=-0.1"),
        ({"low": 0.9, "high": 0.8}, "`low` must be below `high`. Received: low=0.9, high=0.8"),
        ({"high": 1.0}, "`high` must be a number above 0 and below 1"),
        ({"steps": -1}, "`steps` must be an integer >= 0"),
        ({"seeds": (0, 0)}, "`seeds` must contain at least one entry"),
        ({"criterion": "snap"}, "criterion='snap'"),
    ],
)
def test_arguments(options, says):
    trainings = Trainings(lambda sparsity, seed: 1.0)
    with pytest.raises(ValueError, match=says):
        trainings.search(network(), **options)
    assert not trainings.done


def test_models_and_functions_that_cannot_be_searched():
    trainings = Trainings(lambda sparsity, seed: float("nan"))
    with pytest.raises(ValueError, match=r"finite number. Received: value=nan, sparsity=0.0, seed=0"):
        trainings.search(network())
    pruned = network()
    kprune.prune(pruned, "magnitude", 0.5)
    with pytest.raises(ValueError, match="this model is already pruned"):
        trainings.search(pruned)
    plain = keras.Sequential([keras.Input((8,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="must be compiled"):
        trainings.search(plain)
    with pytest.raises(
        ValueError,
        match=r"sparsity 0, but the trial requires sparsity 0.99: "
        r".* pass `trial.callbacks` to fit\(\)\. Received: train=",
    ):
        kprune.search(network(), lambda model, trial: None, lambda model: 1.0, verbose=0)


def test_figure(tmp_path):
    trainings = Trainings(lambda sparsity, seed: 1.0 if sparsity < 0.9 else 0.5)
    figure = trainings.search(network(), steps=1).plot(tmp_path / "search.svg")
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sparsity", "quality")
    assert (tmp_path / "search.svg").stat().st_size > 0
