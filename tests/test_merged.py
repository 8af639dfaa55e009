"""LoRA and quantization on masked layers: what the layer reads, trains, saves and exports is 0 where it is pruned."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, assert_programs_agree, data, mlp
from keras import layers

import kprune

X, Y = data()


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


LAYERS = {
    "Dense": lambda: [keras.Input((8,)), layers.Dense(6, name="top")],
    "EinsumDense": lambda: [keras.Input((8,)), layers.EinsumDense("ab,bc->ac", output_shape=6, name="top")],
    "Conv1D": lambda: [keras.Input((8, 2)), layers.Conv1D(4, 3, name="top"), layers.Flatten()],
    "Embedding": lambda: [keras.Input((8,)), layers.Embedding(9, 6, name="top"), layers.Flatten()],
}


def tuned(kind="Dense", dtype=None):
    """A pruned layer, given LoRA and fine-tuned; its inputs."""
    keras.config.set_dtype_policy(dtype or "float32")
    model = keras.Sequential([*LAYERS[kind](), layers.Dense(3)])
    kprune.mask(model, weights=("kernel", "embeddings"))
    kprune.prune(model, "random", 0.5, verbose=False)
    layer = model.get_layer("top")
    layer.enable_lora(2)
    x = np.random.default_rng(0).integers(0, 9, (16, *model.input_shape[1:])).astype("float32")
    model.compile(keras.optimizers.Adam(0.05), "mse", **CHEAP)
    model.fit(x, np.ones((16, 3)), epochs=2, verbose=0)
    return model, layer, x


def merged(layer):
    """W + A B, by hand."""
    named = {v.name: values(v).astype("float32") for v in layer.weights}
    a, b = (next(named[name] for name in named if name.startswith("lora_") and name.endswith(end)) for end in "ab")
    return named.get("kernel", named.get("embeddings")) + a @ b  # alpha = rank


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_with_lora_reads_the_masked_sum(kind):
    model, layer, x = tuned(kind)
    mask = kprune.masked_weights(model)[0].kept()
    assert np.abs(merged(layer)[~mask]).max() > 1e-3  # what LoRA has learned for pruned entries
    read = values(getattr(layer, "embeddings" if kind == "Embedding" else "kernel"))
    np.testing.assert_allclose(read, np.where(mask, merged(layer), 0), rtol=1e-5, atol=1e-6)
    assert np.all(read[~mask] == 0)
    if kind == "Dense":
        by_hand = x @ read + values(layer.bias)
        np.testing.assert_allclose(values(layer(x)), by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_lora_is_saved_loaded_and_stripped_as_it_predicts(kind, tmp_path):
    model, layer, x = tuned(kind)
    mask = kprune.masked_weights(model)[0].kept()
    predicted = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_programs_agree(loaded.predict(x, verbose=0), predicted, rtol=1e-5)
    np.testing.assert_array_equal(kprune.masked_weights(loaded)[0].kept(), mask)
    assert kprune.summary(model).zeros == int((~mask).sum()) + int((~kprune.masked_weights(model)[1].kept()).sum())
    kprune.strip(model)
    assert_programs_agree(model.predict(x, verbose=0), predicted, rtol=1e-6)
    stored = values(next(v for v in layer.weights if v.name in ("kernel", "embeddings")))
    np.testing.assert_array_equal(stored == 0, ~mask)


def test_an_export_of_lora_is_what_it_predicts_and_leaves_the_model_as_it_was(tmp_path):
    model, _, x = tuned()
    before = model.get_weights()
    files = kprune.export(model, tmp_path / "sparse", inputs=x)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    exported = keras.models.load_model(files.keras_file)
    np.testing.assert_allclose(exported.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    model.fit(x, np.ones((16, 3)), verbose=0)
    assert np.all(values(model.get_layer("top").kernel)[~kprune.masked_weights(model)[0].kept()] == 0)


def test_lora_in_mixed_precision():
    model, _, x = tuned(dtype="mixed_bfloat16")
    predicted = model.predict(x, verbose=0)
    kprune.strip(model)
    np.testing.assert_allclose(model.predict(x, verbose=0), predicted, rtol=0.02, atol=0.02)


def halved():
    model = mlp()
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    return model, [weight.kept() for weight in kprune.masked_weights(model)]


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_masked_model_is_quantized_with_its_zeros(mode):
    model, masks = halved()
    model.predict(X, verbose=0)
    before = model.predict(X, verbose=0)
    model.quantize(mode)
    assert [layer.quantization_mode for layer in model.layers] == [mode] * 3
    assert [type(layer) for layer in model.layers] == [layers.Dense] * 3
    assert kprune.masked_weights(model) == []
    np.testing.assert_allclose(model.predict(X, verbose=0), before, atol={"int8": 0.05, "int4": 0.5}[mode])
    for layer, mask in zip(model.layers, masks, strict=True):
        unit = values(layer(np.eye(mask.shape[0], dtype="float32"))) - values(layer.bias)
        # A row is one input alone, so a pruned entry adds nothing to it; relu hides what is below 0.
        assert np.all(unit[~mask] <= 1e-6)
        if layer.activation is keras.activations.linear:
            assert np.all(unit[~mask] == 0)


def test_a_summary_counts_the_zeros_of_int8_kernels():
    model, masks = halved()
    zeros = sum(int((~mask).sum()) for mask in masks)
    model.quantize("int8")
    report = kprune.summary(model)
    assert report.size == sum(mask.size for mask in masks) and zeros <= report.zeros < zeros + 10
    stripped, _ = halved()
    kprune.strip(stripped).quantize("int8")
    assert kprune.summary(stripped).size == report.size


@pytest.mark.parametrize("rows", [8, 300])
def test_zeros_of_int4_are_those_of_the_weights_that_the_layer_multiplies_by(rows):
    """Two entries are stored as one; since Keras 3.15 each block of 128 rows has a zero point of its own."""
    model = keras.Sequential([keras.Input((rows,)), layers.Dense(5, use_bias=False)])
    kprune.prune(model, "random", 0.5, verbose=False)
    pruned = ~kprune.masked_weights(model)[0].kept()
    model.quantize("int4")
    multiplied = values(model(np.eye(rows, dtype="float32")))
    assert np.all(multiplied[pruned] == 0)
    [row] = kprune.summary(model).rows
    assert (row.shape, row.size, row.zeros) == ((rows, 5), 5 * rows, np.count_nonzero(multiplied == 0))


def test_lora_is_merged_before_it_is_quantized():
    model, layer, x = tuned()
    mask, before = kprune.masked_weights(model)[0].kept(), model.predict(x, verbose=0)
    model.quantize("int8")
    assert np.all(values(layer.kernel)[~mask] == 0) and layer.quantization_mode == "int8"
    np.testing.assert_allclose(model.predict(x, verbose=0), before, rtol=0.1, atol=0.1)


def test_modes_that_do_not_keep_zeros_are_refused_and_change_nothing():
    model, masks = halved()
    with pytest.raises(ValueError, match=r"int8 or int4.*kprune.strip\(model\) first.*Received: mode='float8'"):
        model.quantize("float8")
    for weight, mask in zip(kprune.masked_weights(model), masks, strict=True):
        np.testing.assert_array_equal(weight.kept(), mask)
    kprune.strip(model).quantize("float8")
    assert model.layers[0].quantization_mode == "float8"


def test_what_keras_cannot_quantize_stays_masked():
    model = keras.Sequential([keras.Input((8, 2)), layers.Conv1D(4, 3), layers.Flatten(), layers.Dense(3)])
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    with pytest.warns(UserWarning, match="Conv1D does not have a `quantize` method"):
        model.quantize("int8")
    assert [weight.path.split("/")[-2] for weight in kprune.masked_weights(model)] == [model.layers[0].name]
