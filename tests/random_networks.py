"""Random small networks with random zeros, as hypothesis draws them: what `kprune.shrink` is tried on."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers

import kprune

ACTIVATIONS = ["relu", "linear", "tanh", "gelu", "sigmoid", "elu"]
STEPS = [
    *["convolution", "convolution", "separable", "depthwise", "transposed", "normalization", "layer_normalization"],
    *["activation", "softmax", "pool", "padding", "add", "multiply", "concatenate", "nested", "dropout", "einsum"],
]
SEQUENCES = ["heads", "shared_heads", "two_directions", "each_step", "einsum"]


def convolution(draw, x, filters=None):
    return layers.Conv2D(
        filters or draw(st.integers(1, 6)),
        draw(st.sampled_from([1, 3])),
        strides=draw(st.sampled_from([1, 1, 2])) if filters is None else 1,
        padding=draw(st.sampled_from(["same", "valid"])) if filters is None and x.shape[1] > 2 else "same",
        activation=draw(st.sampled_from(ACTIVATIONS)),
        use_bias=draw(st.booleans()),
    )(x)


def same_shape(draw, x):
    """Another tensor of x's shape."""
    kind = draw(st.sampled_from(["convolution", "depthwise", "itself"]))
    if kind == "convolution":
        return convolution(draw, x, filters=int(x.shape[-1]))
    return layers.DepthwiseConv2D(3, padding="same")(x) if kind == "depthwise" else x


def step(draw, x):
    kind = draw(st.sampled_from(STEPS))
    if kind == "convolution":
        return convolution(draw, x)
    if kind == "separable":
        return layers.SeparableConv2D(draw(st.integers(1, 5)), 3, padding="same", use_bias=draw(st.booleans()))(x)
    if kind == "depthwise":
        return layers.DepthwiseConv2D(
            draw(st.sampled_from([1, 3])), padding="same", depth_multiplier=draw(st.integers(1, 2))
        )(x)
    if kind == "transposed":
        return layers.Conv2DTranspose(draw(st.integers(1, 4)), 3, padding="same", activation="relu")(x)
    if kind == "normalization":
        return layers.BatchNormalization(scale=draw(st.booleans()), center=draw(st.booleans()))(x)
    if kind == "layer_normalization":
        return layers.LayerNormalization()(x)
    if kind == "activation":
        return draw(st.sampled_from([layers.ReLU(6.0), layers.LeakyReLU(), layers.Activation("silu"), layers.PReLU()]))(
            x
        )
    if kind == "softmax":
        return layers.Softmax()(x)
    if kind == "pool" and min(x.shape[1:3]) >= 2:
        pool = draw(st.sampled_from([layers.MaxPooling2D, layers.AveragePooling2D]))
        return pool(2, padding=draw(st.sampled_from(["same", "valid"])))(x)
    if kind == "padding":
        return layers.ZeroPadding2D(1)(x)
    if kind == "add":
        return layers.Add()([x, same_shape(draw, x)])
    if kind == "multiply":
        gate = layers.Dense(x.shape[-1], "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        return layers.Multiply()([x, gate]) if draw(st.booleans()) else x * same_shape(draw, x)
    if kind == "concatenate":
        return layers.Concatenate()([x, same_shape(draw, x)])
    if kind == "nested":
        inner = [
            keras.Input(x.shape[1:], dtype="float64"),
            layers.Conv2D(3, 1, activation="relu"),
            layers.BatchNormalization(),
        ]
        return keras.Sequential(inner)(x)
    if kind == "einsum":
        return einsum(draw, x, "abcd,de->abce")
    return layers.Dropout(0.5)(x)


def einsum(draw, x, equation):
    bias, activation = draw(st.sampled_from([None, "e"])), draw(st.sampled_from(ACTIVATIONS))
    named = () if "..." in equation else x.shape[1:-1]  # Keras adds what the dots stand for
    shape = (*named, draw(st.integers(1, 6)))
    return layers.EinsumDense(equation, shape, bias_axes=bias, activation=activation)(x)


def sequence(draw, x):
    """Something that works on a sequence of at most 9 steps."""
    while x.shape[1] * x.shape[2] > 9:
        x = layers.MaxPooling2D(2)(x)
    x = layers.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x)
    kind = draw(st.sampled_from(SEQUENCES))
    if kind == "heads":
        return layers.MultiHeadAttention(3, 2)(x, x, use_causal_mask=draw(st.booleans()))
    if kind == "shared_heads":
        return layers.GroupQueryAttention(2, 6, 3)(x, x)
    if kind == "two_directions":
        cell = draw(st.sampled_from([layers.SimpleRNN, layers.LSTM, layers.GRU]))
        mode = draw(st.sampled_from(["concat", "sum", "mul"]))
        return layers.Bidirectional(cell(4, return_sequences=True), merge_mode=mode)(x)
    if kind == "each_step":
        x = layers.TimeDistributed(layers.Dense(5, "relu", use_bias=draw(st.booleans())))(x)
        return layers.TimeDistributed(layers.BatchNormalization())(x)
    return einsum(draw, x, draw(st.sampled_from(["abd,de->abe", "...d,ed->...e"])))


def network(draw):
    """A float64 network with random values, of whose channels some are masked, unstructured or whole, in and out."""
    keras.backend.clear_session()
    keras.config.set_dtype_policy("float64")
    inputs = keras.Input((6, 6, 2), dtype="float64")
    x = convolution(draw, inputs)
    for _ in range(draw(st.integers(1, 5))):
        x = step(draw, x)
    if draw(st.integers(0, 2)) == 0:
        x = sequence(draw, x)
        x = layers.Reshape((x.shape[1], 1, x.shape[2]))(x)
    ends = {"flatten": layers.Flatten, "average": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
    x = ends[draw(st.sampled_from(sorted(ends)))]()(x)
    x = layers.Dense(draw(st.integers(1, 6)), draw(st.sampled_from(ACTIVATIONS)))(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for v in model.weights:
        values = rng.uniform(0.5, 1.5, v.shape) if "variance" in v.path else rng.normal(size=v.shape)
        # Biases of dead channels are zero often: as they come from training without any, and as a mask makes them.
        v.assign(values * (rng.random() < 0.6) if v.name in ("bias", "beta") else values)
    kprune.mask(model, weights=("kernel", "pointwise_kernel", "depthwise_kernel", "recurrent_kernel"))
    kinds = draw(st.sampled_from(["out", "in", "both", "unstructured"]))
    kprune.set_masks(model, {w.path: zeros(rng, w.shape, kinds) for w in kprune.masked_weights(model)})
    keras.config.set_dtype_policy("float32")
    return model


def zeros(rng, shape, kind):
    mask = np.ones(shape, bool)
    if kind in ("out", "both"):
        mask &= rng.random(shape[-1]) < 0.6
    if kind in ("in", "both"):
        mask &= (rng.random(shape[-2]) < 0.6)[:, None]
    if kind in ("in", "both") and len(shape) == 3:  # whole heads of what reads them
        mask &= (rng.random(shape[0]) < 0.6)[:, None, None]
    if kind == "unstructured":
        mask &= rng.random(shape) < 0.15
    return mask
