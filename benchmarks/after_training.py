"""Prune a trained transformer without retraining: magnitude, Wanda and SparseGPT, the table of docs/after_training.md.

    python benchmarks/after_training.py mnist10k.npz

The data are 10,000 MNIST digits (examples/mnist10k.py makes the file), read row by row: 8,000 train, 2,000 test.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
from keras import layers

import kprune
from kprune.criteria import Context
from kprune.criteria.engines.calls import calls_of
from kprune.criteria.engines.features import features
from kprune.masks.layout import layout_of

WIDTH, BLOCKS, EPOCHS, CALIBRATION = 128, 2, 3, 256
GOALS = {"50 %": (0.5, "fan_in", "unstructured"), "75 %": (0.75, "fan_in", "unstructured"), "2:4": (0.5, "2:4", "2:4")}


class Positions(layers.Layer):
    """Adds a vector of its own to each row."""

    def build(self, shape: Any) -> None:
        self.vectors = self.add_weight(shape=shape[1:], initializer="random_normal", name="vectors")

    def call(self, x: Any) -> Any:
        return x + self.vectors


def transformer() -> keras.Model:
    """28 rows of 28 pixels, two blocks of width 128 with four heads, ten classes."""
    rows = keras.Input((28, 28))
    x = layers.Dense(WIDTH, name="embed")(rows)
    x = Positions()(x)
    for i in range(BLOCKS):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, WIDTH // 4, name=f"attention{i}")(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(WIDTH, name=f"down{i}")(layers.Dense(4 * WIDTH, "gelu", name=f"up{i}")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(rows, layers.Dense(10, name="logits")(x), name="transformer")


def prune(model: keras.Model, method: str, goal: str, x: np.ndarray) -> None:
    """Prune a trained model by a method, all weights to the same sparsity."""
    sparsity, per_output, pattern = GOALS[goal]
    if method == "SparseGPT":
        kprune.prune_after_training(model, sparsity, data=(x,), pattern=pattern, verbose=0)
    elif method == "Wanda":
        kprune.prune(model, "wanda", sparsity, data=(x,), scope="layerwise", pattern=per_output, verbose=0)
    else:
        kprune.prune(model, "magnitude", sparsity, scope="layerwise", pattern=pattern, verbose=0)


def inputs_of(model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """path -> the inputs of each weight in the model as it is, a matrix."""
    weights = kprune.masked_weights(model)
    calls = calls_of(Context(model, weights, {w.path: w.kept() for w in weights}), {"": x})
    return {weight.path: np.concatenate(list(features(calls, weight))) for weight in weights}


def matrices(model: keras.Model) -> dict[str, np.ndarray]:
    """path -> each weight as (inputs, outputs)."""
    values = {w.path: layout_of(w).canonical(w.value()) for w in kprune.masked_weights(model)}
    return {path: value.reshape(-1, value.shape[-1]) for path, value in values.items()}


def main(path: str) -> None:
    """Train, prune by each method to each goal, print the tables."""
    with np.load(path) as file:
        (x, y), (x_test, y_test) = ((file[f"x_{part}"] / 255.0, file[f"y_{part}"]) for part in ("train", "test"))
    keras.utils.set_random_seed(0)
    model = transformer()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=2)
    kprune.mask(model)
    unpruned = {weight.path: weight.kept() for weight in kprune.masked_weights(model)}
    trained, dense, inputs = model.get_weights(), matrices(model), inputs_of(model, x_test[:200])

    def accuracy() -> float:
        return float(model.evaluate(x_test, y_test, verbose=0, batch_size=250, return_dict=True)["accuracy"])

    print(f"\nDense: {100 * accuracy():.2f} % of 2,000 test digits.\n\n| method | {' | '.join(GOALS)} |")
    print(f"| --- | {' | '.join('---:' for _ in GOALS)} |")
    errors: dict[str, dict[str, Any]] = {goal: {} for goal in GOALS}
    for method in ("magnitude", "Wanda", "SparseGPT"):
        found = []
        for goal in GOALS:
            kprune.set_masks(model, unpruned)
            model.set_weights(trained)
            prune(model, method, goal, x[:CALIBRATION])
            found.append(f"{100 * accuracy():.2f}")
            pruned = matrices(model)
            for name, given in inputs.items():
                outputs = given @ dense[name]
                error = np.square(given @ pruned[name] - outputs).sum() / np.square(outputs).sum()
                errors[goal].setdefault(name, []).append(error)
        print(f"| {method} | {' | '.join(found)} |")
    for goal, rows in errors.items():
        print(f"\nOutput error at {goal}:\n\n| layer | magnitude | Wanda | SparseGPT |\n| --- | ---: | ---: | ---: |")
        for name, row in rows.items():
            layer = name.removeprefix("transformer/").removesuffix("/kernel")
            print(f"| {layer} | {' | '.join(f'{100 * error:.2f}' for error in row)} |")
        below = sum(row[2] < row[0] for row in rows.values())
        print(f"\nSparseGPT below magnitude on {below} of {len(rows)} layers.")


if __name__ == "__main__":
    main(*sys.argv[1:])
