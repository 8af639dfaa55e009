"""How long SNIP and GraSP take beside plain PyTorch forms: `python benchmarks/at_init.py` (needs PyTorch).

VGG-16 at 32x32, 64 examples in one batch, to 90 %, in turns; kprune's time includes tracing and compiling.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags
from synflow import pytorch_vgg16
from timing import THREADS, in_turns, report, start

import kprune

FLAGS = flags.FLAGS
flags.DEFINE_integer("runs", 3, "Runs of each, in turns.")
X, Y = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype("float32"), np.arange(64) % 10


def kprune_prunes(criterion):
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    model = kprune.models.vgg_16()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kprune.prune(model, criterion, 0.9, data=(X, Y), verbose=0)


def pytorch_prunes(torch, criterion):
    """One batch: SNIP's |g w|, or GraSP's -w (H g), and the cut of all of them together."""
    torch.manual_seed(0)
    model = pytorch_vgg16(torch)
    kernels = [layer.weight for layer in model if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    loss = torch.nn.functional.cross_entropy(model(torch.tensor(X.transpose(0, 3, 1, 2))), torch.tensor(Y))
    if criterion == "snip":
        scores = [(g * w).abs() for g, w in zip(torch.autograd.grad(loss, kernels), kernels, strict=True)]
    else:
        found = torch.autograd.grad(loss, kernels, create_graph=True)
        products = torch.autograd.grad(sum((g * g.detach()).sum() for g in found), kernels)
        scores = [-(w * p) for w, p in zip(kernels, products, strict=True)]
    flat = torch.cat([score.detach().flatten() for score in scores])
    cut = flat.kthvalue(int(0.9 * flat.numel())).values
    for kernel, score in zip(kernels, scores, strict=True):
        kernel.data.mul_(score > cut)


def main():
    import torch

    torch.set_num_threads(THREADS)
    for criterion in ("snip", "grasp"):
        runs = {
            "PyTorch": lambda criterion=criterion: pytorch_prunes(torch, criterion),
            "kprune": lambda criterion=criterion: kprune_prunes(criterion),
        }
        report(criterion, "vgg-16, one batch of 64", in_turns(runs, FLAGS.runs), "PyTorch")


if __name__ == "__main__":
    start(main)
