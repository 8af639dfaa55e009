"""Shrink three networks whose channels are pruned: `make bench-shrink` prints the table of docs/shrink.md.

The networks are not trained: channels are drawn at random, about as many in each layer, so sizes and times are those of
evenly pruned networks. Times are those of the SavedModels that `kprune.export` writes, taken in turns; their median.
"""

import os
import pathlib
import platform
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import kprune

SPARSITIES = (0.75, 0.94)  # about half and a quarter of the channels are left
CALLS, BATCH = 60, 32


def mobile_net(size=32, width=0.5, classes=10):
    """Depthwise separable blocks as in MobileNet (arXiv:1704.04861), for small images."""
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(int(32 * width), 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for filters, strides in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1)]:
        x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.Conv2D(int(filters * width), 1, use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


NETWORKS = {
    "VGG-16, width 1/4": lambda: kprune.models.vgg_16(input_shape=(32, 32, 3), width=0.25),
    "ResNet-20": lambda: kprune.models.resnet_20(input_shape=(32, 32, 3)),
    "MobileNet, width 1/2": mobile_net,
}


def network(make, sparsity):
    """A network with statistics of its own, its channels pruned, and the smaller one of it."""
    keras.utils.set_random_seed(0)
    model, rng = make(), np.random.default_rng(0)
    for v in model.weights:
        if len(v.shape) == 1:
            v.assign(
                rng.uniform(0.5, 1.5, v.shape) if v.name in ("gamma", "moving_variance") else rng.normal(size=v.shape)
            )
    kprune.prune(model, "random", sparsity, groups="channels", verbose=0)
    return model, kprune.shrink(model)


def channels(model):
    """Of the convolutions and dense layers before the last."""
    kernels = [w for w in kprune.masked_weights(model)][:-1]
    return sum(w.shape[-1] for w in kernels)


def times(folders, x):
    """Seconds of a call of each SavedModel, measured in turns."""
    loaded = [tf.saved_model.load(str(folder)) for folder in folders]
    seconds = [[] for _ in loaded]
    for call in range(CALLS + 10):
        for one, measured in zip(loaded, seconds, strict=True):
            start = time.perf_counter()
            one.serve(x).numpy()
            if call >= 10:
                measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in seconds]


def main():
    print(f"{platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}, Keras {keras.__version__}\n")
    print(f"| network | sparsity | channels | parameters | SavedModel, bytes | ms, batch {BATCH} | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, make in NETWORKS.items():
        for sparsity in SPARSITIES:
            model, small = network(make, sparsity)
            x = np.random.default_rng(1).normal(size=(BATCH, 32, 32, 3)).astype("float32")
            outputs = [np.array(m(x, training=False)) for m in (model, small)]
            with tempfile.TemporaryDirectory() as folder:
                exported = [kprune.export(m, pathlib.Path(folder, str(i))) for i, m in enumerate((model, small))]
                dense, shrunk = times([one.saved_model for one in exported], tf.constant(x))
            counts = [f"{channels(m):,}" for m in (model, small)]
            sizes = [f"{m.count_params():,}" for m in (model, small)]
            written = [f"{one.saved_model_bytes:,}" for one in exported]
            difference = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
            cells = [" -> ".join(pair) for pair in (counts, sizes, written)]
            print(
                f"| {name} | {sparsity} | {' | '.join(cells)} | {dense * 1e3:.2f} -> {shrunk * 1e3:.2f} "
                f"({shrunk / dense:.2f}x) | {difference:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
