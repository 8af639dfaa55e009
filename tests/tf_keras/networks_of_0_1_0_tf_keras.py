"""The tf_keras networks of which version 0.1.0 wrote tests/fixtures/0.1.0/tf_keras, under tfmot's wrappers."""

import tf_keras
from tf_keras import layers

import kprune


def functional():
    """A nested model, a constraint, and an LSTM of which only the kernel is masked."""
    inner = tf_keras.Sequential([tf_keras.Input((3,)), layers.Dense(4, "relu", name="within")], name="inner")
    inputs = tf_keras.Input((3, 2))
    x = layers.BatchNormalization(name="norm")(inner(layers.LSTM(3, name="lstm")(inputs)))
    return tf_keras.Model(inputs, layers.Dense(3, kernel_constraint="non_neg", name="logits")(x))


def attention():
    inputs = tf_keras.Input((3, 2))
    return tf_keras.Model(inputs, layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs))


NETWORKS = {"functional": functional, "attention": attention}


def masked(name):
    """A network of a kind, masked and compiled; the same on each call."""
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(3)
    model = kprune.mask(NETWORKS[name](), weights=("kernel",)).model
    model.compile("sgd", "mse")
    return model


def trainable():
    """What fits of several epochs train."""
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(3)
    hidden = [layers.Dense(5, "relu", name="hidden"), layers.BatchNormalization(name="norm")]
    plain = tf_keras.Sequential([tf_keras.Input((6,)), *hidden, layers.Dense(3, name="logits")])
    model = kprune.mask(plain).model
    model.compile(tf_keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model
