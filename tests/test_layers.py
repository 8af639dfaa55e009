"""Every layer kind: masked in place, trained, exactly sparse, saved, loaded, cloned, stripped."""

import gc
import tracemalloc
import weakref

import keras
import numpy as np
import pytest
from helpers import EachBatch, assert_programs_agree, assert_zero, built, halve
from keras import layers

import kprune
from kprune.masks.below import all_layers
from kprune.masks.masked_layers import Masked
from kprune.report.keras_file import describe
from kprune.report.trusted import check_config

ALL = ("kernel", "recurrent_kernel", "pointwise_kernel", "depthwise_kernel", "embeddings")


@keras.saving.register_keras_serializable("kprune_tests")
class Projection(layers.Layer):
    """A layer of the user's own, with its own weight and its own loss."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel", regularizer="l2")

    def call(self, x):
        self.add_loss(1e-3 * keras.ops.mean(keras.ops.square(x)))
        return keras.ops.matmul(x, self.kernel)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("kprune_tests")
class Block(layers.Layer):
    """A layer of the user's own, made of layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = layers.Dense(units, "relu")
        self.drop = layers.Dropout(0.1, seed=1)
        self.project = Projection(units)

    def call(self, x, training=None):
        return self.project(self.drop(self.inner(x), training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("kprune_tests")
class Subclassed(keras.Model):
    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units, "relu")
        self.block = Block(units)
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.block(self.norm(self.first(x), training=training), training=training)

    def get_config(self):
        return {"units": self.units}


def attend(x):
    return layers.MultiHeadAttention(2, 4)(x, x)


def grouped(x):
    return layers.GroupQueryAttention(4, 4, 2)(x, x)


def shared(x):
    layer = layers.Dense(6)
    return layer(layer(x))


def nested(x):
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"), layers.Dense(6)])
    inputs = keras.Input((6,))
    outer = keras.Model(inputs, layers.Add()([inner(inputs), inputs]))
    return outer(x)


SEQUENCE, IMAGE, VOLUME, VECTOR = (5, 4), (6, 6, 2), (4, 4, 4, 2), (6,)
KINDS = {
    "Dense": (VECTOR, lambda: layers.Dense(5, kernel_regularizer="l1")),
    "EinsumDense": (SEQUENCE, lambda: layers.EinsumDense("abc,cd->abd", output_shape=(5, 6))),
    "Conv1D": (SEQUENCE, lambda: layers.Conv1D(6, 3)),
    "Conv2D": (IMAGE, lambda: layers.Conv2D(6, 3, groups=2)),
    "Conv3D": (VOLUME, lambda: layers.Conv3D(3, 2)),
    "Conv1DTranspose": (SEQUENCE, lambda: layers.Conv1DTranspose(6, 3)),
    "Conv2DTranspose": (IMAGE, lambda: layers.Conv2DTranspose(4, 3, strides=2)),
    "Conv3DTranspose": (VOLUME, lambda: layers.Conv3DTranspose(2, 2)),
    "DepthwiseConv1D": (SEQUENCE, lambda: layers.DepthwiseConv1D(3)),
    "DepthwiseConv2D": (IMAGE, lambda: layers.DepthwiseConv2D(3)),
    "SeparableConv1D": (SEQUENCE, lambda: layers.SeparableConv1D(6, 3)),
    "SeparableConv2D": (IMAGE, lambda: layers.SeparableConv2D(6, 3)),
    "LSTM": (SEQUENCE, lambda: layers.LSTM(6, dropout=0.1)),
    "GRU": (SEQUENCE, lambda: layers.GRU(6, return_sequences=True)),
    "SimpleRNN": (SEQUENCE, lambda: layers.SimpleRNN(6)),
    "StackedRNN": (SEQUENCE, lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(4)])),
    "ConvLSTM2D": ((3, *IMAGE), lambda: layers.ConvLSTM2D(2, 3)),
    "Bidirectional": (SEQUENCE, lambda: layers.Bidirectional(layers.LSTM(4, recurrent_dropout=0.1))),
    "TimeDistributed": (SEQUENCE, lambda: layers.TimeDistributed(layers.Dense(5))),
    "TimeDistributed LSTM": ((2, *SEQUENCE), lambda: layers.TimeDistributed(layers.LSTM(3))),
    "MultiHeadAttention": (SEQUENCE, lambda: attend),
    "GroupQueryAttention": (SEQUENCE, lambda: grouped),
    "Embedding": ((5,), lambda: layers.Embedding(10, 6)),
    "custom": (VECTOR, lambda: Projection(5)),
    "custom of layers": (VECTOR, lambda: Block(5)),
    "shared": (VECTOR, lambda: shared),
    "nested": (VECTOR, lambda: nested),
}


def model_of(kind):
    if kind == "subclassed":
        model = Subclassed()
        model(np.zeros((1, 6), "float32"))
        return model, VECTOR
    shape, make = KINDS[kind]
    inputs = keras.Input(shape, dtype="int32" if kind == "Embedding" else "float32")
    x = make()(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))), shape


# Kinds that differ in how they are masked: one kernel, two kernels, two in a loop, layers within the layer, a table
# that is looked up, a layer of one's own, and layers of those.
DIFFERENT = ("Dense", "SeparableConv2D", "LSTM", "MultiHeadAttention", "Embedding", "custom", "subclassed")
# Kinds that are masked as another one of KINDS is.
ALIKE = ("Conv1D", "Conv3D", "Conv1DTranspose", "Conv3DTranspose", "DepthwiseConv1D", "SeparableConv1D", "GRU")
ALIKE += ("SimpleRNN", "Bidirectional", "TimeDistributed LSTM", "GroupQueryAttention")
# Every kind as each backend runs it by default: TensorFlow without XLA, JAX by XLA. Those that differ the other way,
# too, and with XLA's optimizations.
DEFAULT = keras.backend.backend() == "jax"
EACH_KIND, SLOW = [(kind, DEFAULT) for kind in [*KINDS, "subclassed"]], [(kind, DEFAULT) for kind in ALIKE]
if keras.backend.backend() == "tensorflow":
    EACH_KIND += [(kind, True) for kind in DIFFERENT]
    # XLA compiles them in the tests on JAX.
    SLOW += [(kind, True) for kind in ("LSTM", "MultiHeadAttention", "Embedding", "subclassed")]
else:
    EACH_KIND += [("Dense", False), ("Conv2D", False), ("subclassed", False)]


def marks_of(kind, jit):
    optimized = [pytest.mark.optimized] if kind in DIFFERENT else []
    return [*optimized, pytest.mark.slow] if (kind, jit) in SLOW else optimized


def outputs(model, x, kind):
    """What `predict` returns; where TensorFlow, without XLA, runs the same kernels then, it is not traced for it."""
    if kind in DIFFERENT or keras.backend.backend() != "tensorflow":
        return model.predict(x, verbose=0)
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.private_api
@pytest.mark.parametrize(
    ("kind", "jit"),
    [pytest.param(*each, marks=marks_of(*each)) for each in EACH_KIND],
    ids=lambda value: {True: "jit", False: "plain"}.get(value, value),
)
def test_every_layer_kind(kind, jit, tmp_path, rng):
    model, shape = model_of(kind)
    x = rng.integers(0, 10, (16, *shape)) if kind == "Embedding" else rng.normal(size=(16, *shape)).astype("float32")
    dense = outputs(model, x, kind)
    y = rng.normal(size=dense.shape).astype("float32")
    plain_types = [type(layer) for layer in all_layers(model)]

    report = kprune.mask(model, weights=ALL)
    assert len(report.masked) >= 1 + (kind not in ("subclassed",))
    assert_programs_agree(outputs(model, x, kind), dense)

    halve(model)
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), "mse", jit_compile=jit)
    built(model)
    before = [w.value().copy() for w in kprune.masked_weights(model)]
    check = EachBatch(assert_zero)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[check])
    assert check.calls == 4
    for weight, old in zip(kprune.masked_weights(model), before, strict=True):
        assert np.any(weight.value() != old), f"{weight.path} did not train"

    predicted = outputs(model, x, kind)
    model.save(tmp_path / "model.keras")
    check_config(describe(tmp_path / "model.keras").config, keras)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_programs_agree(outputs(loaded, x, kind), predicted)
    assert [w.shape for w in kprune.masked_weights(loaded)] == [w.shape for w in kprune.masked_weights(model)]
    for one, other in zip(kprune.masked_weights(loaded), kprune.masked_weights(model), strict=True):
        np.testing.assert_array_equal(one.kept(), other.kept())
    if kind in DIFFERENT and jit == (keras.backend.backend() == "jax"):
        loaded.fit(x, y, batch_size=8, verbose=0)
    assert_zero(loaded)

    model.save_weights(tmp_path / "w.weights.h5")
    other, _ = model_of(kind)
    kprune.mask(other, weights=ALL)
    other.compile("sgd", "mse", jit_compile=jit)
    other.load_weights(tmp_path / "w.weights.h5")
    for one, expected in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, expected)
    assert_zero(other)

    kprune.strip(model)
    assert [type(layer) for layer in all_layers(model)] == plain_types
    for layer in model._flatten_layers():
        assert not isinstance(layer, Masked)
    assert kprune.masked_weights(model) == []
    assert_programs_agree(outputs(model, x, kind), predicted)
    model.save(tmp_path / "plain.keras")
    assert b"kprune>" not in (tmp_path / "plain.keras").read_bytes()
    check_config(describe(tmp_path / "plain.keras").config, keras)
    plain = keras.saving.load_model(tmp_path / "plain.keras")  # compiled as the model was
    assert_programs_agree(outputs(plain, x, kind), predicted)


@pytest.mark.private_api
@pytest.mark.parametrize("kind", ["Dense", "LSTM", "MultiHeadAttention", "Bidirectional", "nested", "custom of layers"])
def test_clone_keeps_masks(kind, rng):
    model, shape = model_of(kind)
    kprune.mask(model)
    halve(model)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = rng.normal(size=(4, *shape)).astype("float32")
    assert_programs_agree(clone.predict(x, verbose=0), model.predict(x, verbose=0))
    assert_zero(clone)


@pytest.mark.private_api
@pytest.mark.parametrize("saved", [False, True])
def test_a_class_of_a_functions_own_goes_with_its_last_layer(saved):
    class Own(layers.Dense):
        pass

    one, other = (keras.Sequential([keras.Input((4,)), Own(3)]) for _ in range(2))
    kprune.mask(one)
    kprune.mask(other)
    if saved:
        config = keras.saving.serialize_keras_object(one.layers[0])
        keras.saving.serialize_keras_object(other.layers[0])
    gone, masked = weakref.ref(Own), weakref.ref(type(one.layers[0]))
    del Own, one
    gc.collect()
    if saved:  # the other layer's name is still known
        assert config["registered_name"] == "kprune>Masked"
        assert keras.saving.serialize_keras_object(other.layers[0])["registered_name"] == "kprune>Masked"
    assert type(other.layers[0]) is masked()
    del other
    keras.backend.clear_session()
    gc.collect()  # the layers, whose end lets go of the classes
    gc.collect()
    assert gone() is None and masked() is None


def test_nothing_but_the_masks_stays_after_pruning_and_it_takes_no_collection():
    """Scores, copies held for an undo, and masks of before are freed at once: a cycle would hold them for long."""
    model = keras.Sequential([keras.Input((500,)), layers.Dense(500, use_bias=False)])
    kprune.prune(model, "magnitude", 0.2)
    gc.collect()
    tracemalloc.start()
    gc.disable()
    try:
        kprune.prune(model, "magnitude", 0.5)
        # The array that was assigned to the weight is the weight's own memory now.
        assert tracemalloc.get_traced_memory()[0] < 1.5 * 4 * 500 * 500
    finally:
        gc.enable()
        tracemalloc.stop()
    if keras.backend.backend() == "jax":
        import jax

        assert sum(array.shape == (500, 500) for array in jax.live_arrays()) == 2


@pytest.mark.parametrize("kind", [layers.GRU, layers.LSTM])
def test_a_stateful_layer_keeps_its_state_between_calls(kind):
    inputs = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(inputs, kind(5, stateful=True)(inputs))
    x = np.ones((2, 3, 4), "float32")
    plain = [np.array(model(x)) for _ in range(2)]
    model.layers[-1].reset_state()
    kprune.mask(model)
    for expected in plain:
        np.testing.assert_array_equal(np.array(model(x)), expected)
    assert np.any(plain[0] != plain[1])
