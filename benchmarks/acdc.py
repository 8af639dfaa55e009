"""AC/DC beside gradual magnitude pruning: the tables of docs/while_training.md.

    python benchmarks/acdc.py mnist10k.npz

LeNet-300-100 on 10,000 MNIST digits (examples/mnist10k.py makes the file): 8,000 train, 2,000 test; ten epochs, three
seeds of weights and of the order of data, which all methods share.
"""

from __future__ import annotations

import sys
from functools import partial

import keras
import numpy as np
from kprune.callbacks import ACDC, GradualPruning
from while_training import accuracy, cell, digits

import kprune

EPOCHS, SEEDS, SPARSITIES = 10, (0, 1, 2), (0.9, 0.95, 0.98)
OPTIMIZERS = {"SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9), "Adam": lambda: keras.optimizers.Adam(1e-3)}
# Both end at 0.85 of the fit, by one global threshold.
METHODS = {
    "magnitude, gradual": lambda sparsity: GradualPruning(sparsity, begin=0.1, end=0.85),
    "AC/DC": lambda sparsity: ACDC(sparsity, begin=0.1, end=0.85, cycles=8),
}


def main(path: str) -> None:
    """Train all by each optimizer, print the tables."""
    data = digits(path)
    for name in OPTIMIZERS:
        compare(data, name)


def compare(data: tuple[np.ndarray, ...], optimizer: str) -> None:
    """Train all by an optimizer, print the table."""
    train = partial(accuracy, data, kprune.models.lenet_300_100, OPTIMIZERS[optimizer], EPOCHS)
    dense = [train(seed) for seed in SEEDS]
    print(f"\n{optimizer}, dense: {cell(dense)}\n")
    print(f"| | {' | '.join(f'{100 * sparsity:.0f} % zeros' for sparsity in SPARSITIES)} |")
    print(f"| --- | {' | '.join('---:' for _ in SPARSITIES)} |")
    for name, make in METHODS.items():
        cells = [cell([train(seed, make(sparsity)) for seed in SEEDS]) for sparsity in SPARSITIES]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
