"""Masks with store="latent": values that stay behind the mask, what reads them, and weights that return."""

import itertools

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, data, mlp
from keras import layers
from kprune.callbacks import BackupAndRestore, DynamicSparseTraining, GradualPruning

import kprune
from kprune.masks import plain
from kprune.report.saved import load
from kprune.schedules import Linear

KERNEL = np.array([[6.0, -5.0, 4.0], [3.0, 2.0, 1.0]], "float32")


def small(store="latent", optimizer="sgd", **options):
    """Two inputs, three outputs, no bias; the second row of its kernel is pruned."""
    dense = layers.Dense(3, use_bias=False, name="dense", **options.pop("dense", {}))
    model = keras.Sequential([keras.Input((2,)), dense], name="net")
    dense.set_weights([KERNEL])
    model.compile(optimizer, "mse", **CHEAP)
    kprune.mask(model, store=store, **options)
    kprune.set_masks(model, {"net/dense/kernel": np.array([[True] * 3, [False] * 3])})
    return model


def kernel(model):
    [weight] = kprune.masked_weights(model)
    return weight


@pytest.mark.parametrize(("gradient", "moves"), [(None, True), ("straight_through", True), ("masked", False)])
def test_the_layer_reads_masked_values_and_the_gradient_passes_the_mask_or_not(gradient, moves):
    model = small(optimizer=keras.optimizers.SGD(0.3), gradient=gradient)
    np.testing.assert_array_equal(kernel(model).value(), KERNEL)
    np.testing.assert_array_equal(kernel(model).read(), [KERNEL[0], [0, 0, 0]])
    x = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(np.asarray(model(x))[0], KERNEL[0])
    model.train_on_batch(x, np.zeros((1, 3), "float32"))
    # d/dw of the mean over the 3 outputs of (w0 x0 + 0 x1) ** 2 is 2 / 3 * w0 * x for either row.
    step = 0.3 * 2 / 3 * KERNEL[0]
    np.testing.assert_allclose(kernel(model).value(), [KERNEL[0] - step, KERNEL[1] - moves * step], rtol=1e-6)
    assert kprune.masks.moved_weights(model) == []


def test_what_is_pruned_returns_with_its_value_and_its_momentum():
    model = small(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    model.train_on_batch(np.ones((1, 2), "float32"), np.zeros((1, 3), "float32"))
    value, momentum = kernel(model).value(), np.asarray(model.optimizer.momentums[0])
    assert np.all(momentum[1] != 0)
    for kept in (False, True):
        kprune.set_masks(model, {"net/dense/kernel": np.full((2, 3), kept)})
        np.testing.assert_array_equal(kernel(model).value(), value)
        np.testing.assert_array_equal(np.asarray(model.optimizer.momentums[0]), momentum)
    np.testing.assert_allclose(np.asarray(model(np.ones((1, 2), "float32")))[0], value.sum(0), rtol=1e-6)


def test_a_regularizer_sees_what_is_read():
    model = small(dense=dict(kernel_regularizer=keras.regularizers.L2(1.0)))
    assert float(model.losses[0]) == np.sum(KERNEL[0] ** 2)


def test_strip_summary_and_shrink_go_by_what_is_read():
    model = small()
    x = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    outputs = model.predict(x, verbose=0)
    with plain(model) as stripped:
        np.testing.assert_array_equal(stripped.layers[0].kernel, [KERNEL[0], [0, 0, 0]])
        assert type(stripped.layers[0]) is layers.Dense
    np.testing.assert_array_equal(kernel(model).value(), KERNEL)
    assert kernel(model).store == "latent" and kprune.summary(model).zeros == 3
    np.testing.assert_array_equal(kprune.shrink(model).predict(x, verbose=0), outputs)
    np.testing.assert_array_equal(kernel(model).value(), KERNEL)
    stripped = kprune.strip(model)
    np.testing.assert_array_equal(stripped.layers[0].get_weights()[0], [KERNEL[0], [0, 0, 0]])
    np.testing.assert_array_equal(stripped.predict(x, verbose=0), outputs)


def assert_the_same(model, other):
    assert [w.store for w in kprune.masked_weights(other)] == [w.store for w in kprune.masked_weights(model)]
    for one, two in zip(kprune.masked_weights(model), kprune.masked_weights(other), strict=True):
        np.testing.assert_array_equal(one.kept(), two.kept())
        np.testing.assert_array_equal(one.value(), two.value())
        assert one.layer.mask_store.behind == two.layer.mask_store.behind


@pytest.mark.parametrize("gradient", ["straight_through", "masked"])
def test_files_clones_and_set_weights_keep_both_mask_and_values(gradient, tmp_path):
    model = small(gradient=gradient)
    model.save(tmp_path / "model.keras")
    for read in (keras.models.load_model, load):
        assert_the_same(model, read(tmp_path / "model.keras"))
    model.save_weights(tmp_path / "model.weights.h5")
    other = small(gradient=gradient)
    kprune.set_masks(other, {"net/dense/kernel": np.ones((2, 3), bool)})
    other.set_weights([KERNEL * 2])
    np.testing.assert_array_equal(kernel(other).value(), KERNEL * 2)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_the_same(model, other)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_the_same(model, clone)


def test_an_older_reader_is_told_of_what_it_does_not_know():
    assert small("latent").layers[0].get_config()["kprune"]["format"] == 3
    assert small("zero").layers[0].get_config()["kprune"]["format"] == 2


def test_a_file_that_names_another_store_is_refused():
    config = small().layers[0].get_config()
    with pytest.raises(ValueError, match=r"`store` must be one of 'zero', 'latent'. Received: store='disk'"):
        type(small().layers[0]).from_config({**config, "kprune": {**config["kprune"], "store": "disk"}})


def test_quantized_kernels_are_what_was_read():
    model = small()
    model.quantize("int8")
    assert kprune.masked_weights(model) == []
    assert not np.any(np.asarray(model.layers[0].get_weights()[0])[1])


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        (None, dict(store="disk"), r"`store` must be one of 'zero', 'latent'. Received: store='disk'"),
        (None, dict(gradient="sign"), r"`gradient` must be one of .* Received: gradient='sign'"),
        (None, dict(gradient="straight_through"), r"requires store='latent'.*Received: store='zero'"),
        ("zero", dict(store="latent"), r"already has masks with store='zero'.*Received: store='latent'"),
        ("latent", dict(store="zero"), r"already has masks with store='latent'.*Received: store='zero'"),
        ("latent", dict(gradient="masked"), r"Received: store='latent', gradient='masked'"),
    ],
    ids=str,
)
def test_masks_of_another_kind_are_refused(first, then, says):
    model = mlp() if first is None else small(first)
    with pytest.raises(ValueError, match=says):
        kprune.mask(model, **then)
    assert [w.store for w in kprune.masked_weights(model)] == ([] if first is None else [first])
    kprune.mask(model)  # what a model has, it keeps by default
    assert {w.store for w in kprune.masked_weights(model)} == {first or "zero"}


def test_parts_of_another_kind_keep_theirs():
    zero, latent = mlp(), mlp()
    kprune.mask(zero)
    kprune.mask(latent, store="latent")
    x = keras.Input((8,))
    model = keras.Model(x, layers.Add()([zero(x), latent(x)]))
    kinds = ["zero"] * 3 + ["latent"] * 3
    assert [w.store for w in kprune.masked_weights(model)] == kinds
    with plain(model):
        assert kprune.masked_weights(model) == []
    assert [w.store for w in kprune.masked_weights(model)] == kinds


# Dynamic network surgery


class Sets(keras.callbacks.Callback):
    """Gives the kernel these values at the batches' begins, and keeps the masks at their ends."""

    def __init__(self, values):
        super().__init__()
        self.values, self.masks = values, []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.layers[0].kernel.assign(np.array(self.values[batch], "float32").reshape(2, 3))

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append("".join("01"[int(one)] for one in kernel(self.model).kept().ravel()))


@pytest.mark.parametrize(
    ("margin", "masks"),
    # Of six the three highest stay. 3.3 is above 3, but not above 1.2 times it; 3.7 is.
    [(1.2, ["111000", "111000", "110100", "110100"]), (1.0, ["111000", "110100", "110100", "110100"])],
)
def test_two_thresholds(margin, masks):
    dense = layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.set_weights([KERNEL])
    model.compile(keras.optimizers.SGD(0.0), "mse", **CHEAP)
    watch = Sets([[6, -5, 4, 3, 2, 1], [6, -5, 3, 3.3, 2, 1], [6, -5, 3, -3.7, 2, 1], [6, -5, 3, -3.7, 2, 1]])
    surgery = GradualPruning(Linear(0.5, 0.5, 0, 4, frequency=1), margin=margin)
    model.fit(np.ones((4, 2)), np.ones((4, 3)), batch_size=1, shuffle=False, verbose=0, callbacks=[surgery, watch])
    assert watch.masks == masks
    np.testing.assert_array_equal(kernel(model).value().ravel(), np.array(watch.values[-1], "float32"))


def compiled():
    keras.utils.set_random_seed(1)
    model = mlp()
    model.compile("adam", "mse", **CHEAP)
    return model


def fit(model, *callbacks, epochs=4):
    x, y = data(n=96)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_it_goes_on_from_a_backup_to_the_bit(tmp_path):
    whole, resumed = compiled(), compiled()

    def surgery():  # an update at step 24, at the end of the second epoch, and before
        return GradualPruning(Linear(0.2, 0.8, 3, 40, frequency=7), margin=1.1)

    fit(whole, surgery())
    backup = tmp_path / "backup.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(resumed, surgery(), BackupAndRestore(backup), Stop())
    resumed = compiled()
    fit(resumed, surgery(), BackupAndRestore(backup))
    assert_the_same(whole, resumed)
    assert kprune.summary(whole).zeros == 220


def test_weights_that_are_pruned_come_back_in_training():
    model, masks = compiled(), []
    watch = EachBatch(lambda model: masks.append([w.kept() for w in kprune.masked_weights(model)]))
    fit(model, GradualPruning(Linear(0.8, 0.8, 1, 40, frequency=2), margin=1), watch)
    pairs = [pair for one, other in itertools.pairwise(masks) for pair in zip(one, other, strict=True)]
    assert any(np.any(b & ~a) for a, b in pairs)
    assert {sum(int((~mask).sum()) for mask in one) for one in masks} == {220}


def test_a_model_whose_masks_keep_no_values_is_refused():
    model = compiled()
    kprune.mask(model)
    with pytest.raises(ValueError, match=r"requires masks with store='latent'.*Received: weight='.*', store='zero'"):
        fit(model, GradualPruning(0.5, margin=1.2))
    model = compiled()
    kprune.mask(model, store="latent")
    with pytest.raises(ValueError, match=r"requires masks with store='zero'.*Received: weight='.*', store='latent'"):
        fit(model, DynamicSparseTraining("set", 0.5))
    fit(model, GradualPruning(0.5), epochs=1)  # goes by what the model has
    assert kprune.summary(model).zeros == 138 and kprune.masks.moved_weights(model) == []


@pytest.mark.parametrize("margin", [0.9, float("nan"), float("inf"), "1.2", True])
def test_a_margin_below_1_is_refused(margin):
    with pytest.raises(ValueError, match=r"`margin` must be a number >= 1"):
        GradualPruning(0.5, margin=margin)


def test_evaluate_leaves_no_masks():
    model = compiled()
    model.evaluate(*data(), verbose=0, callbacks=[GradualPruning(0.5, margin=1.2)])
    assert kprune.masked_weights(model) == []
