"""Train masks over random weights: the table and the figure of docs/supermasks.md.

    python benchmarks/supermask.py mnist10k.npz supermasks.png

Conv-4 on 10,000 MNIST digits (examples/mnist10k.py makes the file): 8,000 train, 2,000 test. The trained network, and
masks over its random weights, which end bit for bit as they began.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
from kprune.callbacks import Supermask

import kprune
from kprune.util.plotting import LINES, new_axes, plain_axes, written

EPOCHS, BATCH = 5, 64
# name -> the callback, and the optimizer
RUNS: dict[str, tuple[Any, Any]] = {
    "trained weights, dense": (None, lambda: keras.optimizers.SGD(0.05, momentum=0.9)),
    "edge-popup, 50 %": (lambda: Supermask("edge_popup", 0.5), lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    "edge-popup, 50 %, signed constants": (
        lambda: Supermask("edge_popup", 0.5, signed_constant=True),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    ),
    "Bernoulli, signed constants": (
        lambda: Supermask("bernoulli", signed_constant=True),
        lambda: keras.optimizers.SGD(50.0, momentum=0.9),
    ),
}


def network(seed: int = 0) -> keras.Model:
    """Conv-4 of He-normal kernels and no biases that train."""
    keras.utils.set_random_seed(seed)
    model = kprune.models.conv_4((28, 28, 1))
    for v in model.weights:
        if v.name == "kernel":
            v.assign(keras.initializers.HeNormal(seed)(v.shape))
    return model


def train(model: keras.Model, data: tuple[np.ndarray, ...], callback: Any, optimizer: Any) -> list[float]:
    """The test accuracy before the training and after each epoch."""
    x, y, x_test, y_test = data
    if callback is not None:
        for v in model.weights:
            v.trainable = v.name == "kernel"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    first = model.evaluate(x_test, y_test, verbose=0, batch_size=250, return_dict=True)["accuracy"]
    options: dict[str, Any] = {"batch_size": BATCH, "epochs": EPOCHS, "verbose": 2}
    callbacks = [] if callback is None else [callback]
    fitted = model.fit(x, y, **options, validation_data=(x_test, y_test), callbacks=callbacks).history
    last = model.evaluate(x_test, y_test, verbose=0, batch_size=250, return_dict=True)["accuracy"]
    return [float(one) for one in (first, *fitted["val_accuracy"][:-1], last)]


def bits(model: keras.Model) -> list[bytes]:
    """The weights of a model, bit by bit."""
    return [np.asarray(v).tobytes() for v in model.weights]


def draw(curves: dict[str, list[float]], path: str) -> None:
    """Draw the accuracies against the epochs."""

    def make() -> Any:
        figure, axes = new_axes(7, 4)
        for color, (name, values) in zip(LINES, curves.items(), strict=False):
            axes.plot(range(len(values)), [100 * one for one in values], color=color, marker="o", label=name)
        axes.set_xlabel("epochs")
        axes.set_ylabel("test accuracy, %")
        plain_axes(axes)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
        return figure

    written(path, make)


def main(path: str, figure: str) -> None:
    """Train each, print the table, draw the figure."""
    with np.load(path) as file:
        data = tuple(
            file[f"{part}_{of}"][..., None] / np.float32(255) if part == "x" else file[f"{part}_{of}"]
            for of in ("train", "test")
            for part in ("x", "y")
        )
    curves, rows = {}, []
    for name, (make, optimizer) in RUNS.items():
        model, callback = network(), make() if make else None
        before = bits(model)
        if callback is not None and callback.signed_constant:  # the weights to begin with
            for v in model.weights:
                if v.name == "kernel":
                    value = np.asarray(v)
                    v.assign(np.sign(value) * np.sqrt(np.mean(np.square(value))))
            before = bits(model)
        curves[name] = train(model, data, callback, optimizer())
        same = "yes" if bits(model) == before else "no"
        sparsity = kprune.summary(model).sparsity if callback else 0.0
        rows.append(f"| {name} | {100 * sparsity:.1f} % | {100 * curves[name][-1]:.2f} % | {same} |")
    print("\n| | zeros | test accuracy | weights as they began, bit for bit |\n| --- | ---: | ---: | --- |")
    print("\n".join(rows))
    draw(curves, figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
