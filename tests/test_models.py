"""The reference networks on Keras 3, with whichever backend runs the tests."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest

from kprune import models

PAPER_COUNTS = {
    "lenet-300-100": 266_200,
    "lenet-5": 430_500,
    "conv-2": 4_300_992,
    "conv-4": 2_425_024,
    "conv-6": 2_261_184,
    "vgg-11": 9_222_848,
    "vgg-16": 14_715_584,
    "resnet-18": 11_164_352,
    "resnet-20": 270_896,
}
# All trainable parameters of torchvision's ImageNet form and of the authors' WRN-28-10, as those codes count.
TRAINABLE_COUNTS = {
    "resnet-18": ({"input_shape": (64, 64, 3), "classes": 1000, "stem": "imagenet"}, 11_689_512),
    "resnet-34": ({"input_shape": (64, 64, 3), "classes": 1000, "stem": "imagenet"}, 21_797_672),
    "resnet-50": ({"input_shape": (64, 64, 3), "classes": 1000}, 25_557_032),
    "wide-resnet": ({}, 36_479_194),
}
SMALL_IMAGE_MODELS = ("vgg-11", "vgg-16", "resnet-20", "resnet-18", "conv-2", "lenet-300-100")
EVERY_MODEL = pytest.mark.parametrize("name", models.MODELS)


def prunable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights if w.path.endswith("/kernel"))


def narrow(name: str) -> float:
    return 1.0 if name == "wide-resnet" else 0.1


def predict(model) -> np.ndarray:
    images = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    return keras.ops.convert_to_numpy(model(images, training=False))


@EVERY_MODEL
def test_builds_narrow_and_gives_finite_logits(name):
    model = models.get(name)(input_shape=(32, 32, 2), classes=7, width=narrow(name), library=keras)
    assert isinstance(model, keras.Model) and model.built
    assert model.name == name.replace("-", "_")
    assert (model.input_shape, model.output_shape) == ((None, 32, 32, 2), (None, 7))
    logits = predict(model)
    assert np.isfinite(logits).all()
    assert not np.allclose(logits.sum(axis=-1), 1)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert all(layer.momentum == 0.9 and layer.epsilon == 1e-5 for layer in norms)
    convs = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert all(layer.use_bias == (not norms) for layer in convs)


@EVERY_MODEL
def test_signature_is_shared(name):
    parameters = list(inspect.signature(models.get(name)).parameters)
    assert parameters[:3] == ["input_shape", "classes", "width"] and "library" in parameters


@pytest.fixture
def no_initial_values(monkeypatch):
    """Weights of 0, which cost no random numbers, for tests that only count them."""
    zeros = keras.initializers.Zeros()
    monkeypatch.setattr(
        keras.initializers.VarianceScaling, "__call__", lambda self, shape, dtype=None: zeros(shape, dtype)
    )


@pytest.mark.usefixtures("no_initial_values")
@pytest.mark.parametrize("name", PAPER_COUNTS)
def test_prunable_count_is_the_papers(name):
    assert prunable(models.get(name)()) == PAPER_COUNTS[name]


@pytest.mark.usefixtures("no_initial_values")
@pytest.mark.parametrize("name", TRAINABLE_COUNTS)
def test_trainable_count_is_the_original_codes(name):
    arguments, count = TRAINABLE_COUNTS[name]
    model = models.get(name)(**arguments)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == count


@pytest.mark.usefixtures("no_initial_values")
@EVERY_MODEL
def test_docstring_states_the_prunable_count(name):
    assert f"{prunable(models.get(name)()):,} prunable weights" in " ".join(models.get(name).__doc__.split())


@pytest.mark.parametrize("name", SMALL_IMAGE_MODELS)
def test_digits_size_works(name):
    assert np.isfinite(predict(models.get(name)((8, 8, 1), width=0.1))).all()


def test_vgg_leaves_out_pools_of_one_pixel():
    def pools(shape):
        return sum("pool" in layer.name for layer in models.vgg_11(shape, width=0.1).layers)

    assert [pools((32, 32, 3)), pools((8, 8, 1)), pools((8, 2, 1)), pools((1, 1, 1))] == [5, 4, 2, 1]


def test_width_scales_channels_and_keeps_one():
    assert models.vgg_11(width=0.5).get_layer("block1_conv1").filters == 32
    assert models.vgg_11(width=0.001).get_layer("block5_conv2").filters == 1
    assert models.lenet_300_100(width=2).get_layer("dense1").units == 600
    assert models.wide_resnet(depth=10, width=2).get_layer("stage3_block1_conv2").filters == 128


def test_stem_quarters_the_map_for_imagenet_only():
    def first(stem):
        model = models.resnet_18((64, 64, 3), width=0.1, stem=stem)
        return model.get_layer("stage1_block1_conv1").input.shape

    assert first("cifar")[1:3] == (64, 64)
    assert first("imagenet")[1:3] == (16, 16)


def test_strided_convolutions_pad_evenly():
    # With an even map, "same" would start at the first pixel and this corner would get no padding.
    model = models.resnet_20(width=0.1)
    pad = model.get_layer("stage2_block1_conv1_pad")
    assert pad.padding == ((1, 1), (1, 1))
    assert model.get_layer("stage2_block1_conv1").padding == "valid"
    assert model.get_layer("stage1_block1_conv1").padding == "same"


def test_trains():
    model = models.lenet_300_100((8, 8, 1), width=0.1)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(np.ones((4, 8, 8, 1)), np.arange(4), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_names_follow_the_functions():
    assert {"lenet-300-100", "vgg-16", "resnet-20", "conv-2", "wide-resnet"} <= set(models.MODELS)
    for name in models.MODELS:
        assert models.get(name) is getattr(models, name.replace("-", "_"))
    assert set(models.__all__) == {"MODELS", "get", *(name.replace("-", "_") for name in models.MODELS)}


@pytest.mark.parametrize("name", ["vgg-17", "vgg_16", "", None, 3, ["vgg-16"]])
def test_wrong_name_lists_the_right_ones(name):
    with pytest.raises(ValueError, match=r"lenet-300-100, .*wide-resnet") as error:
        models.get(name)
    assert str(error.value).endswith(f"Received: name={name!r}")


@EVERY_MODEL
@pytest.mark.parametrize(
    "argument, value",
    [
        ("width", 0),
        ("width", -0.5),
        ("width", float("nan")),
        ("width", float("inf")),
        ("width", "1"),
        ("classes", 0),
        ("classes", -1),
        ("classes", 2.5),
        ("input_shape", (32, 32)),
        ("input_shape", (1, 32, 32, 3)),
        ("input_shape", (None, None, 3)),
        ("input_shape", (32, 32, 0)),
        ("input_shape", (32.0, 32, 3)),
        ("input_shape", 32),
        ("library", "tf_keras"),
    ],
)
def test_bad_argument_is_named(name, argument, value):
    with pytest.raises(ValueError) as error:
        models.get(name)(**{argument: value})
    assert str(error.value).endswith(f"Received: {argument}={value!r}")


@pytest.mark.parametrize("name, size", [("lenet-5", 16), ("conv-2", 2), ("conv-4", 4), ("conv-6", 8)])
def test_image_too_small_to_pool_is_refused(name, size):
    assert models.get(name)((size, size, 1), width=0.1).output_shape == (None, 10)
    with pytest.raises(ValueError, match=f"at least {size}x{size} pixels.*Received: input_shape="):
        models.get(name)((size, size - 1, 1), width=0.1)


@pytest.mark.parametrize("depth", [4, 20, 29, 28.0, "28"])
def test_wide_resnet_depth_must_fit(depth):
    with pytest.raises(ValueError) as error:
        models.wide_resnet(depth=depth)
    assert str(error.value).startswith("`depth` must be at least 10, and 4 more than a multiple of 6")
    assert str(error.value).endswith(f"Received: depth={depth!r}")


@pytest.mark.parametrize("name", ["resnet-18", "resnet-34", "resnet-50"])
def test_unknown_stem_is_refused(name):
    with pytest.raises(ValueError) as error:
        models.get(name)(stem="mnist")
    assert str(error.value).endswith("Received: stem='mnist'")


def test_channels_last_whatever_the_users_setting():
    keras.config.set_image_data_format("channels_first")
    try:
        model = models.vgg_11((32, 16, 3), width=0.1)
        assert model.get_layer("block1_conv1").kernel.shape == (3, 3, 3, 6)
        assert np.isfinite(predict(model)).all()
    finally:
        keras.config.set_image_data_format("channels_last")
