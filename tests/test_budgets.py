"""Budgets: channels go until what the shrunk model costs, in multiply-adds or parameters, fits; worked out by hand."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, data, mlp
from keras import layers
from kprune.callbacks import EarlyBird, GradualPruning, LotteryTicket, PruneAtInit

import kprune


def scored(model):
    """A criterion by which unit 1 of the second layer goes first, then unit 1 of the first layer."""
    scores = [np.tile([1.0, 1.9], (8, 1)), np.array([[5.0, 5.0], [1.0, 1.0]]), np.array([[9.0] * 3, [0.1] * 3])]
    by_path = {w.path: s for w, s in zip(kprune.masked_weights(model), scores, strict=True)}
    return lambda context: by_path


def units(model):
    return [layer.units for layer in kprune.shrink(model).layers]


# 8 -> 2 -> 2 -> 3: 16 + 4 + 6 = 26 multiply-adds; 21 without a unit of the second layer, 12 without one of each.
# With biases 33 parameters; 27 and 17.
@pytest.mark.once
@pytest.mark.parametrize(
    ("budget", "left"),
    [
        ({"flops": 0.81}, [2, 1, 3]),  # 21.06
        ({"flops": 0.80}, [1, 1, 3]),  # 20.8
        ({"flops": 0.47}, [1, 1, 3]),  # 12.22
        ({"parameters": 0.82}, [2, 1, 3]),  # 27.06
        ({"parameters": 0.81}, [1, 1, 3]),  # 26.73
    ],
)
def test_by_hand(budget, left):
    model = mlp(units=2)
    kprune.mask(model)
    kprune.prune(model, scored(model), budget=budget, groups="channels", verbose=0)
    assert units(model) == left


def convolutions():
    given = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(given)
    x = layers.DepthwiseConv2D(3, padding="same", name="d")(x)
    y = layers.Conv2D(8, 1, name="b")(x)
    x = layers.BatchNormalization()(layers.Add()([x, y]))
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="c")(x)
    return keras.Model(given, layers.Dense(3, name="out")(layers.Flatten()(x)))


def cost(model, unit):
    report = kprune.summary(model)
    return report.flops + report.other_flops if unit == "flops" else model.count_params()


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("unit", ["flops", "parameters"])
def test_it_is_what_the_shrunk_model_costs(unit):
    from kprune.channels import ChannelGroups, Costs

    model, dense = convolutions(), cost(convolutions(), unit)
    masks = kprune.prune(model, "magnitude", budget={unit: 0.5}, groups="channels", verbose=0)
    groups = ChannelGroups(model)
    costs = Costs(model, groups, unit)
    left = costs.of(groups.pooled(masks, masks)[1] > 0)
    assert costs.total == dense and left == cost(kprune.shrink(model), unit) <= 0.5 * dense
    again = kprune.prune(model, "magnitude", budget={unit: 0.5}, groups="channels", verbose=0)
    assert all(np.array_equal(again[path], masks[path]) for path in masks)


@pytest.mark.once
def test_multiples_fit_it_too():
    model = mlp(units=24)
    kprune.prune(model, "magnitude", budget={"flops": 0.5}, groups="channels:8", verbose=0)
    assert [n % 8 for n in units(model)[:2]] == [0, 0]
    assert cost(kprune.shrink(model), "flops") <= 0.5 * cost(mlp(units=24), "flops")


@pytest.mark.parametrize(
    "callback",
    [
        lambda: PruneAtInit("synflow", groups="channels", budget={"flops": 0.5}, rounds=4, verbose=0),
        lambda: GradualPruning(groups="channels", budget={"flops": 0.5}, begin=0.0, end=0.5, frequency=1),
    ],
    ids=["at init", "gradual"],
)
def test_in_training(callback):
    model = mlp()
    model.compile("adam", "mse", **CHEAP)
    model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[callback()])
    left = cost(kprune.shrink(model), "flops")
    assert 0.3 * 276 < left <= 0.5 * 276  # 8 * 12 + 12 * 12 + 12 * 3


@pytest.mark.parametrize(
    "callback",
    [
        lambda: PruneAtInit("magnitude", groups="channels", budget={"flops": 0.04}),
        lambda: GradualPruning(groups="channels", budget={"flops": 0.04}),
        lambda: None,
    ],
    ids=["at init", "gradual", "prune"],
)
def test_what_cannot_be_kept_is_said_before_anything_changes(callback):
    model = mlp()
    model.compile("adam", "mse", **CHEAP)
    before = [np.array(w) for w in model.get_weights()]
    # One unit in each layer: 8 + 1 + 3.
    with pytest.raises(ValueError, match=r"1 channel left in each layer.* 12 of 276 flops remain.*Received: budget="):
        if callback() is None:
            kprune.prune(model, "magnitude", budget={"flops": 0.04}, groups="channels")
        else:
            model.fit(*data(), verbose=0, callbacks=[callback()])
    assert kprune.masked_weights(model) == []
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.once
def test_wrong_arguments():
    for wrong in ({}, {"flops": 0.5, "parameters": 0.5}, {"macs": 0.5}, 0.5, {"flops": 1.0}, {"flops": None}):
        with pytest.raises(ValueError, match="Received: budget"):
            kprune.PruningConfig(groups="channels", budget=wrong)
    with pytest.raises(ValueError, match=r"cannot be a latency.*latency_budget\(model, 0\.5\)"):
        kprune.PruningConfig(groups="channels", budget={"latency": 0.5})
    with pytest.raises(ValueError, match='requires groups="channels"'):
        kprune.PruningConfig(budget={"flops": 0.5})
    config = kprune.PruningConfig(groups="channels", budget={"flops": 0.5})
    assert kprune.PruningConfig.from_config(config.get_config()) == config and hash(config)
    both = "either a sparsity or a budget, not both"
    for given in (lambda: kprune.prune(mlp(), config, 0.5), lambda: PruneAtInit(config, 0.5)):
        with pytest.raises(ValueError, match=both):
            given()
    with pytest.raises(ValueError, match=both):
        GradualPruning(0.5, config)
    for neither in (lambda: kprune.prune(mlp(), "magnitude"), lambda: GradualPruning()):
        with pytest.raises(ValueError, match="either a sparsity or a budget"):
            neither()
    for other in (lambda: EarlyBird(config), lambda: LotteryTicket(2, 1, criterion=config)):
        with pytest.raises(ValueError, match="takes a sparsity, not a budget; PruneAtInit"):
            other()


@pytest.mark.once
def test_flops_that_are_not_known_are_refused():
    given = keras.Input((None, None, 2))
    model = keras.Model(given, layers.Conv2D(2, 1)(layers.Conv2D(4, 3)(given)))
    with pytest.raises(
        ValueError, match=r"cannot be counted: .* Cause: An input .* unknown dimension.*, budget='flops'$"
    ):
        kprune.prune(model, "magnitude", budget={"flops": 0.5}, groups="channels")
    kprune.prune(model, "magnitude", budget={"parameters": 0.5}, groups="channels", verbose=0)


@pytest.mark.slow_on_jax
def test_a_trial_run_that_fails_gives_its_reason(monkeypatch):
    def fails(model):
        raise RuntimeError("it needs real values")

    monkeypatch.setattr("kprune.flops._run_once", fails)
    with pytest.raises(
        ValueError, match=r"cannot be counted: .* Cause: it needs real values. Received: budget='flops'$"
    ):
        kprune.prune(mlp(), "magnitude", budget={"flops": 0.5}, groups="channels")
