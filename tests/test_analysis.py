"""`kprune.analysis`: distances and paths by hand, and a model that is as it was afterwards."""

import json

import keras
import numpy as np
import pytest
from helpers import CHEAP, built, data, halve, mlp, steady
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from test_prune import assert_unchanged, snapshot, trained

import kprune
from kprune.analysis import LinearPath, barrier, instability, linear_path, mask_distance, supermask
from kprune.lottery.rewind import Snapshot
from kprune.lottery.rewind import snapshot as point

pytestmark = [pytest.mark.one_session, pytest.mark.slow_on_jax]


class Broken(Exception):
    pass


def breaking_at(call):
    """An `evaluate` that spoils what it can and raises in its n-th call."""
    calls = []

    def evaluate(model):
        calls.append(1)
        model(np.ones((2, 8), "float32"), training=True)  # draws from the seed generator, moves the statistics
        model.evaluate(*data(), verbose=0)
        if len(calls) == call:
            raise Broken
        return 0.5

    return evaluate


def one_weight(*values):
    """A model with one weight, and its snapshots at these values."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse", metrics=["mse"], **CHEAP)
    built(model)
    points = []
    for value in values:
        model.set_weights([np.array([[value]])])
        points.append(point(model))
    return model, *points


def weight_of(model):
    return float(model.weights[0].numpy()[0, 0])


# Mask distance

BITS = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda bits: np.array(bits))


def two_weights(bits):
    return {"a": bits[:8].reshape(2, 4), "b": bits[8:]}


@steady
@given(BITS, BITS, BITS)
def test_mask_distance_is_a_distance(one, other, third):
    a, b, c = map(two_weights, (one, other, third))
    assert mask_distance(a, b) == mask_distance(b, a) == pytest.approx(np.mean(one != other))
    assert mask_distance(a, a) == 0
    assert mask_distance(a, c) <= mask_distance(a, b) + mask_distance(b, c) + 1e-12


def test_masks_with_other_names_are_matched_by_order_and_other_masks_refused():
    one = {"dense/kernel": np.array([True, False, True, True]), "logits/kernel": np.array([True])}
    other = {"dense_1/kernel": np.array([True, True, True, False]), "logits_1/kernel": np.array([False])}
    assert mask_distance(one, other) == 3 / 5
    assert mask_distance(one, dict(reversed(one.items()))) == 0
    with pytest.raises(ValueError, match=r"dense/kernel has shape \(4,\). Received: shape=\(3,\)"):
        mask_distance(one, {"dense/kernel": np.ones(3, bool), "logits/kernel": np.ones(1, bool)})
    with pytest.raises(ValueError, match=r"Received: arrays=1"):
        mask_distance(one, {"dense/kernel": np.ones(4, bool)})
    for pair, name in (((kprune.Ticket(one, {}), other), "one"), ((one, kprune.Ticket(other, {})), "other")):
        with pytest.raises(ValueError, match=rf"Received: {name}=Ticket\(masks="):
            mask_distance(*pair)


# Barrier


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], 0.0),
        ([1.0, 2.0, 3.0], 0.0),
        ([1.0, 0.0, 1.0], 0.0),
        ([0.0, 3.0, 0.0], 3.0),
        ([0.0, 2.0, 2.0], 1.0),
        ([4.0, 4.0, 2.0, 1.0], 1.0),
        ([0.0, float("inf"), 0.0], float("inf")),
    ],
)
def test_barrier_by_hand(values, expected):
    assert barrier(values) == expected
    assert barrier(values[::-1]) == expected
    assert barrier(np.array(values)) == expected


def test_a_barrier_of_nan_is_nan():
    assert np.isnan(barrier([0.0, float("nan"), 0.0]))


@pytest.mark.parametrize("values", [[1.0], [], [[1.0, 2.0], [1.0, 2.0]], [1, "x"], 5])
def test_no_barrier(values):
    with pytest.raises(ValueError, match=r"at least two numbers\. Received: values="):
        barrier(values)


# Linear path


def test_the_path_of_one_weight_is_the_parabola():
    model, one, other = one_weight(-1.0, 3.0)
    x, y = np.array([[1.0], [2.0]], "float32"), np.array([[1.0], [2.0]], "float32")  # loss = 2.5 * (w - 1) ** 2
    model.set_weights([np.array([[7.0]])])
    by_data = linear_path(model, one, other, (x, y), points=5, verbose=False)
    assert by_data.metric in ("mse", "mean_squared_error") and by_data.places == (0.0, 0.25, 0.5, 0.75, 1.0)
    np.testing.assert_allclose(by_data.values, [10.0, 2.5, 0.0, 2.5, 10.0], rtol=1e-6)
    assert by_data.rise == 0 and by_data.fall == pytest.approx(10)
    weights = linear_path(model, one, other, weight_of, points=3, verbose=False)
    assert weights == LinearPath((0.0, 0.5, 1.0), (-1.0, 1.0, 3.0), "weight_of")
    assert linear_path(model, one, other, weight_of).places == tuple(i / 10 for i in range(11))
    assert weight_of(model) == 7.0


def test_statistics_go_along_and_seeds_and_whole_numbers_stay():
    model = trained(**CHEAP)
    one = point(model)
    model.fit(*data(seed=1), batch_size=16, verbose=0)
    other = point(model)
    before, seen = snapshot(model), []
    linear_path(model, one, other, lambda m: seen.append(point(m).weights) or 0, points=3, verbose=False)
    assert_unchanged(model, before)
    begin, middle, end = seen
    assert any("moving_mean" in path for path in middle) and any("seed" in path for path in middle)
    moved = 0
    for path, value in middle.items():
        first, last = one.weights[path], other.weights[path]
        np.testing.assert_array_equal(begin[path], first)
        if "seed" in path:
            np.testing.assert_array_equal(value, first)
            assert (last != first).any()
        else:
            np.testing.assert_array_equal(end[path], last)
            np.testing.assert_allclose(value, (first + last) / 2, rtol=1e-6, atol=1e-7)
            moved += (value != first).any()
    assert moved == len(middle) - 1


def test_statistics_are_prepared_at_each_place():
    model = trained(**CHEAP)
    one, places = point(model), []
    model.fit(*data(seed=1), batch_size=16, verbose=0)
    mean = model.get_layer("norm").moving_mean

    def prepare(model):
        places.append(1)
        mean.assign(np.full(12, len(places), "float32"))

    path = linear_path(model, one, point(model), lambda m: float(mean.numpy()[0]), 4, prepare, verbose=False)
    assert path.values == (1.0, 2.0, 3.0, 4.0)


def test_what_the_masks_prune_is_zero_along_the_path():
    model = mlp()
    model.compile("sgd", "mse", **CHEAP)
    one = point(model)
    model.fit(*data(), verbose=0)
    other = point(model)
    kprune.mask(model)
    halve(model)

    def look(model):
        assert not kprune.masks.moved_weights(model)
        return float(np.abs(kprune.masked_weights(model)[0].value()).sum())

    (weight, *_), before = kprune.masked_weights(model), snapshot(model)
    path = linear_path(model, one, other, look, points=2, verbose=False)
    kept = weight.kept()
    for end, value in zip((one, other), path.values, strict=True):
        assert value == pytest.approx(np.abs(end.weights[weight.path][kept]).sum(), rel=1e-5)
    assert_unchanged(model, before)


@pytest.mark.slow
@pytest.mark.parametrize("call", [0, 1, 3])
@pytest.mark.parametrize("function", ["linear_path", "supermask"])
def test_the_model_is_as_it_was(function, call):
    model = trained(**CHEAP)
    if call != 1:
        kprune.prune(model, "random", 0.4)
        model.fit(*data(), batch_size=16, verbose=0)
    one, before, masked = point(model), snapshot(model), bool(kprune.masked_weights(model))
    other = Snapshot({path: value + 1 for path, value in one.weights.items()}, {})
    clone = trained(**CHEAP)
    kprune.prune(clone, "random", 0.7)

    def run():
        if function == "linear_path":
            return linear_path(model, one, other, breaking_at(call), points=4, verbose=False)
        return supermask(model, kprune.Ticket.of(clone), breaking_at(min(call, 1)))

    if call:
        with pytest.raises(Broken):
            run()
    else:
        run()
    assert_unchanged(model, before)
    assert bool(kprune.masked_weights(model)) == masked
    model.fit(*data(), batch_size=16, verbose=0)  # and it trains on


def test_a_bad_path_is_refused_before_anything_changes():
    model, one, other = one_weight(0.0, 1.0)
    before = snapshot(model)
    wrong = Snapshot({"kernel": np.ones((2, 1))}, {})
    for arguments, message in [
        (dict(points=1), "Received: points=1$"),
        (dict(points=10**30), r"from 2 to 1,000,000\. Received: points=1000"),
        (dict(points=2.0), "Received: points=2.0$"),
        (dict(one=wrong), r"`one` does not match.*Received: shape=\(2, 1\)$"),
        (dict(other=wrong), r"`other` does not match.*Received: shape=\(2, 1\)$"),
        (dict(evaluate=3), "Received: evaluate=3$"),
        (dict(evaluate=lambda model: "good"), "Received: evaluate=<lambda>, result='good'$"),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_path(model, **{"one": one, "other": other, "evaluate": weight_of, "verbose": False, **arguments})
        assert_unchanged(model, before)


def test_a_path_says_what_it_holds(tmp_path):
    path = LinearPath((0.0, 0.5, 1.0), (0.25, 1.0, 0.75), "loss")
    assert path.rise == 0.5 and path.fall == 0.0
    assert json.loads(json.dumps(path.to_dict())) == {
        "metric": "loss",
        "places": [0.0, 0.5, 1.0],
        "values": [0.25, 1.0, 0.75],
        "rise": 0.5,
        "fall": 0.0,
    }
    lines = str(path).splitlines()
    assert lines[0].split() == ["place", "loss"] and lines[3].split() == ["0.5", "1.0000"]
    assert lines[-1] == "largest deviation from the line between the ends: 0.5000 above, 0.0000 below"
    figure = path.plot(tmp_path / "path.png")
    assert (tmp_path / "path.png").stat().st_size > 1000
    curve, ends = figure.axes[0].get_lines()
    assert curve.get_xydata().tolist() == [[0.0, 0.25], [0.5, 1.0], [1.0, 0.75]]
    assert ends.get_xydata().tolist() == [[0.0, 0.25], [1.0, 0.75]]
    with pytest.raises(ValueError, match=r"Received: path='path.txt'$"):
        path.plot("path.txt")


# Instability


def batches_of(x, y):
    def train(model, seed):
        batches = kprune.RewindableBatches(x, y, 8, model, seed=seed)
        model.fit(batches, epochs=2, shuffle=False, verbose=0)

    return train


@pytest.mark.parametrize("masked", [False, True])
def test_the_ends_are_trainings_from_the_point(masked):
    model = trained(**CHEAP)
    if masked:
        kprune.prune(model, "magnitude", 0.5)
    early = kprune.callbacks.TakeSnapshot(3)
    train, (x, y) = batches_of(*data(n=64)), data(n=64, seed=1)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[early])
    if not masked:
        kprune.strip(model)
    before, seen = snapshot(model), []

    def look(model):
        seen.append(point(model).weights)
        return 0.0

    path = instability(model, train, look, at=early.snapshot, seeds=(5, 7), points=3, verbose=False)
    assert_unchanged(model, before)
    assert path.places == (0.0, 0.5, 1.0) and path.metric == "look"
    for seed, weights in ((5, seen[0]), (7, seen[2])):
        kprune.rewind(model, early.snapshot)
        train(model, seed)
        for name, value in point(model).weights.items():
            # Dropout's seed is that of the first copy, all along the path.
            np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert any((seen[0][name] != seen[2][name]).any() for name in seen[0])


def test_by_default_it_begins_now_and_equal_orders_end_alike():
    model = trained(**CHEAP)
    before = snapshot(model)
    train = batches_of(*data(n=64))
    path = instability(model, lambda m, seed: train(m, 0), data(), points=3, verbose=False)
    assert_unchanged(model, before)
    assert path.values[0] == path.values[1] == path.values[2] and path.rise == path.fall == 0


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_after_a_training_that_raises_the_model_is_as_it_was(masked):
    model = trained(**CHEAP)
    if masked:
        kprune.prune(model, "magnitude", 0.5)
    before, train = snapshot(model), batches_of(*data(n=64))

    def breaks(model, seed):
        train(model, seed)
        if seed:
            raise Broken

    def prunes(model, seed):
        train(model, seed)
        kprune.prune(model, "magnitude", 0.7)

    def masks(model, seed):
        model.fit(*data(), verbose=0, callbacks=[kprune.callbacks.TakeSnapshot()])

    with pytest.raises(Broken):
        instability(model, breaks, data(), verbose=False)
    assert_unchanged(model, before)
    with pytest.raises(Broken):
        instability(model, train, breaking_at(2), verbose=False)
    assert_unchanged(model, before)
    instability(model, masks, data(), points=2, verbose=False)
    assert_unchanged(model, before)
    with pytest.raises(ValueError, match=r"`train` must not change the masks.*Received: seed=0$"):
        instability(model, prunes, data(), verbose=False)
    assert_unchanged(model, before)


def test_a_bad_instability_is_refused_before_it_trains():
    model, one, _ = one_weight(0.0, 1.0)
    before = snapshot(model)
    other_model = point(trained(**CHEAP))

    def train(model, seed):
        raise AssertionError

    for arguments, message in [
        (dict(seeds=(1, 1)), r"Received: seeds=\(1, 1\)$"),
        (dict(seeds=(1,)), r"Received: seeds=\(1,\)$"),
        (dict(seeds=5), r"Received: seeds=5$"),
        (dict(seeds="ab"), r"must be two different integers. Received: seeds='ab'$"),
        (dict(seeds=(False, True)), r"Received: seeds=\(False, True\)$"),
        (dict(at=kprune.Ticket({}, {})), r"Received: at=<class 'kprune.lottery.ticket.Ticket'>$"),
        (dict(points=0), "Received: points=0$"),
        (dict(evaluate=None), "Received: evaluate=None$"),
        (dict(at=other_model), "The arrays do not match this"),
    ]:
        with pytest.raises(ValueError, match=message):
            instability(model, train, **{"evaluate": weight_of, "at": one, "verbose": False, **arguments})
    for v, name, value in before["weights"]:
        np.testing.assert_array_equal(v.numpy(), value, err_msg=name)


# Supermasks


def test_a_supermask_by_hand():
    model, begin = one_weight(2.0)
    kprune.mask(model)
    (weight,) = kprune.masked_weights(model)
    ticket = kprune.Ticket({weight.path: np.array([[True]])}, begin.weights)
    nothing = kprune.Ticket({weight.path: np.array([[False]])}, begin.weights)
    weight.variable.assign([[5.0]])
    x, y = np.array([[1.0]], "float32"), np.array([[4.0]], "float32")
    assert supermask(model, ticket, weight_of) == 2.0
    assert supermask(model, nothing, weight_of) == 0.0
    assert supermask(model, ticket, (x, y)) == 4.0 and supermask(model, nothing, (x, y)) == 16.0
    assert weight_of(model) == 5.0 and weight.kept().all()


def test_a_ticket_of_another_model_is_refused():
    model = mlp()
    weights = kprune.snapshot(model).weights
    kprune.mask(model)
    masks = {w.path: w.kept() for w in kprune.masked_weights(model)}
    kprune.strip(model)
    before = snapshot(model)
    for wrong, message in [
        (None, r"Received: ticket=<class 'NoneType'>$"),
        (kprune.Ticket({}, weights), r"`ticket` does not match the model.*Received: arrays=0$"),
        (kprune.Ticket(masks, {}), r"`ticket` does not match the model.*Received: arrays=0$"),
    ]:
        with pytest.raises(ValueError, match=message):
            supermask(model, wrong, weight_of)
        assert_unchanged(model, before)


@pytest.mark.slow
def test_supermasks_and_stability_on_digits():
    digits = kprune.data.load("digits")
    keras.utils.set_random_seed(0)
    x, y = digits.train
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(100, "relu"), layers.Dense(10, "softmax")]
    )
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"], **CHEAP)

    def train(model, seed):
        batches = kprune.RewindableBatches(x, y, 64, model, seed=seed)
        model.fit(batches, epochs=12, shuffle=False, verbose=0)

    untrained = point(model)
    same = instability(model, train, digits.test, points=5, verbose=False)
    train(model, 0)
    one = point(model)
    # The order of the data hardly matters on so small a task; the initial values do.
    model.set_weights(keras.models.clone_model(model).get_weights())
    train(model, 0)
    other = linear_path(model, one, point(model), digits.test, points=5, verbose=False)
    assert min(same.values) > 0.9 and min(other.values[0], other.values[-1]) > 0.9
    assert same.fall < 0.02 < 0.03 < other.fall
    kprune.rewind(model, one)
    initial = untrained.weights
    kprune.mask(model)
    tracker = kprune.criteria.InitialWeights()
    tracker.arrays = [initial[w.path] for w in kprune.masked_weights(model)]
    masks = kprune.prune(model, "init_final_sign", 0.6, trackers=tracker)
    found = supermask(model, kprune.Ticket(masks, initial), digits.test)
    random = kprune.controls.shuffled(masks)
    assert found > supermask(model, kprune.Ticket(random, initial), digits.test) + 0.2
    assert found > 0.5


@pytest.mark.parametrize(("signs", "expected"), [(False, {-2.0: -4.0, 0.5: 1.0}), (True, {-2.0: 0.0, 0.5: 0.0})])
def test_one_value_in_place_of_all_kept_weights(signs, expected):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, bias_initializer="ones")])
    model.set_weights([np.array([[3.0, -2.0], [0.5, 0.1]], "float32"), np.zeros(2, "float32")])
    masks = kprune.prune(model, "magnitude", 0.5)  # 3 and -2 stay
    before = model.get_weights()
    ones = np.ones((1, 2), "float32")
    found = kprune.analysis.weight_agnostic(model, lambda m: float(np.sum(m(ones))), [-2, 0.5], signs=signs)
    assert found.values == expected and found.mean == sum(expected.values()) / 2
    assert "shared value" in str(found) and found.to_dict()["values"] == {str(k): v for k, v in expected.items()}
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for path, mask in masks.items():
        np.testing.assert_array_equal(kprune.masks.current_masks(model)[path], mask)


def test_values_that_cannot_be_shared_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"no masks.*Received: model="):
        kprune.analysis.weight_agnostic(model, lambda m: 0.0)
    kprune.mask(model)
    for values in ([], [1, 1], [np.nan], ["1"], 3, "12", [True]):
        with pytest.raises(ValueError, match=r"`values` must contain.*Received: values="):
            kprune.analysis.weight_agnostic(model, lambda m: 0.0, values)
    with pytest.raises(ValueError, match=r"finite numbers, but 'two' is not one. Received: values=\[1, 'two'\]$"):
        kprune.analysis.weight_agnostic(model, lambda m: 0.0, [1, "two"])
    found = kprune.analysis.weight_agnostic(model, lambda m: 0.0, [1])
    found.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 0
