"""How long a masked train step takes beside a dense one: `python benchmarks/step.py`.

The same network, compiled with Adam, masked at 90 % and dense, in turns; each number is the time of a fit of some steps
by its number. `first` is the first call, with tracing and compiling, of two more such networks.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags
from keras import layers
from timing import in_turns, report, start

import kprune

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 7, "Fits of each, in turns.")
flags.DEFINE_list("networks", ["lenet-300-100", "resnet-20", "transformer", "vgg-16"], "Networks.")


def transformer():
    """Two blocks of width 128 over 32 tokens."""
    tokens = keras.Input((32, 64))
    x = layers.Dense(128)(tokens)
    for _ in range(2):
        normal = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 32)(normal, normal)
        x = x + layers.Dense(128)(layers.Dense(512, "gelu")(layers.LayerNormalization()(x)))
    return keras.Model(tokens, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


# name -> (the network, examples in a batch, batches in a fit)
NETWORKS = {
    "lenet-300-100": (lambda: kprune.models.lenet_300_100((784,)), 128, 200),
    "resnet-20": (lambda: kprune.models.resnet_20((32, 32, 3)), 32, 6),
    "transformer": (transformer, 32, 30),
    "vgg-16": (lambda: kprune.models.vgg_16((32, 32, 3)), 16, 3),
}


def compiled(make, masked):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if masked:
        kprune.prune(model, "magnitude", 0.9, verbose=0)
    return model


def measure(name):
    make, batch, steps = NETWORKS[name]
    draw = np.random.default_rng(0)
    models = {kind: compiled(make, kind == "masked") for kind in ("dense", "masked")}
    x = draw.normal(size=(steps * batch, *models["dense"].input_shape[1:])).astype("float32")
    y = draw.integers(0, 10, steps * batch)

    def fit(model):
        model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)

    first = {}
    for kind, model in models.items():
        start = time.perf_counter()
        model.fit(x[:batch], y[:batch], batch_size=batch, verbose=0)
        first[kind] = time.perf_counter() - start
    seconds = in_turns({kind: lambda model=model: fit(model) for kind, model in models.items()}, FLAGS.repeats)
    per_step = {kind: [run / steps for run in runs] for kind, runs in seconds.items()}
    report("step", name, per_step, "dense", first_call=first["masked"] / first["dense"])


def main():
    for name in FLAGS.networks:
        measure(name)


if __name__ == "__main__":
    start(main)
