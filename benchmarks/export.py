"""Export sparse networks in every format: `make bench-export` prints the table of docs/export.md.

The networks are not trained: kernels are pruned by magnitude as they start. Every number is from a card of
`kprune.export`: files in turns, a batch of one, on this machine.
"""

import os
import platform
import tempfile
from importlib.metadata import version

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import kprune

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "onnxruntime", "openvino")


def perceptron(width=1024):
    hidden = [layers.Dense(width, "relu") for _ in range(3)]
    return keras.Sequential([keras.Input((width,)), *hidden, layers.Dense(10)])


def mobile_net(size=96):
    """Depthwise separable blocks as in MobileNet (arXiv:1704.04861), padded as XNNPACK's sparse kernels take it."""

    def normalized(x):
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    inputs = keras.Input((size, size, 3))
    x = normalized(layers.Conv2D(32, 3, strides=2, use_bias=False)(layers.ZeroPadding2D(1)(inputs)))
    for filters, strides in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2)]:
        x = normalized(layers.DepthwiseConv2D(3, strides=strides, use_bias=False)(layers.ZeroPadding2D(1)(x)))
        x = normalized(layers.Conv2D(filters, 1, use_bias=False)(x))
    return keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(x)))


def vgg():
    return kprune.models.vgg_16(input_shape=(32, 32, 3))


# Name, network, sparsity, how it is pruned, formats.
CASES = (
    ("VGG-16, half of the channels", vgg, 0.75, {"groups": "channels"}, "saved_model litert litert_int8"),
    ("MobileNet 96", mobile_net, 0.7, {}, "litert_sparse"),
    ("MobileNet 96", mobile_net, 0.9, {}, "litert_sparse"),
    ("Dense 1024, blocks of 4 inputs", perceptron, 0.8, {"pattern": kprune.patterns.block(4, 1)}, "litert_sparse"),
    ("Dense 1024, blocks of 4 inputs", perceptron, 0.9, {"pattern": kprune.patterns.block(4, 1)}, "litert_sparse"),
    ("Dense 1024, blocks of 4 inputs", perceptron, 0.95, {"pattern": kprune.patterns.block(4, 1)}, "litert_sparse"),
    ("Dense 1024", perceptron, 0.9, {}, "saved_model_packed onnx openvino litert_int8"),
    ("Dense 1024", perceptron, 0.95, {}, "saved_model_packed"),
    ("Dense 1024", perceptron, 0.97, {}, "litert_sparse"),
    ("Dense 1024", perceptron, 0.99, {}, "saved_model_packed litert_sparse onnx openvino"),
)


def rows(make, sparsity, how, formats, folder):
    """The sparse entries of a card, each with the dense one that it is held against."""
    keras.utils.set_random_seed(0)
    model = make()
    # As many zeros in each layer; groups by a criterion that is evenly spread, too.
    how = how if "groups" in how else {"scope": "uniform", **how}
    kprune.prune(model, "random" if "groups" in how else "magnitude", sparsity, verbose=0, **how)
    names = formats.split()
    x = np.random.default_rng(0).normal(size=(64, *model.input_shape[1:])).astype("float32")
    examples = {"representative": x} if "litert_int8" in names else {}
    card = kprune.export(model, f"{folder}/net", names, shrink="groups" in how, verbose=0, **examples).card
    return [(card.entry(name), card.dense_of(card.entry(name))) for name in names]


def remark(size, latency):
    """What is not gained."""
    nothing = [word for word, ratio in (("smaller", size), ("faster", latency)) if ratio > 0.95]
    return f"not {' nor '.join(nothing)} than dense" if nothing else ""


def main():
    known = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {known}\n")
    print("| network | sparsity | format | bytes | of dense | ms | of dense | memory, MB | of dense | differs by | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, make, sparsity, how, formats in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for entry, dense in rows(make, sparsity, how, formats, folder):
                size, latency = entry.bytes / dense.bytes, entry.milliseconds / dense.milliseconds
                memory = ("-", "-")
                if entry.memory and dense.memory:
                    memory = (f"{entry.memory / 1e6:.1f}", f"{entry.memory / dense.memory:.2f}")
                cells = [name, sparsity, entry.format, f"{entry.bytes:,}", f"{size:.2f}"]
                cells += [f"{entry.milliseconds:.3f}", f"{latency:.2f}", *memory]
                cells += [f"{entry.difference:.0e}" if entry.difference else "0", remark(size, latency)]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
