"""How long SynFlow takes, and that it gets through deep networks: `python benchmarks/synflow.py`.

1. VGG-16 at 32x32, 100 rounds to 90 % sparsity, beside a plain PyTorch form of the same algorithm (float32, as many
   threads, one ranking of all scores by `kthvalue`; needs PyTorch: `pip install torch`). The two take
   turns. kprune's time includes tracing and compiling; PyTorch's rounds cost the same each, so a few are timed and
   scaled to 100. A tenth of the rounds says how the time grows with their number.
2. All reference networks and four of keras.applications with random weights: R (the sum of outputs of the network of
   absolute values, which overflows float32 at 3e38), collapsed weights after 100 rounds at 90 %, seconds.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import flags
from timing import THREADS, report, start

import kprune
from kprune.criteria import Context, synflow
from kprune.masks import masked_weights

FLAGS = flags.FLAGS
flags.DEFINE_bool("networks", False, "Run the second part too: all networks, several minutes.")
flags.DEFINE_integer("repeats", 3, "Runs of each of the two forms, which take turns.")
flags.DEFINE_integer("plain_rounds", 20, "Rounds of the PyTorch form to time in each run.")

APPLICATIONS = ("VGG16", "ResNet50", "MobileNetV2", "EfficientNetB0")


def fresh_context(model):
    kprune.mask(model)
    weights = masked_weights(model)
    return Context(model, weights, {w.path: w.kept() for w in weights})


def pytorch_vgg16(torch):
    """The network of kprune.models.vgg_16, in inference mode, every number of it replaced by its absolute value."""
    parts, channels = [], 3
    for block, (convolutions, filters) in enumerate(zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True)):
        parts += [torch.nn.MaxPool2d(2)] if block else []
        for _ in range(convolutions):
            parts += [torch.nn.Conv2d(channels, filters, 3, padding=1, bias=False)]
            parts += [torch.nn.BatchNorm2d(filters), torch.nn.ReLU()]
            channels = filters
    parts += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 10)]
    model = torch.nn.Sequential(*parts).eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype.is_floating_point:
            tensor.data.abs_()
    return model


def pytorch_seconds(torch, rounds, density=0.1):
    """Seconds for the first rounds of 100."""
    torch.manual_seed(0)
    model = pytorch_vgg16(torch)
    kernels = [layer.weight for layer in model if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    ones, size = torch.ones(1, 3, 32, 32), sum(kernel.numel() for kernel in kernels)
    start = time.perf_counter()
    for r in range(1, rounds + 1):
        model.zero_grad()
        model(ones).sum().backward()
        scores = [(kernel.grad * kernel.data).abs() for kernel in kernels]
        cut = torch.cat([score.flatten() for score in scores]).kthvalue(int((1 - density ** (r / 100)) * size)).values
        for kernel, score in zip(kernels, scores, strict=True):
            kernel.data.mul_(score > cut)
    return time.perf_counter() - start


def kprune_seconds(rounds=100):
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    model = kprune.models.vgg_16()
    start = time.perf_counter()
    kprune.prune(model, "synflow", sparsity=0.9, rounds=rounds, verbose=0)
    return time.perf_counter() - start


def vgg16():
    import torch

    torch.set_num_threads(THREADS)
    pytorch_seconds(torch, 1)
    seconds = {"PyTorch": [], "kprune": [], "kprune, 10 rounds": []}
    for _ in range(FLAGS.repeats):
        seconds["kprune"].append(kprune_seconds())
        seconds["PyTorch"].append(pytorch_seconds(torch, FLAGS.plain_rounds) * 100 / FLAGS.plain_rounds)
        seconds["kprune, 10 rounds"].append(kprune_seconds(10))
    report("synflow", "vgg-16, 100 rounds", seconds, "PyTorch")


def networks():
    print(f"{'network':<16} {'weights':>12} {'largest score':>14} {'collapsed':>10} {'seconds':>8}")
    for name, make in [
        *kprune.models.MODELS.items(),
        *((name, lambda name=name: getattr(keras.applications, name)(weights=None)) for name in APPLICATIONS),
    ]:
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        context = fresh_context(make())
        largest = max(score.max() for score in synflow(context).values())
        start = time.perf_counter()
        masks = kprune.prune(context.model, "synflow", sparsity=0.9, verbose=0)
        seconds = time.perf_counter() - start
        empty = [path for path, mask in masks.items() if not mask.any()]
        shortcuts = sum("short" in path or "_0_conv" in path for path in empty)
        note = f"{len(empty)}" + (f" ({shortcuts} shortcuts)" if shortcuts else "")
        size = sum(w.size for w in context.weights)
        print(f"{name:<16} {size:>12,} {largest:>14.2g} {note:>10} {seconds:>8.1f}", flush=True)


def main():
    vgg16()
    if FLAGS.networks:
        networks()


if __name__ == "__main__":
    start(main)
