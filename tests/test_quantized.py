"""Zeros of stripped models that Keras quantizes: counted as they are dequantized, in models, files and cards."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers
from marks import with_slow

import kprune
from kprune.report.quantized import kept


def stripped(units=11, inputs=40):
    """40 -> 11 -> 3, three quarters of each kernel 0; an odd number of outputs, as a byte holds two."""
    model = keras.Sequential([keras.Input((inputs,)), layers.Dense(units, "relu"), layers.Dense(3)])
    kprune.prune(model, "magnitude", 0.75, scope="uniform")
    return kprune.strip(model), int(0.75 * units * inputs) + int(0.75 * units * 3)


def read_kernel(layer):
    """The kernel as the layer multiplies by it: what it makes of each input alone."""
    plain = layer.activation
    layer.activation = keras.activations.linear
    made = np.asarray(layer(np.eye(layer.input_spec.axes[-1], dtype="float32"))) - np.asarray(layer.bias)
    layer.activation = plain
    return made


@pytest.mark.parametrize("mode", with_slow(["int8", "int4 in blocks"], ["float8", "int4"]))
def test_zeros_are_kept_and_counted_as_dequantized(mode, tmp_path):
    model, zeros = stripped()
    before = {layer: np.asarray(layer.kernel) == 0 for layer in model.layers}
    blocks = "block_size" in inspect.signature(keras.quantizers.Int4QuantizationConfig).parameters
    if mode == "int4 in blocks":
        if not blocks:
            pytest.skip("this Keras has no blocks")
        config = keras.quantizers.Int4QuantizationConfig(block_size=16)
        model.quantize(config=config)
        assert np.any(np.asarray(model.layers[0].kernel_zero) != 0)
    elif mode == "int4":
        model.quantize(config=keras.quantizers.Int4QuantizationConfig(**({"block_size": -1} if blocks else {})))
    else:
        model.quantize(mode)
    for layer, was in before.items():
        made = read_kernel(layer)
        assert np.all(made[was] == 0)
        if mode != "float8":  # whose products are rounded, too
            np.testing.assert_array_equal(kept(layer, layer._kernel), made != 0)
    report = kprune.summary(model)
    assert report.size == 40 * 11 + 11 * 3 and zeros <= report.zeros <= zeros + 60
    if mode != "float8":
        pytest.importorskip("tensorflow")
        done = kprune.export(model, tmp_path / "m", verbose=0)
        for format in ("saved_model", "keras"):
            assert (done.card.entry(format).zeros, done.card.entry(format).size) == (report.zeros, report.size)


@pytest.mark.parametrize(
    ("layer", "examples"),
    [
        (layers.Dense(1), (4, 6)),  # two integers a byte, and one alone
        (layers.EinsumDense("abc,cd->abd", (None, 5)), (4, 3, 6)),
        (layers.EinsumDense("abc,dc->abd", (None, 6)), (4, 3, 6)),  # as many outputs as inputs
        (layers.EinsumDense("abc,cde->abde", (None, 3, 5)), (4, 3, 6)),  # as in MultiHeadAttention
    ],
)
def test_a_kernel_of_4_bits_is_counted_whatever_its_shape(layer, examples):
    model = keras.Sequential([keras.Input(examples[1:]), layer])
    layer.kernel.assign(np.arange(1, np.prod(layer.kernel.shape) + 1).reshape(layer.kernel.shape))  # 0 is no integer 0
    kprune.prune(model, "magnitude", 0.5, scope="uniform", verbose=0)
    before = kprune.summary(model).rows[0]
    was = kprune.masked_weights(model)[0].kept()
    model.quantize("int4")
    now = kprune.summary(model).rows[0]
    counted = kept(layer, layer._kernel)
    assert (now.shape, now.size) == (before.shape, before.size) and not np.any(counted & ~was)
    assert now.zeros >= before.zeros == before.size // 2 and now.dead_channels >= before.dead_channels
    assert now.zeros < before.size, "what is not rounded to 0"


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_what_is_quantized_is_counted_beside_what_is_still_masked(mode):
    """Keras quantizes Dense layers, so the masks of convolutions stay."""
    conv = [keras.Input((6, 6, 1)), layers.Conv2D(4, 3), layers.Flatten()]
    model = keras.Sequential([*conv, layers.Dense(5, "relu"), layers.Dense(2)])
    kprune.prune(model, "magnitude", 0.5, scope="uniform", verbose=0)
    before = kprune.summary(model)
    model.quantize(mode)
    now = kprune.summary(model)
    assert [row.path for row in now.rows] == [row.path for row in before.rows]
    assert (now.size, now.other_size >= before.other_size) == (before.size, True)
    assert all(row.zeros >= then.zeros > 0 for row, then in zip(now.rows, before.rows, strict=True))
    assert now.quantized == tuple(row.path for row in before.rows[1:]) and now.masked
    assert (
        "zeros are counted in the masks and in the quantized kernels themselves; " in str(now)
        and before.quantized == ()
    )
    kprune.strip(model)
    assert [row.zeros for row in kprune.summary(model).rows] == [row.zeros for row in now.rows]


@pytest.mark.parametrize("mode", ["gptq", "awq"])
def test_a_masked_layer_refuses_what_moves_or_drops_its_zeros(mode):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    kprune.prune(model, "magnitude", 0.5)
    with pytest.raises(ValueError, match=rf"GPTQ.*Received: mode='{mode}'"):
        model.layers[0].quantize(mode)
    assert len(kprune.masked_weights(model)) == 1
