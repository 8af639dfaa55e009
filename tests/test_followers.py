"""Followers: the bias, gamma and beta of a pruned channel are masked with it, so that it emits exactly 0."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, data
from keras import layers
from kprune.callbacks import DynamicSparseTraining, GradualPruning, PruneAtInit

import kprune
from kprune.masks import followers


def net():
    """a -> norm -> leaky -> depthwise d -> add(b of the same) -> norm2 -> pool -> out; only `a` reads the input."""
    given = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 3, padding="same", name="a")(given)
    x = layers.LeakyReLU(name="leaky")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="d")(x)
    x = layers.Add(name="add")([x, layers.Conv2D(4, 1, name="b")(x)])
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization(name="norm2")(x))
    return keras.Model(given, layers.Dense(2, name="out")(x))


def set_channels(model, **kept):
    """Masks of which these filters (bool) stay; all else is kept."""
    masks = {w.path: w.kept() for w in kprune.masked_weights(model)}
    for name, keep in kept.items():
        path = f"{name}/kernel"
        masks[path] = np.ones_like(masks[path]) & np.array(keep, bool)
    kprune.set_masks(model, masks)


def kept(model):
    return {weight.path: weight.kept().astype(int).tolist() for weight in followers(model)}


def pruned(**options):
    model = net()
    kprune.prune(model, "magnitude", 0.0, verbose=0, **options)
    return model


def output_of(model, name, x):
    return np.asarray(keras.Model(model.inputs, model.get_layer(name).output)(x))


def test_what_follows_a_filter_by_hand():
    model = pruned(pattern="channel")
    set_channels(model, a=[1, 0, 1, 1], b=[0, 1, 1, 1])
    assert kept(model) == {
        "a/bias": [1, 0, 1, 1],
        "norm/gamma": [1, 0, 1, 1],
        "norm/beta": [1, 0, 1, 1],
        "d/bias": [1, 0, 1, 1],
        "b/bias": [0, 1, 1, 1],
        # Behind the sum of both, of which no channel has lost both summands.
        "norm2/gamma": [1, 1, 1, 1],
        "norm2/beta": [1, 1, 1, 1],
        "out/bias": [1, 1],
    }
    set_channels(model, a=[1, 0, 1, 1], b=[1, 0, 1, 1])
    assert kept(model)["norm2/gamma"] == kept(model)["norm2/beta"] == [1, 0, 1, 1]
    x = data((4, 4, 2))[0]
    assert not output_of(model, "add", x)[..., 1].any() and output_of(model, "add", x)[..., 0].any()
    assert not output_of(model, "norm2", x)[..., 1].any()


def test_units_of_a_gru():
    given = keras.Input((5, 3))
    x = layers.GRU(2, name="gru")(given)
    model = keras.Model(given, layers.Dense(2, name="out")(x))
    kprune.prune(model, "magnitude", 0.7, groups="channels", verbose=0)  # 23 of 34: one unit, 20
    [mask] = [w.kept() for w in kprune.masked_weights(model) if w.shape == (3, 6)]
    dead = ~mask.any(axis=0)
    assert dead.sum() == 3  # a column of each of three gates
    [bias] = [w.kept() for w in followers(model) if w.shape == (2, 6)]
    np.testing.assert_array_equal(bias, np.tile(~dead, (2, 1)))
    states = np.asarray(keras.Model(given, x)(data((5, 3))[0]))
    assert not states[:, dead[:2]].any() and states[:, ~dead[:2]].all()


@pytest.mark.parametrize("options", [{"pattern": "channel"}, {"groups": "channels"}], ids=str)
def test_a_pruned_channel_emits_0_in_training_and_after_a_file(options, tmp_path):
    model = net()
    # Decoupled decay and momentum move what is not exactly 0 and without a gradient.
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), "mse", **CHEAP)
    x, y = data((4, 4, 2), outputs=(2,))
    pruning = GradualPruning(0.5, begin=0.0, end=0.5, frequency=1, **options)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[pruning])
    masks = {w.path: w.kept() for w in kprune.masked_weights(model)}
    dead = ~masks["a/kernel"].any(axis=(0, 1, 2))
    assert 0 < dead.sum() < 4
    assert all(not follower.value()[~follower.kept()].any() for follower in followers(model))
    assert not output_of(model, "leaky", x)[..., dead].any()

    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    assert kept(loaded) == kept(model) and len(kprune.masked_weights(loaded)) == len(masks)
    loaded.fit(x, y, batch_size=8, epochs=1, verbose=0)
    assert not output_of(loaded, "leaky", x)[..., dead].any()

    if "groups" in options:  # elsewhere what reads the channels keeps them
        assert kprune.shrink(model).count_params() < model.count_params()
    kprune.strip(model)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    assert followers(model) == [] and type(model.get_layer("norm")) is layers.BatchNormalization


def test_weights_of_a_model_with_followers_load_into_one_without_and_back(tmp_path):
    model, plain = pruned(pattern="channel"), net()
    set_channels(model, a=[1, 0, 1, 1])
    kprune.mask(plain)
    model.save_weights(tmp_path / "with.weights.h5")
    plain.load_weights(tmp_path / "with.weights.h5")
    x = data((4, 4, 2))[0]
    np.testing.assert_array_equal(plain.predict(x, verbose=0), model.predict(x, verbose=0))
    plain.save_weights(tmp_path / "without.weights.h5")
    again = pruned(pattern="channel")
    again.load_weights(tmp_path / "without.weights.h5")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    kprune.prune(plain, "magnitude", 0.0, pattern="channel", verbose=0)
    assert kept(plain) == kept(model)


def test_a_channel_that_returns_can_learn():
    """Were its kernel and its gamma both 0, neither would ever have a gradient."""
    model = pruned(pattern="channel")
    set_channels(model, a=[1, 0, 1, 1])
    set_channels(model, a=[1, 1, 1, 1])
    norm = model.get_layer("norm")
    assert np.asarray(norm.gamma)[1] == 1.0 and np.asarray(norm.beta)[1] == 0.0
    model.compile("sgd", "mse", **CHEAP)
    model.fit(*data((4, 4, 2), outputs=(2,)), batch_size=8, verbose=0)
    assert np.asarray(model.get_layer("a").kernel)[..., 1].any()


def test_behind_latent_masks_a_channel_keeps_its_gamma_and_beta_and_returns_with_them(tmp_path):
    model = net()
    kprune.mask(model, store="latent")
    kprune.prune(model, "magnitude", 0.0, pattern="channel", verbose=0)
    norm = model.get_layer("norm")
    values = [2.0, 3.0, 4.0, 5.0], [1.0, -1.0, 2.0, -2.0]
    norm.gamma.assign(values[0])
    norm.beta.assign(values[1])
    x = data((4, 4, 2))[0]
    dense = output_of(model, "norm", x)
    set_channels(model, a=[1, 0, 1, 1])
    assert {follower.store for follower in followers(model)} == {"latent"}
    pruned_output = output_of(model, "norm", x)
    assert not pruned_output[..., 1].any() and pruned_output[..., 0].all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(output_of(loaded, "norm", x), pruned_output)
    assert kept(loaded) == kept(model)
    for one in (model, loaded):
        set_channels(one, a=[1, 1, 1, 1])
        norm = one.get_layer("norm")
        np.testing.assert_array_equal([norm.gamma, norm.beta], values)
        np.testing.assert_array_equal(output_of(one, "norm", x), dense)


@pytest.mark.parametrize("options", [{"pattern": "channel"}, {"groups": "channels", "budget": {"flops": 0.5}}], ids=str)
def test_channels_may_return_in_a_fit_with_what_follows_them(options):
    model = net()
    model.compile("adam", "mse", **CHEAP)
    x, y = data((4, 4, 2), outputs=(2,))
    goal = None if "budget" in options else 0.5
    pruning = GradualPruning(goal, begin=0.0, end=0.5, frequency=1, margin=1.1, **options)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning])
    dead = ~next(w for w in kprune.masked_weights(model) if w.path == "a/kernel").kept().any(axis=(0, 1, 2))
    assert dead.any() and not output_of(model, "leaky", x)[..., dead].any()
    expected = model.predict(x, verbose=0)
    if "budget" in options:
        report = kprune.summary(kprune.shrink(model))
        whole = kprune.summary(net())
        assert report.flops + report.other_flops <= 0.5 * (whole.flops + whole.other_flops)
    kprune.strip(model)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


def test_drop_and_grow_of_channels():
    model = net()
    model.compile("adam", "mse", **CHEAP)
    callback = DynamicSparseTraining("set", 0.5, scope="uniform", frequency=2, pattern="channel")
    model.fit(*data((4, 4, 2), outputs=(2,)), batch_size=4, epochs=2, verbose=0, callbacks=[callback])
    dead = ~next(w for w in kprune.masked_weights(model) if w.path == "a/kernel").kept().any(axis=(0, 1, 2))
    assert dead.any() and kept(model)["a/bias"] == (~dead).astype(int).tolist()


def test_other_patterns_leave_biases_alone():
    model = net()
    kprune.prune(model, "magnitude", 0.9, verbose=0)
    assert followers(model) == []


def test_set_weights_and_strip_leave_no_value_behind_a_mask():
    model = pruned(pattern="channel")
    set_channels(model, a=[1, 0, 1, 1])
    model.set_weights([np.ones(np.shape(w)) for w in model.get_weights()])
    assert not any(follower.value()[~follower.kept()].any() for follower in followers(model))


def test_they_are_listed_apart():
    model = pruned(pattern="channel")
    before = kprune.summary(model)
    set_channels(model, a=[1, 0, 1, 1])
    report = kprune.summary(model)
    assert report.size == before.size and report.other_size == before.other_size
    assert report.zeros == 3 * 3 * 2 and report.followers["norm/gamma"] == (1, 4)
    assert "pruned with their channels: 4 of 30 entries of biases and normalization" in str(report)
    assert report.to_dict()["followers"]["a/bias"] == [1, 4]


def test_evaluate_leaves_no_followers_behind():
    model = net()
    kprune.mask(model)
    model.compile("adam", "mse", **CHEAP)
    evaluated = GradualPruning(0.5, pattern="channel")
    model.evaluate(*data((4, 4, 2), outputs=(2,)), verbose=0, callbacks=[evaluated])
    assert followers(model) == [] and len(kprune.masked_weights(model)) == 3


def test_a_fit_that_does_not_begin_leaves_masks_and_biases_as_they_were():
    class Fails(PruneAtInit):
        def on_train_begin(self, logs=None):
            with self.undone():
                raise RuntimeError("this fit does not begin")

    model = net()
    kprune.prune(model, "magnitude", 0.2, verbose=0)
    model.compile("adam", "mse", **CHEAP)
    masks = {w.path: w.kept() for w in kprune.masked_weights(model)}
    weights = [np.array(w) for w in model.get_weights()]
    with pytest.raises(RuntimeError, match="does not begin"):
        callbacks = [PruneAtInit("magnitude", 0.8, pattern="channel"), Fails("magnitude", 0.5)]
        model.fit(*data((4, 4, 2), outputs=(2,)), verbose=0, callbacks=callbacks)
    assert followers(model) == []
    assert all(np.array_equal(w.kept(), masks[w.path]) for w in kprune.masked_weights(model))
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


def test_without_a_graph_a_warning_says_that_biases_stay(caplog):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4)

        def call(self, x):
            return self.dense(x if float(keras.ops.sum(x)) > 0 else -x)

    model = Own()
    model(np.zeros((1, 3)))
    kprune.prune(model, "magnitude", 0.5, pattern="channel", verbose=0)
    assert "cannot find the biases and normalization layers" in caplog.text and followers(model) == []
