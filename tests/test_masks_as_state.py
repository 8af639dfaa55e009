"""A mask is state of its layer, not one of its weights: what Keras and its users do with weights works as on a dense
model, and zeros are kept."""

import keras
import numpy as np
import pytest
from helpers import assert_zero, mlp
from keras import layers

import kprune
from kprune.masks.store import MaskState

LAYERS = {
    "dense": lambda: [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)],
    "conv": lambda: [keras.Input((6, 6, 2)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)],
    "rnn": lambda: [keras.Input((4, 5)), layers.Bidirectional(layers.LSTM(3)), layers.Dense(3)],
}


def network(kind="dense"):
    return keras.Sequential(LAYERS[kind]())


def pruned(kind="dense", sparsity=0.5):
    model = network(kind)
    kprune.prune(model, "magnitude", sparsity, verbose=False)
    return model


def masks_of(model):
    return [weight.kept() for weight in kprune.masked_weights(model)]


def test_what_keras_asks_of_a_seed_generator_is_its_state():
    """Loud where Keras changes the private way by which masks are state: see kprune/masks/store.py."""
    model = pruned()
    masks = {id(weight.mask) for weight in kprune.masked_weights(model)}
    assert {id(v) for v in model.variables} >= masks
    assert not {id(v) for v in model.weights} & masks
    assert {id(v) for v in model.non_trainable_variables} >= masks
    assert issubclass(MaskState, keras.random.SeedGenerator)


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_and_counts_are_those_of_the_dense_model(kind):
    dense, sparse = network(kind), pruned(kind)
    assert [w.shape for w in sparse.weights] == [w.shape for w in dense.weights]
    assert len(sparse.get_weights()) == len(dense.get_weights())
    assert sparse.count_params() == dense.count_params()
    lines = {}
    for name, model in (("dense", dense), ("sparse", sparse)):
        lines[name] = []
        model.summary(print_fn=lambda text, into=lines[name]: into.append(text))
    count = [line for line in lines["dense"][0].splitlines() if "params:" in line]
    assert [line for line in lines["sparse"][0].splitlines() if "params:" in line] == count
    assert [type(layer).__name__ for layer in sparse.layers] == [type(layer).__name__ for layer in dense.layers]


def test_tensorboard_draws_weights_and_no_masks(tmp_path):
    pytest.importorskip("tensorflow")
    model = pruned()
    model.compile("sgd", "mse")
    board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1, write_images=True)
    model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0, callbacks=[board])
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"kernel/image" in written and b"kernel_mask" not in written


@pytest.mark.parametrize("kind", LAYERS)
def test_weight_files_go_both_ways(kind, tmp_path):
    dense, sparse = network(kind), pruned(kind)
    dense.save_weights(tmp_path / "dense.weights.h5")
    sparse.save_weights(tmp_path / "sparse.weights.h5")
    masks, values = masks_of(sparse), sparse.get_weights()
    sparse.load_weights(tmp_path / "dense.weights.h5")
    for weight, kept, new in zip(kprune.masked_weights(sparse), masks, kernels(dense, sparse), strict=True):
        np.testing.assert_array_equal(weight.kept(), kept)
        np.testing.assert_array_equal(weight.value(), np.where(kept, new, 0))
    dense.load_weights(tmp_path / "sparse.weights.h5")
    for one, other in zip(dense.get_weights(), values, strict=True):
        np.testing.assert_array_equal(one, other)


def kernels(dense, sparse):
    masked = {id(weight.variable) for weight in kprune.masked_weights(sparse)}
    values = {id(v): value for v, value in zip(sparse.weights, dense.get_weights(), strict=True)}
    return [values[id(weight.variable)] for weight in kprune.masked_weights(sparse) if id(weight.variable) in masked]


def test_masks_of_a_file_replace_those_of_the_model(tmp_path):
    one, other = pruned(sparsity=0.5), network()
    one.save_weights(tmp_path / "w.weights.h5")
    kprune.prune(other, "random", 0.9, verbose=False)
    other.load_weights(tmp_path / "w.weights.h5")
    for theirs, mine in zip(masks_of(one), masks_of(other), strict=True):
        np.testing.assert_array_equal(theirs, mine)
    for theirs, mine in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(theirs, mine)


def test_model_checkpoint_of_weights_alone(tmp_path):
    model = mlp()
    x, y = np.ones((8, *model.input_shape[1:]), "float32"), np.zeros((8, *model.output_shape[1:]), "float32")
    model.compile("sgd", "mse")
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "w.weights.h5", save_weights_only=True)
    model.fit(x, y, verbose=0, callbacks=[kprune.callbacks.PruneAtInit("magnitude", 0.5), saved])
    fresh = mlp()
    kprune.mask(fresh)
    fresh.load_weights(tmp_path / "w.weights.h5")
    assert kprune.summary(fresh).zeros == kprune.summary(model).zeros > 0


def test_weights_between_folds():
    """One model, trained on fold after fold from the same dense weights; and averaged with another."""
    model = pruned()
    model.compile("sgd", "mse")
    start = network().get_weights()
    for _ in range(2):
        model.set_weights(start)
        model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0, callbacks=[kprune.callbacks.SparsityLogger()])
    average = [(a + b) / 2 for a, b in zip(model.get_weights(), start, strict=True)]
    model.layers[0].set_weights(average[:2])
    np.testing.assert_array_equal(model.layers[0].get_weights()[0] != 0, kprune.masked_weights(model)[0].kept())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_clone_has_its_sources_masks(kind):
    source = pruned(kind)
    clone = keras.models.clone_model(source)
    for theirs, mine in zip(masks_of(source), masks_of(clone), strict=True):
        np.testing.assert_array_equal(theirs, mine)
    clone.set_weights(source.get_weights())
    kprune.set_masks(source, {w.path: np.ones(w.shape, bool) for w in kprune.masked_weights(source)})
    assert kprune.summary(clone).sparsity == pytest.approx(0.5, abs=0.05)  # its own, not shared
    assert_zero(clone)


@keras.saving.register_keras_serializable("tests")
class Pair(layers.Layer):
    """Builds its sublayers in its first call, which Keras makes a symbolic one."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = layers.Dense(8), layers.Dense(6)

    def call(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("make", [Pair, lambda: layers.Dense(8), lambda: layers.MultiHeadAttention(2, 3)])
def test_a_clone_with_weights_of_its_own_trains_under_its_sources_masks(make):
    inputs, layer = keras.Input((4, 6)), make()
    source = keras.Model(inputs, layer(inputs, inputs) if "Multi" in type(layer).__name__ else layer(inputs))
    kprune.prune(source, "magnitude", 0.5, verbose=0)
    clone = keras.models.clone_model(source)
    for theirs, mine in zip(masks_of(source), masks_of(clone), strict=True):
        np.testing.assert_array_equal(theirs, mine)
    before = clone.get_weights()
    clone.compile("sgd", "mse")
    clone.fit(np.ones((8, 4, 6)), np.ones((8, *clone.output_shape[1:])), verbose=0)
    assert any(np.any(old != new) for old, new in zip(before, clone.get_weights(), strict=True))
    kprune.prune(clone, "magnitude", 0.6, verbose=0)
    assert_zero(clone)


def test_a_state_tree_has_each_path_once():
    model = pruned()
    model.compile("adam", "mse")
    model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0)
    tree = model.get_state_tree()
    assert "non_trainable_variables" in tree


def test_loading_dense_weights_is_said(tmp_path, caplog):
    network().save_weights(tmp_path / "w.weights.h5")
    model = pruned()
    with caplog.at_level("WARNING"):
        model.load_weights(tmp_path / "w.weights.h5")
    assert "come from a model without masks" in caplog.text


def test_zeros_without_masks_are_said_when_masks_are_made(tmp_path, caplog):
    model = network()
    pruned().save_weights(tmp_path / "w.weights.h5")
    model.load_weights(tmp_path / "w.weights.h5")
    with caplog.at_level("WARNING"):
        kprune.mask(model)
    assert "contain many exact zeros" in caplog.text


def test_values_that_arrive_for_pruned_entries_are_zeroed_before_the_fit_takes_a_step():
    model = pruned()
    model.compile("sgd", "mse")
    model.set_weights([np.ones_like(value) for value in model.get_weights()])
    before = [weight.kept() for weight in kprune.masked_weights(model)]
    model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0, callbacks=[kprune.callbacks.TakeSnapshot("init")])
    assert_zero(model)
    for kept, weight in zip(before, kprune.masked_weights(model), strict=True):
        np.testing.assert_array_equal(weight.kept(), kept)


@pytest.mark.parametrize("name", ["optimizer", "a_second"], ids=["read after the layers", "read before them"])
def test_a_dense_models_file_brings_pruned_weights_no_momentum(name, tmp_path):
    """Keras saves optimizers with weights, in the order of the attributes' names, in which it reads them, too."""

    def trained_by_its_optimizer(model):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)
        setattr(model, name, optimizer)
        optimizer.apply([keras.ops.ones(v.shape) for v in model.trainable_variables])
        return optimizer

    dense, model = network(), network()
    held = trained_by_its_optimizer(dense).momentums
    optimizer = trained_by_its_optimizer(model)
    for sparsity in (0.5, 0.75):  # with masks that came before the file, and after one was read
        kprune.prune(model, "magnitude", sparsity, verbose=False)
        dense.save_weights(tmp_path / "dense.weights.h5")
        model.load_weights(tmp_path / "dense.weights.h5")
        kernels = [(w, optimizer.momentums[2 * i], held[2 * i]) for i, w in enumerate(kprune.masked_weights(model))]
        for weight, slot, theirs in kernels:
            np.testing.assert_array_equal(slot, np.where(weight.kept(), theirs, 0))
            assert np.any(np.asarray(theirs)[~weight.kept()])
        optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
        assert_zero(model)


def test_what_a_user_assigns_to_pruned_entries_is_in_no_file(tmp_path):
    model, x = pruned(), np.random.default_rng(0).normal(size=(4, 6))
    model.layers[0].kernel.assign(np.ones((6, 8)))
    made = model.predict(x, verbose=0)
    kprune.export(model, tmp_path / "m", format="keras", verbose=0)
    plain = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(plain.layers[0].kernel, kprune.masked_weights(model)[0].kept())
    np.testing.assert_allclose(plain.predict(x, verbose=0), made, rtol=1e-5)
