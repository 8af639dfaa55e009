"""The Keras 3 networks of which version 0.1.0 wrote tests/fixtures/0.1.0, and how to read what stands beside the files.

Only public Keras, and of kprune what every version has: the files outlive the modules that wrote them.
"""

import pathlib

import keras
import numpy as np
from keras import layers

import kprune

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "0.1.0"
DEPTHWISE = ("kernel", "depthwise_kernel", "pointwise_kernel")


def waves(*shape):
    """Numbers in [-1, 1] that are the same on every machine, float32."""
    return np.sin(np.arange(np.prod(shape)) ** 1.5).reshape(shape).astype("float32")


# Which compiler takes the least time, as arguments of `compile`.
CHEAP = dict(jit_compile=keras.backend.backend() == "jax")
# 6 steps of 8 examples.
X, Y = waves(48, 6), waves(48, 3)
CLASSES = (np.arange(48) * 7 // 5 % 3).astype("int32")


@keras.saving.register_keras_serializable("kprune_0_1_0")
class Projection(layers.Layer):
    """A layer of the user's own, with a weight of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("kprune_0_1_0")
class Block(layers.Layer):
    """A layer of the user's own, made of layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = layers.Dense(units, "relu", name="inner")
        self.project = Projection(units, name="project")

    def call(self, x):
        return self.project(self.inner(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def sequential():
    hidden = layers.Dense(5, "relu", kernel_regularizer="l2", name="hidden")
    stack = [hidden, layers.BatchNormalization(name="norm"), layers.Dense(3, name="logits")]
    return keras.Sequential([keras.Input((6,)), *stack])


def functional():
    """A nested model, and a layer that is called twice."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu", name="within")], name="inner")
    inputs, twice = keras.Input((6,)), layers.Dense(4, name="twice")
    return keras.Model(inputs, twice(twice(inner(layers.Dense(4, "relu", name="first")(inputs)))))


def attention():
    inputs = keras.Input((3, 2))
    return keras.Model(inputs, layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs))


def recurrent():
    return keras.Sequential([keras.Input((3, 2)), layers.Bidirectional(layers.LSTM(2, name="lstm"), name="both")])


def convolutional():
    """Masked at `DEPTHWISE`."""
    inputs = keras.Input((6, 1))
    return keras.Model(inputs, layers.SeparableConv1D(3, 2, name="separable")(layers.Conv1D(2, 2, name="conv")(inputs)))


def own():
    inputs = keras.Input((6,))
    return keras.Model(inputs, Block(4, name="block")(inputs))


# name -> (network, the shape of an input)
NETWORKS = {
    "sequential": (sequential, (6,)),
    "functional": (functional, (6,)),
    "attention": (attention, (3, 2)),
    "recurrent": (recurrent, (3, 2)),
    "convolutional": (convolutional, (6, 1)),
    "own": (own, (6,)),
}
# backend -> the networks that it saved
SAVED = {"tensorflow": ("sequential", "functional", "attention"), "jax": ("recurrent", "convolutional", "own")}
# network -> the backend that saved its weights, or its ticket
WEIGHTS_ALONE = {"own": "jax"}
TICKETS = {"functional": "tensorflow", "own": "jax"}
# backend -> the kinds of fits of which there is a backup
BACKED_UP = {"tensorflow": ("magnitude_increase", "lottery", "early_bird"), "jax": ("magnitude_increase", "lottery")}


def masked(name):
    """A network of a kind, masked and compiled; the same on each call, on the backend at hand."""
    keras.utils.set_random_seed(3)
    model = NETWORKS[name][0]()
    kprune.mask(model, **({"weights": DEPTHWISE} if name == "convolutional" else {}))
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9 if name == "sequential" else 0.0)
    model.compile(optimizer, "mse", **CHEAP)
    return model


def inputs_for(name):
    return X.reshape(48, *NETWORKS[name][1])


def trainable(dropout=0.0):
    """What fits of several epochs train; with dropout, whose random numbers differ from backend to backend."""
    keras.utils.set_random_seed(3)
    stack = [layers.BatchNormalization(name="norm"), layers.Dropout(dropout, seed=5, name="drop")]
    stack = [layers.Dense(5, "relu", name="hidden"), *stack, layers.Dense(3, name="logits")]
    model = keras.Sequential([keras.Input((6,)), *stack])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **CHEAP)
    return model


def classifier(seed):
    """For sweeps and lotteries side by side."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "relu", name="hidden"), layers.Dense(3, name="logits")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"], **CHEAP)
    return model


def waves_dataset():
    return kprune.data.Dataset("waves", (X, CLASSES), (X, CLASSES), (1, 6, 1), classes=3, batch_size=8)


def held(model):
    """The masks and the masked weights, in their order."""
    weights = kprune.masked_weights(model)
    return [w.kept() for w in weights], [w.value() for w in weights]


def all_weights(model):
    """All weights of a masked model but for masks and the states of seed generators, in their order."""
    weights = kprune.Ticket.of(model).weights
    return [array for path, array in weights.items() if not path.startswith("seed_generator/")]


def flat(arrays):
    """All entries in one vector."""
    return np.concatenate([np.ravel(array) for array in arrays])


def stored(backend):
    """What stands in plain NumPy beside the files of a backend: name of the file -> part -> all entries in a vector."""
    found = {}
    with np.load(FIXTURES / backend / "expected.npz") as arrays:
        for key in arrays.files:
            name, part = key.split("/")
            found.setdefault(name, {})[part] = arrays[key]
    return found


def assert_stored(arrays, expected, atol=0.0):
    actual = flat(arrays)
    assert actual.dtype == expected.dtype and actual.size > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
