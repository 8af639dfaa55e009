"""Wanda: a weight's magnitude times the norm of the input it multiplies."""

from __future__ import annotations

import math

import numpy as np

from ..masks.layout import layout_of
from .base import CRITERIA, Context, Scores
from .engines.calls import calls_of
from .engines.features import features


@CRITERIA.register("wanda", needs=("data",))
def wanda(context: Context) -> Scores:
    """Pruning by weights and activations: score = |w_io| * ||x_i||_2 (arXiv:2306.11695).

    x_i holds the input that w_io multiplies, over all examples and positions, in inference mode under the current
    masks. For dense layers, EinsumDense (and so attention) and convolutions of a trained network. The paper compares
    the weights of one output with each other: `pattern="fan_in", scope="layerwise"`, or `pattern="2:4"`; scores of two
    layers are in different units. `kprune.prune_after_training` also moves what is lost onto the weights that stay.

    Args:
        context: needs data, of which it reads the inputs; the model need not be compiled.

    Returns:
        path -> float64 array of the weight's shape, >= 0, in units of the layer's output.

    Raises:
        ValueError: a masked weight is of another kind of layer.

    >>> import keras, kprune, numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0], [2.0]])])
    >>> _ = kprune.prune(model, "wanda", 0.5, data=(np.array([[3.0, 1.0], [4.0, 1.0]]),))  # 1 * 5, 2 * sqrt(2)
    >>> dense.kernel.numpy().tolist()
    [[1.0], [0.0]]
    """
    layouts = [layout_of(weight) for weight in context.weights]
    squares = [np.zeros(math.prod(layout.shape[:-1])) for layout in layouts]
    for x, _, _ in context.data:
        calls = calls_of(context, {"": x})
        for total, weight in zip(squares, context.weights, strict=True):
            for inputs in features(calls, weight):
                total += np.einsum("ri,ri->i", inputs, inputs, dtype=np.float64)
    scores = {}
    for weight, layout, value, square in zip(context.weights, layouts, context.kept_values(), squares, strict=True):
        norm = np.sqrt(square).reshape(*layout.shape[:-1], 1)
        scores[weight.path] = layout.original(np.abs(layout.canonical(value)) * norm)
    return scores
