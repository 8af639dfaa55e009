"""What users of tfmot report most, on Keras 3 models: each of these fails or silently does nothing there."""

import keras
import numpy as np
import pytest
from helpers import EachBatch, assert_programs_agree, assert_zero, data, new_process
from keras import layers
from kprune.callbacks import GradualPruning, PruneAtInit
from test_layers import Subclassed

import kprune
from kprune.schedules import Constant, PolynomialDecay


def sequential():
    return keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)])


def functional():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([layers.Dense(8)(inputs), inputs])))


def nested():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(keras.Sequential([sequential(), layers.Dense(4)])(inputs)))


def subclassed():
    model = Subclassed(3)
    model(np.zeros((1, 6), "float32"))
    return model


def hardly_supported():
    """Rescaling, Normalization, EinsumDense, GroupNormalization, Attention, PReLU: any one aborts tfmot."""
    inputs = keras.Input((6,))
    x = layers.Normalization(mean=0.0, variance=1.0)(layers.Rescaling(0.5)(inputs))
    x = layers.Reshape((3, 2))(x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(3, 4))(x)
    x = layers.GroupNormalization(2)(layers.PReLU()(x))
    x = layers.Attention()([x, x])
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(2))(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def train(model, callback, epochs=2, **kwargs):
    model.compile("adam", "mse", **kwargs)
    x, y = data((6,), n=64)
    check = EachBatch(assert_zero)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[callback, check])
    assert check.calls == 8 * epochs
    return kprune.summary(model)


@pytest.mark.parametrize("make", [sequential, functional, nested, subclassed, hardly_supported])
def test_every_kind_of_model_is_pruned_trained_and_stripped(make, tmp_path):
    model = make()
    report = train(model, PruneAtInit("magnitude", 0.75))
    assert report.zeros == int(0.75 * report.size)
    x, _ = data((6,))
    predicted = model.predict(x, verbose=0)
    assert_programs_agree(kprune.strip(model).predict(x, verbose=0), predicted)


def test_one_epoch_of_few_steps_is_enough():
    model = sequential()
    report = train(model, GradualPruning(PolynomialDecay(0.5, 0.8, 0, 8)), epochs=1)
    assert report.zeros == int(0.8 * report.size)


def test_constant_sparsity_prunes_at_its_first_step():
    assert train(sequential(), GradualPruning(Constant(0.6)), epochs=1).zeros == int(0.6 * 72)


def test_equal_weights_are_pruned_to_the_exact_count():
    model = keras.Sequential([keras.Input((10,)), layers.Dense(10, kernel_initializer="ones")])
    masks = kprune.prune(model, "magnitude", 0.57)
    assert sum(int((~mask).sum()) for mask in masks.values()) == 57


def test_no_further_callback_is_needed_under_jit():
    assert train(sequential(), PruneAtInit("magnitude", 0.5), jit_compile=True).zeros == 36


def test_a_shared_layer_counts_its_steps_once():
    inputs = keras.Input((6,))
    shared = layers.Dense(6)
    model = keras.Model(inputs, layers.Dense(3)(shared(shared(inputs))))
    report = train(model, GradualPruning(PolynomialDecay(0.2, 0.8, 0, 16, frequency=1)))
    assert report.zeros == int(0.8 * report.size)


def test_the_budget_is_global():
    model = sequential()
    model.layers[1].kernel.assign(10 + np.zeros((8, 3)))
    kprune.prune(model, "magnitude", 0.5)
    per_layer = [int((~w.kept()).sum()) for w in kprune.masked_weights(model)]
    assert per_layer == [36, 0]


def attentive():
    """Conv1D, Conv3D and MultiHeadAttention, of which tfmot's 2:4 takes none."""
    inputs = keras.Input((6,))
    x = layers.Conv1D(8, 3, padding="same", name="conv1d")(layers.Reshape((6, 1))(inputs))
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Conv3D(8, 2, padding="same", name="conv3d")(layers.Reshape((3, 2, 2, 4))(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten()(x)))


def groups_of_four(path, mask):
    """The inputs of each output in fours, by position of the convolution and output."""
    heads_out = path.endswith(("query/kernel", "key/kernel", "value/kernel"))
    mask = mask.reshape(*mask.shape[:-2], -1) if heads_out else mask
    mask = mask.reshape(-1, mask.shape[-1]) if path.endswith("attention_output/kernel") else mask
    return [mask[..., i : i + 4, :] for i in range(0, mask.shape[-2], 4)]


def is_2_of_4(model):
    weights = kprune.masked_weights(model)
    assert len(weights) == 7
    return all(group.sum(-2).max() <= 2 for w in weights for group in groups_of_four(w.path, w.kept()))


@pytest.mark.slow_on_jax
def test_2_of_4_in_layers_of_every_kind_follows_the_schedule_and_outlives_a_file(tmp_path):
    model, seen = attentive(), []
    model.compile("adam", "mse")
    x, y = data((6,), n=64)
    schedule = PolynomialDecay(0.0, 0.5, 1, 7, power=1, frequency=2)
    watch = EachBatch(lambda m: seen.append([int((w.value() == 0).sum()) for w in kprune.masked_weights(m)]))
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[GradualPruning(schedule, pattern="2:4"), watch])
    weights = kprune.masked_weights(model)
    sparsities = [0, 0, 1 / 6, 1 / 6, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    assert seen == [[int(w.size * s + 1e-6) for w in weights] for s in sparsities]
    assert is_2_of_4(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(x, y, batch_size=8, verbose=0)
    assert is_2_of_4(loaded)
    for one, other in zip(weights, kprune.masked_weights(loaded), strict=True):
        np.testing.assert_array_equal(one.kept(), other.kept())
    predicted = model.predict(x, verbose=0)
    assert_programs_agree(kprune.strip(model).predict(x, verbose=0), predicted)


def test_blocks_on_kernels_of_any_rank():
    model = attentive()
    report = train(model, PruneAtInit("magnitude", 0.5, pattern="2x2"))
    assert report.size // 2 - 4 < report.zeros <= report.size // 2
    for w in kprune.masked_weights(model):
        for group in groups_of_four(w.path, w.kept()):
            for i, o in np.ndindex(-(-group.shape[-2] // 2), -(-group.shape[-1] // 2)):
                tile = group[..., 2 * i : 2 * i + 2, 2 * o : 2 * o + 2]
                assert np.array_equal(tile.all((-1, -2)), tile.any((-1, -2)))


@pytest.mark.slow_on_jax
def test_tf_keras_is_not_imported_for_a_keras_3_model():
    script = (
        "import sys, keras, kprune\n"
        "m = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
        "kprune.prune(m, 'synflow', 0.5, verbose=False); kprune.summary(m); kprune.strip(m)\n"
        "assert not {'tf_keras', 'tensorflow_model_optimization'} & set(sys.modules)\n"
    )
    ran = new_process("-c", script)
    assert ran.returncode == 0, ran.stderr
