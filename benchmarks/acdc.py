"""AC/DC beside gradual magnitude pruning: the tables of docs/while_training.md.

    python benchmarks/acdc.py mnist10k.npz

LeNet-300-100 on 10,000 MNIST digits (examples/mnist10k.py makes the file): 8,000 train, 2,000 test; ten epochs, three
seeds of weights and of the order of data, which all methods share.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
from kprune.callbacks import ACDC, GradualPruning

import kprune

EPOCHS, BATCH, SEEDS, SPARSITIES = 10, 64, (0, 1, 2), (0.9, 0.95, 0.98)
OPTIMIZERS = {"SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9), "Adam": lambda: keras.optimizers.Adam(1e-3)}
# Both end at 0.85 of the fit, by one global threshold.
METHODS = {
    "magnitude, gradual": lambda sparsity: GradualPruning(sparsity, begin=0.1, end=0.85),
    "AC/DC": lambda sparsity: ACDC(sparsity, begin=0.1, end=0.85, cycles=8),
}


def accuracy(data: tuple[np.ndarray, ...], name: str, seed: int, callback: Any = None) -> float:
    """Of a network that is trained by an optimizer with a callback, on the test digits, in per cent."""
    x, y, x_test, y_test = data
    keras.utils.set_random_seed(seed)
    model = kprune.models.lenet_300_100((28, 28, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[name](), loss, metrics=["accuracy"])
    batches = kprune.RewindableBatches(x, y, BATCH, model, seed=seed)
    callbacks = [] if callback is None else [callback]
    model.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    if callback is not None:
        kprune.strip(model)
    return 100 * float(model.evaluate(x_test, y_test, verbose=0, batch_size=250, return_dict=True)["accuracy"])


def main(path: str) -> None:
    """Train all by each optimizer, print the tables."""
    with np.load(path) as file:
        images = [file[f"x_{part}"][..., None] / np.float32(255) for part in ("train", "test")]
        data = images[0], file["y_train"], images[1], file["y_test"]
    for name in OPTIMIZERS:
        compare(data, name)


def compare(data: tuple[np.ndarray, ...], optimizer: str) -> None:
    """Train all by an optimizer, print the table."""
    dense = [accuracy(data, optimizer, seed) for seed in SEEDS]
    print(f"\n{optimizer}, dense: {np.mean(dense):.2f} ({' '.join(f'{one:.2f}' for one in dense)})\n")
    print(f"| | {' | '.join(f'{100 * sparsity:.0f} % zeros' for sparsity in SPARSITIES)} |")
    print(f"| --- | {' | '.join('---:' for _ in SPARSITIES)} |")
    for name, make in METHODS.items():
        cells = []
        for sparsity in SPARSITIES:
            found = [accuracy(data, optimizer, seed, make(sparsity)) for seed in SEEDS]
            cells.append(f"{np.mean(found):.2f} ({' '.join(f'{one:.2f}' for one in found)})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
