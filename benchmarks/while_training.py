"""Ways to prune during training beside gradual magnitude: the last tables of docs/while_training.md.

    python benchmarks/while_training.py mnist10k.npz [NETWORK ...]

LeNet-300-100 and LeNet-5 on 10,000 MNIST digits (examples/mnist10k.py makes the file): 8,000 train, 2,000 test; three
seeds of weights and of the order of data, which all methods share.
"""

from __future__ import annotations

import platform
import sys
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
from kprune.callbacks import ACDC, ADMM, DropBack, GradualPruning

import kprune

BATCH, SEEDS, SPARSITIES = 64, (0, 1, 2), (0.95, 0.98)
# name -> what makes it, and its optimizer, and the epochs, of 125 steps each
NETWORKS = {
    "LeNet-300-100, SGD": (kprune.models.lenet_300_100, lambda: keras.optimizers.SGD(0.1, momentum=0.9), 20),
    "LeNet-300-100, Adam": (kprune.models.lenet_300_100, lambda: keras.optimizers.Adam(1e-3), 20),
    "LeNet-5, SGD": (kprune.models.lenet_5, lambda: keras.optimizers.SGD(0.05, momentum=0.9), 10),
}
# By one global threshold. All end at 0.7 of the fit, but for DropBack, whose initial values have faded after 824 steps.
METHODS = {
    "magnitude, gradual": lambda sparsity: GradualPruning(sparsity, end=0.7),
    "splicing": lambda sparsity: GradualPruning(sparsity, end=0.7, margin=1.1 / 0.9),
    "AC/DC": lambda sparsity: ACDC(sparsity, end=0.7),
    "ADMM": lambda sparsity: ADMM(sparsity, end=0.7),
    "DropBack, decay 0.98": lambda sparsity: DropBack(sparsity, decay=0.98),
    "DropBack, untracked at initial values": DropBack,
}


def digits(path: str) -> tuple[np.ndarray, ...]:
    """Images and labels to train on, and to test on."""
    with np.load(path) as file:
        images = [file[f"x_{part}"][..., None] / np.float32(255) for part in ("train", "test")]
        return images[0], file["y_train"], images[1], file["y_test"]


def accuracy(data: Any, make: Any, optimizer: Any, epochs: int, seed: int, callback: Any = None) -> float:
    """Of a network that is trained with a callback, on the test digits, in per cent."""
    x, y, x_test, y_test = data
    keras.utils.set_random_seed(seed)
    model = make((28, 28, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss, metrics=["accuracy"])
    batches = kprune.RewindableBatches(x, y, BATCH, model, seed=seed)
    callbacks = [] if callback is None else [callback]
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    if callback is not None:
        kprune.strip(model)
    return 100 * float(model.evaluate(x_test, y_test, verbose=0, batch_size=250, return_dict=True)["accuracy"])


def cell(found: list[float]) -> str:
    """The mean, and each seed's."""
    return f"{np.mean(found):.2f} ({' '.join(f'{one:.2f}' for one in found)})"


def compare(data: tuple[np.ndarray, ...], network: str) -> None:
    """Train a network by all methods, print the table."""
    start = time.perf_counter()
    train = partial(accuracy, data, *NETWORKS[network])
    dense = [train(seed) for seed in SEEDS]
    print(f"\n{network}, {NETWORKS[network][2]} epochs, dense: {cell(dense)}\n")
    print(f"| | {' | '.join(f'{100 * sparsity:.0f} % zeros' for sparsity in SPARSITIES)} |")
    print(f"| --- | {' | '.join('---:' for _ in SPARSITIES)} |")
    for name, make in METHODS.items():
        cells = [cell([train(seed, make(one)) for seed in SEEDS]) for one in SPARSITIES]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s", flush=True)


def main(path: str, *networks: str) -> None:
    """Say where it runs, train the networks (all by default)."""
    backend = keras.backend.backend()
    print(f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, Keras {version('keras')}")
    print(f"{backend} {version(backend)}")
    data = digits(path)
    for network in networks or NETWORKS:
        compare(data, network)


if __name__ == "__main__":
    main(*sys.argv[1:])
