"""How long SynFlow takes, and that it gets through deep networks: `python benchmarks/synflow.py`.

1. VGG-16 at 32x32, 100 rounds to 90 % sparsity, and the ratio to the plain way of writing the same algorithm (gradient
   traced anew in each round, all scores sorted), measured in the same run over a few rounds.
2. All reference networks and four of keras.applications with random weights: R (the sum of outputs of the network of
   absolute values, which overflows float32 at 3e38), collapsed weights after 100 rounds at 90 %, seconds.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags, logging

import kprune
from kprune.criteria import Context, synflow
from kprune.criteria.synflow import _make_scorer
from kprune.masks import masked_weights
from kprune.pruning import mask_for_pruning

FLAGS = flags.FLAGS
flags.DEFINE_bool("networks", False, "Run the second part too: all networks, several minutes.")
flags.DEFINE_integer("plain_rounds", 3, "Rounds of the plain form to time.")

APPLICATIONS = ("VGG16", "ResNet50", "MobileNetV2", "EfficientNetB0")


def fresh_context(model):
    mask_for_pruning(model)
    weights = masked_weights(model)
    return Context(model, weights, {w.path: w.kept() for w in weights})


def plain_round(context, density):
    """One round as one would write it first: a new trace, one sort of everything."""
    _, scores = _make_scorer(context)([context.masks[w.path] for w in context.weights])
    flat = np.concatenate([s.ravel() for s in scores])
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[: int(density * flat.size)]] = True
    ends = np.cumsum([s.size for s in scores])[:-1]
    parts = np.split(mask, ends)
    context.masks = {w.path: part.reshape(w.shape) for w, part in zip(context.weights, parts, strict=True)}


def vgg16():
    model = kprune.models.vgg_16()
    context = fresh_context(model)
    start = time.perf_counter()
    kprune.prune(model, "synflow", sparsity=0.9, verbose=0)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for r in range(1, FLAGS.plain_rounds + 1):
        plain_round(context, 0.1 ** (r / 100))
    plain = (time.perf_counter() - start) / FLAGS.plain_rounds * 100
    size = sum(w.size for w in context.weights)
    print(f"VGG-16, {size:,} weights, 100 rounds, backend {keras.backend.backend()}, {os.cpu_count()} cores")
    print(
        f"  kprune {ours:.1f} s; plain form {plain:.1f} s (from {FLAGS.plain_rounds} rounds); ratio {plain / ours:.1f}"
    )


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


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    vgg16()
    if FLAGS.networks:
        networks()


if __name__ == "__main__":
    app.run(main)
