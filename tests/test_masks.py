"""kprune.mask, masked_weights, set_masks, strip: what is masked, what is skipped and why, and bad input."""

import re

import keras
import numpy as np
import pytest
from helpers import CHEAP, assert_programs_agree, assert_zero, data, halve, mlp, new_process
from keras import layers

import kprune


def test_defaults_mask_kernels_only():
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.SeparableConv2D(5, 3, name="separable")(x)
    x = layers.PReLU(name="prelu")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    report = kprune.mask(model)
    assert report.model is model
    assert report.masked == ("conv/kernel", "separable/pointwise_kernel", "head/kernel")
    assert set(report.skipped) >= {"conv/bias", "norm/gamma", "depthwise/kernel", "separable/depthwise_kernel"}
    assert "'depthwise_kernel' is not among weights" in report.skipped["depthwise/kernel"]
    assert "3 weights masked" in str(report) and "head/bias" in str(report)
    assert [w.path for w in kprune.masked_weights(model)] == list(report.masked)

    wider = kprune.mask(model, weights=("kernel", "pointwise_kernel", "depthwise_kernel"))
    assert set(wider.masked) - set(report.masked) == {"depthwise/kernel", "separable/depthwise_kernel"}


def test_a_wider_second_mask_keeps_the_first_masks():
    model = keras.Sequential([keras.Input((6, 2)), layers.SeparableConv1D(5, 3)])
    kprune.mask(model)
    halve(model)
    first = kprune.masked_weights(model)[0].kept()
    kprune.mask(model, weights=("pointwise_kernel", "depthwise_kernel"))
    masks = {w.path.rpartition("/")[2]: w.kept() for w in kprune.masked_weights(model)}
    np.testing.assert_array_equal(masks["pointwise_kernel"], first)
    assert masks["depthwise_kernel"].all()


def test_masking_twice_changes_nothing():
    model = mlp()
    first = kprune.mask(model)
    halve(model)
    kept = [w.kept() for w in kprune.masked_weights(model)]
    weights = [w.copy() for w in model.get_weights()]
    second = kprune.mask(model)
    assert second.masked == first.masked and second.skipped == first.skipped
    for a, b in zip(kept, kprune.masked_weights(model), strict=True):
        np.testing.assert_array_equal(a, b.kept())
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "filters", ["hidden1|logits", ["hidden1", "logits"], lambda layer: layer.name in ("hidden1", "logits")]
)
def test_filters(filters):
    report = kprune.mask(mlp(), filters=filters)
    assert report.masked == ("sequential/hidden1/kernel", "sequential/logits/kernel")
    assert "filter" in report.skipped["sequential/hidden2/kernel"]


def test_frozen_and_quantised_layers_are_skipped_with_a_reason():
    model = mlp()
    model.layers[0].trainable = False
    model.layers[1].quantize("int8")
    report = kprune.mask(model)
    assert report.masked == ("sequential/logits/kernel",)
    assert "frozen" in report.skipped["sequential/hidden1/kernel"]
    quantized = [path for path, reason in report.skipped.items() if "quantized" in reason]
    assert quantized == ["sequential/hidden2/kernel"]


def test_lora_layers_are_skipped():
    model = mlp()
    model.layers[0].enable_lora(2)
    report = kprune.mask(model)
    assert "sequential/hidden1/kernel" in report.skipped


def test_embeddings_only_when_named():
    model = keras.Sequential([keras.Input((4,)), layers.Embedding(9, 5), layers.Flatten(), layers.Dense(2)])
    assert not any("embeddings" in path for path in kprune.mask(model).masked)
    assert any("embeddings" in path for path in kprune.mask(model, weights=("embeddings",)).masked)


def test_layers_of_one_name_get_paths_of_their_own():
    def tower():
        return keras.Sequential([keras.Input((4,)), layers.Dense(4, name="same")], name="tower")

    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = tower(), tower()

        def call(self, x):
            return self.two(self.one(x))

    model = Twins()
    model(np.zeros((1, 4), "float32"))
    report = kprune.mask(model)
    assert len(set(report.masked)) == 2
    assert [w.path for w in kprune.masked_weights(model)] == list(report.masked)


def test_nothing_to_mask_is_a_report_and_pruning_it_an_error():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    report = kprune.mask(model)
    assert report.masked == () and "'gamma' is not among weights" in " ".join(report.skipped.values())
    with pytest.raises(ValueError, match=r"no weights that can be masked.*Received: model="):
        kprune.prune(model, "magnitude", 0.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(weights=("kernels",)), r"accepted for this model are .*kernel, .*Received: weights=\('kernels',\)$"),
        (dict(filters=3), r"Received: filters=3$"),
        (dict(filters="("), r"Received: filters='\('$"),
        (dict(filters=["hidden", 5]), r"Received: filters=5$"),
    ],
)
def test_bad_arguments(arguments, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        kprune.mask(model, **arguments)
    assert kprune.masked_weights(model) == []


def test_an_unbuilt_model_and_a_stranger_are_refused():
    with pytest.raises(ValueError, match=r"build it first.*Received: model="):
        kprune.mask(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(ValueError, match=r"Received: model=<class 'dict'>"):
        kprune.mask({})


def frozen_base():
    """A base that is frozen, and a head."""
    base = mlp(outputs=8)
    base.trainable = False
    return keras.Sequential([keras.Input((8,)), base, layers.Dense(3, name="head")]), base


def gradually(model, final):
    model.compile("sgd", "mse", **CHEAP)
    schedule = kprune.schedules.PolynomialDecay(0.0, final, begin_step=0, end_step=3, frequency=1)
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[kprune.callbacks.GradualPruning(schedule)])


def test_what_was_frozen_and_trains_now_is_masked_as_a_callback_begins(caplog):
    model, base = frozen_base()
    gradually(model, 0.5)
    assert len(kprune.masked_weights(model)) == 1
    base.trainable = True
    with caplog.at_level("WARNING"):
        gradually(model, 0.9)
    assert re.search(
        r"so kprune has masked them as well: \S*hidden1/kernel, \S*hidden2/kernel, \S*logits/kernel\n", caplog.text
    )
    assert len(kprune.masked_weights(model)) == 4
    sizes = [weight.size for weight in kprune.masked_weights(model)]
    assert kprune.summary(model).zeros == int(0.9 * sum(sizes))
    assert_zero(model)


def test_what_was_left_out_by_a_filter_stays_out_when_it_is_unfrozen():
    model, base = frozen_base()
    kprune.mask(model, filters=["head", "hidden1"])
    base.trainable = True
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    names = [weight.path.split("/")[-2] for weight in kprune.masked_weights(model)]
    assert sorted(names) == ["head", "hidden1"]
    assert len(kprune.mask(model).masked) == 4


def test_what_is_frozen_keeps_its_masks(caplog):
    model, base = frozen_base()
    base.trainable = True
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    base.trainable = False
    before = [weight.kept() for weight in kprune.masked_weights(model)]
    head = kprune.masked_weights(model)[-1]
    with caplog.at_level("WARNING"):
        kprune.prune(model, "magnitude", 0.75, verbose=False)
    assert re.search(r"masked weights are frozen; they keep their masks .*: \S*hidden1/kernel, ", caplog.text)
    for weight, kept in zip(kprune.masked_weights(model)[:-1], before, strict=False):
        np.testing.assert_array_equal(weight.kept(), kept)
    assert int((~head.kept()).sum()) == int(0.75 * head.size)
    model.trainable = False
    with pytest.raises(ValueError, match=r"All masked weights are frozen.*Received: model="):
        kprune.prune(model, "magnitude", 0.8, verbose=False)


def test_a_fit_that_is_refused_takes_the_masks_of_unfrozen_weights_away_again():
    model, base = frozen_base()
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    kept = kprune.masked_weights(model)[0].kept()
    base.trainable = True
    with pytest.raises(ValueError, match="too deep"):
        kprune.prune(model, lambda context: (_ for _ in ()).throw(ValueError("too deep")), 0.9, verbose=False)
    (weight,) = kprune.masked_weights(model)
    np.testing.assert_array_equal(weight.kept(), kept)


class Parts(keras.Model):
    """Two models that are built, and a layer that is not; without a `call` until it is given one."""

    def __init__(self, extra=None):
        super().__init__()
        self.one, self.two, self.extra = mlp(outputs=8), mlp(), extra


class Called(Parts):
    def call(self, x):
        return self.extra(self.two(self.one(x)))


def test_a_model_that_is_not_built_itself_but_made_of_built_models():
    model = Parts()
    assert not model.built
    assert len(kprune.mask(model).masked) == 6
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    assert kprune.summary(model).zeros == kprune.summary(model.one).zeros + kprune.summary(model.two).zeros > 0


def test_a_model_that_was_told_its_input_shape_has_all_its_weights_masked():
    with pytest.raises(ValueError, match=r"build it first.*Received: model=.*unbuilt layers=.*late"):
        kprune.mask(Called(layers.Dense(2, name="late")))
    model = Called(layers.Dense(2, name="late"))
    model.build((None, 8))
    assert kprune.mask(model).masked[-1].endswith("late/kernel")


def test_layers_that_are_never_called_are_warned_of(caplog):
    model = Parts(layers.Dense(2, name="unused"))
    model.built = True
    with caplog.at_level("WARNING"):
        assert len(kprune.mask(model).masked) == 6
    assert "the layers unused of" in caplog.text


def test_other_backends_are_refused_by_name(monkeypatch):
    model = mlp()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match=r"backend tensorflow or jax.*Received: backend='torch'"):
        kprune.mask(model)


def test_set_masks_refuses_before_it_changes_anything():
    model = mlp()
    kprune.mask(model)
    good = {w.path: np.zeros(w.shape, bool) for w in kprune.masked_weights(model)}
    before = [w.copy() for w in model.get_weights()]
    path = next(reversed(good))
    for bad, message in [
        ({**good, "nowhere": np.ones(3, bool)}, "Received: path='nowhere'"),
        ({**good, path: np.ones((2, 2), bool)}, r"Received: shape=\(2, 2\), dtype=bool"),
        ({**good, path: np.ones(good[path].shape)}, "dtype=float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            kprune.set_masks(model, bad)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_pruned_infinities_and_nans_become_zero():
    model = mlp()
    kprune.mask(model)
    weight = kprune.masked_weights(model)[0]
    value, mask = weight.value().copy(), np.ones(weight.shape, bool)
    value[0, :2], mask[0, :2] = [np.nan, np.inf], False
    weight.variable.assign(value)
    kprune.set_masks(model, {weight.path: mask})
    assert_zero(model)
    assert np.isfinite(model.predict(data()[0], verbose=0)).all()


def test_masking_a_compiled_and_trained_model_takes_effect_at_once():
    model = mlp()
    x, y = data()
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0)
    model.predict(x, verbose=0), model.evaluate(x, y, verbose=0)
    kprune.mask(model)
    kprune.set_masks(model, {w.path: np.zeros(w.shape, bool) for w in kprune.masked_weights(model)})
    bias = model.layers[-1].bias.numpy()
    np.testing.assert_allclose(model.predict(x, verbose=0), np.broadcast_to(bias, y.shape), rtol=1e-6)
    model.fit(x, y, verbose=0)
    assert_zero(model)


def test_masking_in_the_middle_of_a_fit_takes_effect_at_once():
    class Late(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                kprune.prune(self.model, "magnitude", 0.5)
            else:
                assert_zero(self.model)

    model = mlp()
    model.compile("adam", "mse")
    model.fit(*data(), batch_size=8, epochs=3, verbose=0, callbacks=[Late()])
    assert_zero(model)


def test_regrown_weights_train_again():
    model = mlp()
    kprune.prune(model, "magnitude", 0.5)
    model.compile("adam", "mse")
    model.fit(*data(), verbose=0)
    kprune.set_masks(model, {w.path: np.ones(w.shape, bool) for w in kprune.masked_weights(model)})
    zeros = [w.value() == 0 for w in kprune.masked_weights(model)]
    model.fit(*data(), epochs=2, verbose=0)
    for weight, zero in zip(kprune.masked_weights(model), zeros, strict=True):
        assert zero.any() and (weight.value()[zero] != 0).mean() > 0.5


def test_loading_masks_into_a_model_masked_otherwise_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((6, 2)), layers.SeparableConv1D(5, 3)])
    kprune.mask(model, weights=("pointwise_kernel", "depthwise_kernel"))
    model.save_weights(tmp_path / "w.weights.h5")
    other = keras.Sequential([keras.Input((6, 2)), layers.SeparableConv1D(5, 3)])
    kprune.mask(other)
    with pytest.raises(ValueError, match=r"the file contains 2 masks"):
        other.load_weights(tmp_path / "w.weights.h5")


def test_masks_are_stored_bit_packed(tmp_path):
    import h5py

    model = keras.Sequential([keras.Input((100,)), layers.Dense(81)])
    kprune.prune(model, "magnitude", 0.9)
    model.save_weights(tmp_path / "w.weights.h5")
    stored = {}
    with h5py.File(tmp_path / "w.weights.h5") as file:
        file.visititems(lambda name, item: stored.update({name: item}) if "mask_store" in name else None)
        arrays = [np.asarray(item) for item in stored.values() if isinstance(item, h5py.Dataset)]
    assert [(a.dtype, a.size) for a in arrays] == [(np.dtype("uint8"), (8100 + 7) // 8)]


@pytest.mark.slow_on_jax
def test_loads_after_import_kprune_alone(tmp_path):
    """In a fresh process, in which no layer has been masked before."""
    inputs = keras.Input((5, 4))
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(inputs)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    kprune.prune(model, "magnitude", 0.5)
    model.save(tmp_path / "m.keras")
    script = (
        "import sys, numpy as np, kprune, keras\n"
        "m = keras.saving.load_model(sys.argv[1])\n"
        "np.save(sys.argv[2], m.predict(np.ones((2, 5, 4), 'float32'), verbose=0))\n"
        "print(len(kprune.masked_weights(m)))\n"
    )
    done = new_process("-c", script, tmp_path / "m.keras", tmp_path / "y.npy")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == len(kprune.masked_weights(model))
    assert_programs_agree(np.load(tmp_path / "y.npy"), model.predict(np.ones((2, 5, 4), "float32"), verbose=0))


def test_tied_weights_have_one_mask():
    made = []

    class Linear(layers.Layer):
        def build(self, shape):
            self.kernel = made[0] if made else self.add_weight(shape=(shape[-1], 6), name="kernel")
            made.append(self.kernel)

        def call(self, x):
            return keras.ops.matmul(x, self.kernel)

    one, two = Linear(), Linear()
    model = keras.Sequential([keras.Input((6,)), one, layers.ReLU(), two])
    assert kprune.mask(model).masked == (one.kernel.path,)
    halve(model)
    assert len(kprune.masked_weights(model)) == 1
    model.compile("adam", "mse")
    x, y = data((6,), outputs=(6,))
    model.fit(x, y, epochs=2, verbose=0)
    assert_zero(model)
    assert type(kprune.strip(model).layers[-1]) is Linear
