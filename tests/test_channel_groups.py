"""Channel groups: what goes together, worked out by hand; how much of it goes; and that shrink leaves none of it."""

import keras
import numpy as np
import pytest
from helpers import data, mlp
from keras import layers
from kprune.callbacks import GradualPruning, PruneAtInit

import kprune
from kprune.channels import groups_of


def members(group):
    return {path.rsplit("/", 2)[-2]: (axis, indices) for path, axis, indices in group.members}


def masked(model):
    kprune.mask(model)
    return model


def branches():
    """a -> (b, d) -> add -> pool -> concatenated with itself -> flatten -> out."""
    given = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 3, padding="same", name="a")(given)
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(3, 3, padding="same", name="b")(x))
    x = layers.ReLU()(layers.Add()([layers.DepthwiseConv2D(3, padding="same", name="d")(x), y]))
    x = layers.AveragePooling2D(2)(x)
    x = layers.Flatten()(layers.Concatenate()([x, x]))
    return keras.Model(given, layers.Dense(2, name="out")(x))


def test_what_goes_together():
    groups = groups_of(masked(branches()))
    assert len(groups) == 3
    # Channel 1 of 6 concatenated ones, at 4 positions; "a" makes it, and "b" both reads and makes it.
    assert groups[1].members == (
        ("a/kernel", 3, (1,)),
        ("b/kernel", 2, (1,)),
        ("b/kernel", 3, (1,)),
        ("out/kernel", 0, (1, 4, 7, 10, 13, 16, 19, 22)),
    )
    assert {path for path, *_ in groups[1].followers} == {
        *("a/bias", "b/bias", "d/kernel", "d/bias"),
        *(f"norm/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
    }


@pytest.mark.once
def test_units_of_an_lstm():
    model = masked(keras.Sequential([keras.Input((5, 3)), layers.LSTM(2, name="lstm"), layers.Dense(2, name="out")]))
    [_, second] = groups_of(model)
    assert [(axis, indices) for _, axis, indices in second.members] == [
        (1, (1, 3, 5, 7)),  # of the kernel: a column of each gate
        (0, (1,)),
        (1, (1, 3, 5, 7)),
        (0, (1,)),
    ]


@pytest.mark.once
def test_heads_of_an_attention():
    given = keras.Input((5, 6))
    model = masked(keras.Model(given, layers.MultiHeadAttention(3, 2, name="m")(given, given)))
    assert [members(group) for group in groups_of(model)] == [
        {**dict.fromkeys(("query", "key", "value"), (1, (n,))), "attention_output": (0, (n,))} for n in range(3)
    ]


@pytest.mark.once
def test_a_group_scores_the_mean_of_all_its_entries():
    model = masked(mlp(units=2, use_bias=False))
    weights = kprune.masked_weights(model)
    # 8 -> 2 -> 2 -> 3. First layer's units: (8 * 1 + 2 * 5) / 10 = 1.8 and (8 * 2 + 2 * 1) / 10 = 1.8 less a bit;
    # second layer's: (2 * 3 + 3 * 9) / 5 and (2 * 3 + 3 * 0.1) / 5 = 1.26.
    scores = [np.tile([1.0, 1.9], (8, 1)), np.array([[5.0, 5.0], [1.0, 1.0]]), np.array([[9.0] * 3, [0.1] * 3])]
    by_path = {w.path: s for w, s in zip(weights, scores, strict=True)}
    kprune.prune(model, lambda context: by_path, 15 / 26, groups="channels")
    kept = [w.kept() for w in kprune.masked_weights(model)]
    # Second layer's unit 1 (2 + 3 zeros), then first layer's unit 1 (8 + 1 more): 14; 15 do not come out even.
    assert [mask.any(axis=0).tolist() for mask in kept[:2]] == [[True, False], [True, False]]
    assert sum(int((~mask).sum()) for mask in kept) == 14
    assert not kept[1][1].any() and not kept[2][1].any()


@pytest.mark.parametrize("criterion", ["magnitude", "synflow"])
def test_what_is_pruned_is_gone_after_shrink(criterion):
    model = branches()
    masks = kprune.prune(model, criterion, 0.5, groups="channels")
    zeros, size = (sum(int(f(m)) for m in masks.values()) for f in (lambda m: (~m).sum(), np.size))
    assert 0.4 * size < zeros <= 0.5 * size
    small = kprune.shrink(model)
    assert small.get_layer("a").filters == small.get_layer("b").filters == 2
    assert all(w.kept().all() for w in kprune.masked_weights(small))


@pytest.mark.once
def test_more_changes_nothing():
    model = mlp(units=24)
    before = kprune.prune(model, "magnitude", 0.5, groups="channels")
    again = kprune.prune(model, "magnitude", 0.5, groups="channels")
    for path, mask in before.items():
        np.testing.assert_array_equal(mask, again[path])


@pytest.mark.once
@pytest.mark.parametrize("divisor", [1, 5, 8])
def test_multiples(divisor):
    model = mlp(units=24)
    kprune.prune(model, "magnitude", 0.6, groups=f"channels:{divisor}")
    units = [layer.units for layer in kprune.shrink(model).layers]
    assert all(n % divisor == 0 for n in units[:2]) and units[:2] != [24, 24]
    again = [w.kept() for w in kprune.masked_weights(model)]
    kprune.prune(model, "magnitude", 0.6, groups=f"channels:{divisor}")
    for one, other in zip(again, [w.kept() for w in kprune.masked_weights(model)], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.once
def test_a_layer_keeps_a_channel():
    model = mlp()
    masks = kprune.prune(model, "magnitude", 0.98, groups="channels")
    assert all(mask.any() for mask in masks.values())
    assert [layer.units for layer in kprune.shrink(model).layers] == [1, 1, 3]


@pytest.mark.once
def test_a_dict_prunes_what_it_names():
    model = mlp()
    kprune.prune(model, "magnitude", {"hidden1": 0.5}, groups="channels")
    assert [layer.units for layer in kprune.shrink(model).layers] == [6, 12, 3]


@pytest.mark.parametrize(
    "callback",
    [
        lambda: PruneAtInit("snip", 0.5, data=data(), groups="channels"),
        lambda: GradualPruning(kprune.schedules.Constant(0.5, begin_step=2), groups="channels"),
    ],
)
def test_in_training(callback):
    model = mlp()
    model.compile("adam", "mse", jit_compile=keras.backend.backend() == "jax")
    model.fit(*data(), batch_size=8, epochs=1, verbose=0, callbacks=[callback()])
    small = kprune.shrink(model)
    assert sum(np.prod(v.shape) for v in small.weights) < sum(np.prod(v.shape) for v in model.weights)


@pytest.mark.once
def test_wrong_arguments():
    for wrong in ({"groups": "channel"}, {"groups": "channels:0"}, {"groups": 8}):
        with pytest.raises(ValueError, match="Received: groups="):
            kprune.PruningConfig(**wrong)
    for beside in ({"scope": "erk"}, {"pattern": "channel"}):
        with pytest.raises(ValueError, match="`groups` requires scope="):
            kprune.PruningConfig(groups="channels", **beside)
    config = kprune.PruningConfig(groups="channels:8")
    assert kprune.PruningConfig.from_config(config.get_config()) == config


@pytest.mark.once
def test_a_model_without_groups_is_refused_and_stays_as_it_is():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(6, name="a"), layers.Softmax(), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"no channel group.*softmax"):
        kprune.prune(model, "magnitude", 0.5, groups="channels")
    assert kprune.masked_weights(model) == []
