"""Prune the channels of four networks in training, shrink and export them: `make bench-trained` prints the tables.

    python benchmarks/trained.py [--epochs=20] [--only=ResNet]

Each network is trained on digits (1437 training and 360 test images of 8x8 pixels), then trained on for as many epochs
while it is pruned. Bytes, latency and accuracy are from the card of `kprune.export`: files in turns, a batch of one, on
this machine. The second table holds the same networks against onnxsim's structured pruning, which takes the ONNX file
of the dense one and does not train.
"""

import argparse
import os
import platform
import tempfile
import time
from importlib.metadata import version

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import onnxruntime
import onnxsim
from keras import layers
from onnxsim import pruning

import kprune

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "onnx", "onnxruntime", "onnxsim")
RATE = 2e-3
TIMED = ("saved_model", "litert")


@keras.saving.register_keras_serializable("benchmarks")
class Positions(layers.Layer):
    """Adds a trained vector to each token."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal", name="table")

    def call(self, x):
        return x + self.table


def mobile_net(shape):
    """Depthwise separable blocks as in MobileNet (arXiv:1704.04861), for small images."""

    def normalized(x):
        return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input(shape)
    x = normalized(layers.Conv2D(32, 3, padding="same", use_bias=False)(inputs))
    for filters, strides in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (256, 1)]:
        x = normalized(layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x))
        x = normalized(layers.Conv2D(filters, 1, use_bias=False)(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def transformer(shape, width=64, heads=8, blocks=3):
    """Patches of 2x2 pixels, blocks of attention and two dense layers, each after its normalization."""
    inputs = keras.Input(shape)
    x = layers.Conv2D(width, 2, strides=2)(inputs)
    x = Positions()(layers.Reshape((x.shape[1] * x.shape[2], width))(x))
    for number in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads, name=f"attention{number}")(y, y)])
        y = layers.Dense(4 * width, "relu", name=f"mlp{number}_in")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width, name=f"mlp{number}_out")(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def of_heads_and_neurons(sparsity):
    """As a channel of what runs through all blocks goes in none, the sparsity is that of heads and of neurons."""
    return {"attention": sparsity, "mlp": sparsity}


# Name, network, {channels to be pruned: sparsity}. Of convolutions, half of the channels are 3/4 of the entries.
CONVOLUTIONS = {"50 %": 0.75, "75 %": 0.94}
CASES = (
    ("VGG-16, width 1/4", lambda shape: kprune.models.vgg_16(shape, width=0.25), CONVOLUTIONS),
    ("ResNet-20", kprune.models.resnet_20, CONVOLUTIONS),
    ("MobileNet", mobile_net, CONVOLUTIONS),
    ("transformer", transformer, {"50 %": of_heads_and_neurons(0.5), "75 %": of_heads_and_neurons(0.75)}),
)


def train(model, data, epochs, callbacks=()):
    """Train, in cosine decay."""
    steps = epochs * -(-len(data.train[0]) // data.batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x, y = data.train
    model.fit(x, y, batch_size=data.batch_size, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model.evaluate(*data.test, verbose=0)[1]


def pruned(make, weights, sparsity, data, epochs):
    """The dense network with these weights, trained on and pruned."""
    keras.utils.set_random_seed(1)
    model = make(data.input_shape)
    model.set_weights(weights)
    train(model, data, epochs, [kprune.callbacks.GradualPruning(sparsity, "lamp", groups="channels")])
    return model


def numbers(model):
    """How many floats an ONNX model holds."""
    return sum(int(np.prod(v.dims)) for v in model.graph.initializer if v.data_type == onnx.TensorProto.FLOAT)


def simplified(file, data):
    """An ONNX file as onnxsim simplifies it, for a batch of fixed size, as it finds more to prune in."""
    model = onnx.load(str(file))
    made, _ = onnxsim.simplify(model, overwrite_input_shapes={model.graph.input[0].name: list(data.test[0].shape)})
    return made


def accuracy(model, data):
    """Of an ONNX model on the test part."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {session.get_inputs()[0].name: data.test[0]})
    return float(np.mean(logits.argmax(-1) == data.test[1]))


def by_onnxsim(dense, size, data):
    """onnxsim's pruning of the dense file to no fewer than `size` numbers: (accuracy, how, numbers), the best one.

    Both of its ways, by the norms of weights and by those of activations, each at the same fraction of channels and of
    heads in all layers and at one for all together.
    """
    name = dense.graph.input[0].name
    batch = {"calibration_data": [{name: data.train[0][: len(data.test[0])]}]}
    ways = {"weights": ("", {}), "activations": ("_wanda", batch)}
    found = []
    for how, (suffix, given) in ways.items():
        channels = getattr(pruning, f"apply_structured{suffix}_pruning")
        heads = getattr(pruning, f"apply_attention_head{suffix}_pruning")
        for together in (False, True):
            best = dense
            for sparsity in np.arange(0.02, 1, 0.02):
                made = onnx.ModelProto.FromString(dense.SerializeToString())
                made = channels(made, sparsity=float(sparsity), global_sparsity=together, **given)
                made = heads(made, sparsity=float(sparsity), **given)
                if numbers(made) < size:
                    break
                best = made
            said = how + ", global" * together if best is not dense else "nothing removed"
            found.append((accuracy(best, data), said, numbers(best)))
    return max(found)


def against(before, after, form):
    """Two numbers, and the second as a fraction of the first."""
    return f"{before:{form}} -> {after:{form}} ({after / before:.2f}x)"


def remark(entry, whole, dense):
    """What is not gained, or lost."""
    found = ["not faster"] if entry.milliseconds > 0.95 * whole.milliseconds else []
    return "; ".join(found + (["less accurate by more than 0.01"] if entry.accuracy < dense - 0.01 else []))


def rows(name, make, data, channels, epochs):
    """Train, prune, shrink and export one network; prints the rows of the first table and returns those of the second.

    Args:
        name, make: the network.
        data: what it is trained on.
        channels: {what to say of them: the sparsity}.
        epochs: of each training.
    """
    beside = []
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = make(data.input_shape)
    dense, weights = train(model, data, epochs), model.get_weights()
    with tempfile.TemporaryDirectory() as folder:
        kprune.export(model, f"{folder}/dense", "onnx", verbose=0)
        file = simplified(f"{folder}/dense.onnx", data)
        for number, (share, sparsity) in enumerate(channels.items()):
            sparse, path = pruned(make, weights, sparsity, data, epochs), f"{folder}/{number}"
            small = kprune.shrink(sparse)
            groups = [len(kprune.channels.groups_of(m)) for m in (sparse, small)]
            sizes = [m.count_params() for m in (model, kprune.shrink(small, keep_masks=False))]
            done = kprune.export(sparse, path, [*TIMED, "onnx"], shrink=True, data=data.test, verbose=0)
            for format in TIMED:
                one = done.card.entry(format)
                whole = done.card.dense_of(one)
                cells = [name, share, against(*groups, ","), against(*sizes, ","), f"{dense:.1%} -> {one.accuracy:.1%}"]
                cells += [format, against(whole.bytes, one.bytes, ",")]
                cells += [against(whole.milliseconds, one.milliseconds, ".3f"), f"{one.difference:.0e}"]
                print(f"| {' | '.join([*cells, remark(one, whole, dense)])} |", flush=True)
            own = simplified(done.files["onnx"], data)
            theirs = by_onnxsim(file, numbers(own), data)
            cells = [name, share, f"{numbers(file):,}", f"{numbers(own):,}", f"{accuracy(own, data):.1%}"]
            beside.append([*cells, f"{theirs[2]:,}", f"{theirs[0]:.1%}", theirs[1]])
    return beside


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", default="", help="a part of a network's name")
    arguments = parser.parse_args()
    known = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {known}\n")
    start, data, beside = time.monotonic(), kprune.data.load("digits"), []
    print("| network | channels pruned | groups | parameters | accuracy | format | bytes | ms | differs by | |")
    print(f"|{' --- |' * 10}", flush=True)
    for name, make, channels in CASES:
        if arguments.only in name:
            beside += rows(name, make, data, channels, arguments.epochs)
    print("\n| network | channels pruned | numbers, dense | by kprune | accuracy | by onnxsim | accuracy | ranked by |")
    print(f"|{' --- |' * 8}")
    for cells in beside:
        print(f"| {' | '.join(cells)} |")
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
