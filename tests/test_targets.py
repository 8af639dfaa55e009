"""Advice: what is counted by hand, which pattern pays where, and what stands in the way."""

import json

import keras
import pytest
from helpers import mlp
from keras import layers

import kprune
from kprune.cli.main import main
from kprune.targets import TARGETS

pytestmark = pytest.mark.slow_on_jax


def mobile(pad="valid", zeros=1, middle=()):
    """What XNNPACK can lay out by channels: a 3x3 entry of stride 2, depthwise and 1x1 convolutions, global pooling."""
    given = keras.Input((7, 7, 3))
    x = layers.Conv2D(8, 3, strides=2, padding=pad, use_bias=False, name="entry")(layers.ZeroPadding2D(zeros)(given))
    x = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(x))
    for layer in middle:
        x = layer(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="windows")(x)
    x = layers.Conv2D(16, 1, activation="relu", name="points")(x)
    return keras.Model(given, layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x)))


def wide(n=256):
    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(n, name="a"), layers.Dense(n, name="b"), layers.Dense(10, name="c")]
    )


def left(advice):
    return advice.pattern, round(advice.size, 4), round(advice.flops, 4)


def test_zip_by_hand():
    # A tenth of the values, and H(0.1) = 0.469 bits of each 32 for where they are.
    assert left(kprune.advise(mlp(), "zip")) == ("pattern='unstructured'", round(0.1 + 0.468996 / 32, 4), 1.0)
    assert kprune.advise(mlp(), "zip", sparsity=0.0).pattern == "nothing"


def test_2_of_4_by_hand():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="odd"), layers.Dense(4, name="even")])
    advice = kprune.advise(model, "nvidia-2:4")
    # 48 entries stay, of 32 a half: 64 of 80.
    assert left(advice) == ("pattern='2:4'", 0.8, 0.8) and advice.sparsity == 0.5
    assert advice.obstacles == {"odd": "its number of inputs (6) is not a multiple of 4"}
    nothing = kprune.advise(keras.Sequential([keras.Input((9, 3)), layers.GRU(4, name="gru")]), "nvidia-2:4")
    assert not nothing.pays and "no sparse kernels for GRU layers" in nothing.obstacles["gru"]


def test_shrink_is_what_shrink_does():
    model = mlp(units=24)
    advice = kprune.advise(model, "shrink", sparsity=0.5)
    assert kprune.masked_weights(model) == []
    kprune.prune(model, "magnitude", 0.5, groups="channels", verbose=0)
    small = kprune.shrink(model)
    assert advice.pattern == "groups='channels'"
    assert advice.size == small.count_params() / model.count_params()
    assert advice.flops == kprune.summary(small).flops / kprune.summary(model).flops


def test_shrink_buys_nothing_where_all_stays_whole():
    given = keras.Input((6,))
    x = layers.LayerNormalization(name="norm")(layers.Dense(8)(given))
    advice = kprune.advise(keras.Model(given, layers.Dense(2)(x)), "shrink")
    assert advice.pattern == "nothing" and "norm" in str(advice)


def test_a_tpu_has_tiles_of_128():
    assert kprune.advise(mlp(), "tpu").pattern == "nothing"
    advice = kprune.advise(wide(), "tpu", sparsity=0.6)
    assert advice.pattern == "groups='channels:128'" and list(advice.obstacles) == ["c"]
    # 64 x 128 + 128 x 128 + 128 x 10 of 64 x 256 + 256 x 256 + 256 x 10: sparsity 0.69; 0.6 is one layer less.
    assert advice.flops in ((64 * 128 + 128 * 256 + 2560) / 84480, (64 * 256 + 256 * 128 + 1280) / 84480)
    assert "TPUs do not skip n:m" in str(advice)


def test_litert_by_hand():
    dense = kprune.advise(wide(), "litert-cpu", sparsity=0.8)
    assert dense.pattern in ("pattern='4x1'", "groups='channels'")
    convolution = kprune.advise(mobile(), "litert-cpu", sparsity=0.8)
    assert convolution.pattern == "groups='channels'" and "shrink the model, then export it" in str(convolution)
    # Nothing can shrink here, so blocks are what is left; 8 x 12 entries at a density of 0.1.
    lone = keras.Sequential([keras.Input((8,)), layers.Dense(12, name="lone")])
    assert left(kprune.advise(lone, "litert-cpu")) == ("pattern='4x1'", 0.1, 0.1)
    low = kprune.advise(lone, "litert-cpu", sparsity=0.5)
    assert low.pattern == "nothing" and "slower than dense" in str(low)


def test_xnnpack_takes_what_it_can_lay_out_by_channels():
    advice = kprune.advise(mobile(), "xnnpack-1x1", sparsity=0.75)
    # Multiply-adds, at 4 x 4 positions: 3 x 3 x 3 x 8, 3 x 3 x 8, 8 x 16; and 16 x 4 once. A quarter of 8 x 16 stays.
    whole, points = 16 * (216 + 72 + 128) + 64, 16 * 128
    assert advice.pattern == "pattern='unstructured'" and advice.obstacles == {}
    assert advice.flops == pytest.approx((whole - 0.75 * points) / whole)
    low = kprune.advise(mobile(), "xnnpack-1x1", sparsity=0.5)
    assert low.pattern == "nothing" and "at least 2/3" in str(low)


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (lambda: mobile(middle=[layers.Conv2D(8, 3, name="x")]), "x", "3x3 convolution with stride 1"),
        (lambda: mobile(middle=[layers.MaxPooling2D(name="x")]), "x", "MaxPooling2D is not supported"),
        (lambda: mobile(middle=[layers.Activation("softmax", name="x")]), "x", "activation 'softmax' is not supported"),
        (
            lambda: mobile(middle=[layers.DepthwiseConv2D(5, strides=2, padding="same", name="x")]),
            "x",
            "must be padded by 2 on each side: put ZeroPadding2D(2) before it",
        ),
        (lambda: mobile(middle=[layers.DepthwiseConv2D(3, name="x")]), "x", "must be padded by 1 on each side"),
        (lambda: mobile(zeros=((0, 1), (0, 1))), "entry", "must be padded by 1 on each side"),
        (lambda: mobile(pad="same"), "entry", "must be padded by 1 on each side"),
        (
            lambda: mobile(middle=[layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="x")]),
            "x",
            "its depth_multiplier is 2, but must be 1",
        ),
        (
            lambda: mobile(middle=[layers.DepthwiseConv2D(7, padding="same", name="x")]),
            "x",
            "7x7 depthwise convolutions are not",
        ),
        (
            lambda: mobile(middle=[layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="x")]),
            "x",
            "stride 1 or 2, and no dilation",
        ),
        (mlp, None, "does not contain a GlobalAveragePooling2D layer"),
    ],
)
def test_xnnpack_says_what_stands_in_the_way(model, name, reason):
    model = model()
    advice = kprune.advise(model, "xnnpack-1x1")
    assert advice.pattern == "nothing" and reason in advice.obstacles[name or model.name]
    assert f"- obstacle: {name or model.name}: " in str(advice)


def test_wrong_arguments_and_the_model_stays_as_it_is():
    model = mlp()
    with pytest.raises(ValueError, match=r"Unknown target.*'shrink'.*Received: target='gpu'"):
        kprune.advise(model, "gpu")
    with pytest.raises(ValueError, match=r"Received: sparsity=1\.0"):
        kprune.advise(model, "zip", sparsity=1.0)
    before = [type(layer) for layer in model.layers]
    for target in TARGETS:
        advice = kprune.targets.get(target)(model, kprune.targets.kernels_of(model), 0.9)
        json.dumps(advice.to_dict())
        assert advice._repr_html_().startswith("<pre>") and advice.target == target
    assert [type(layer) for layer in model.layers] == before and kprune.masked_weights(model) == []


def test_from_the_shell(tmp_path, capsys):
    mlp().save(tmp_path / "model.keras")
    assert main(["advise", str(tmp_path / "model.keras"), "--target=tpu,zip"]) == 0
    out = capsys.readouterr().out
    assert "tpu at sparsity 0.9: nothing" in out and "zip at sparsity 0.9: pattern='unstructured'" in out
    assert main(["advise", str(tmp_path / "model.keras"), "--json", "--sparsity=0.5"]) == 0
    assert [one["target"] for one in json.loads(capsys.readouterr().out)["advice"]] == list(TARGETS)
    assert main(["advise", str(tmp_path / "model.keras"), "--target=gpu"]) == 2
