"""Train masks over random weights: the table of docs/supermasks.md.

    python benchmarks/supermask.py mnist10k.npz

Conv-4 on 10,000 MNIST digits (examples/mnist10k.py makes the file): 8,000 train, 2,000 test. The trained network, and
masks over the same random weights, which end bit for bit as they began.
"""

from __future__ import annotations

import argparse
from typing import Any

import keras
from kprune.callbacks import Supermask

import kprune
from kprune.data import Dataset

EPOCHS, BATCH = 3, 64
# name -> the callback, and the optimizer
RUNS: dict[str, tuple[Any, Any]] = {
    "trained weights, dense": (None, lambda: keras.optimizers.SGD(0.01, momentum=0.9)),
    "edge-popup": (lambda: Supermask("edge_popup", 0.5), lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    "edge-popup, signed constants": (
        lambda: Supermask("edge_popup", 0.5, signed_constant=True),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    ),
    "Bernoulli, signed constants": (
        lambda: Supermask("bernoulli", signed_constant=True),
        lambda: keras.optimizers.SGD(50.0, momentum=0.9),
    ),
}


def network(data: Dataset, seed: int = 0) -> keras.Model:
    """Conv-4 with kernels from He's normal distribution."""
    keras.utils.set_random_seed(seed)
    model = kprune.models.conv_4(data.input_shape, data.classes)
    for number, v in enumerate(v for v in model.weights if v.name == "kernel"):
        v.assign(keras.initializers.HeNormal(seed + number)(v.shape))
    return model


def train(model: keras.Model, data: Dataset, callback: Any, optimizer: Any) -> tuple[float, float, bool]:
    """The test accuracy, the sparsity, and whether all weights end as the fit found them.

    Under signed constants these are what the weights were made before the first step.
    """
    if callback is not None:
        for v in model.weights:
            v.trainable = v.name == "kernel"
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    begun: list[bytes] = []
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun or begun.extend(bits(model)))
    callbacks = [note] if callback is None else [callback, note]
    x, y = data.train
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=2, callbacks=callbacks)
    found = model.evaluate(**data.evaluate_kwargs(), verbose=0, return_dict=True)["accuracy"]
    return float(found), kprune.summary(model).sparsity if callback else 0.0, bits(model) == begun


def bits(model: keras.Model) -> list[bytes]:
    """The weights of a model, bit for bit."""
    return [keras.ops.convert_to_numpy(v).tobytes() for v in model.weights]


def main(arguments: list[str] | None = None) -> None:
    """Train each, print a row of the table after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an .npz file as kprune.data.load reads it")
    parser.add_argument("--only", default="", help="a part of the names of what to train")
    values = parser.parse_args(arguments)
    data = kprune.data.load(values.data, batch_size=250)
    print("| | zeros | test accuracy | weights as they began, bit for bit |\n| --- | ---: | ---: | --- |", flush=True)
    for name, (make, optimizer) in RUNS.items():
        if values.only in name:
            accuracy, sparsity, same = train(network(data), data, make and make(), optimizer())
            cells = [name, f"{100 * sparsity:.1f} %", f"{100 * accuracy:.2f} %", "yes" if same else "no"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
