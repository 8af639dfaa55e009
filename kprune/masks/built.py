"""A check that a model is built, because only existing weights can be masked."""

from __future__ import annotations

from typing import Any

import keras
from absl import logging

from ..runtime.distribution import strategy_scope
from .below import all_layers


def check_built(model: Any) -> None:
    """Raise ValueError, naming the unbuilt layers, if a model with such layers is itself unbuilt or has no weights.

    A Keras 3 model that was only told its input shape is called on a symbolic input of that shape: Keras on TensorFlow
    has made no weights by then. Layers that a built model has never called are warned of.
    """
    if not isinstance(model, keras.layers.Layer):
        unbuilt, enough = [] if model.built else [model.name], False
    else:
        if model.built and _unbuilt(model):
            _build(model)
        unbuilt, enough = _unbuilt(model), bool(model.built and model.weights)
    if unbuilt and not enough:
        raise ValueError(
            "The model has no weights yet: build it first by calling it on a batch of data, for example `model(x[:2])`."
            f" Received: model={model.name!r}, unbuilt layers={', '.join(unbuilt[:4])}"
        )
    if unbuilt:
        logging.warning(
            "kprune: the layers %s of %r have never been called, so they have no weights to mask.",
            ", ".join(unbuilt[:4]),
            model.name,
        )


def _build(model: Any) -> None:
    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is not None:
        with strategy_scope(model):
            model(keras.tree.map_shape_structure(lambda one: keras.KerasTensor(one, model.input_dtype), shape))


def _unbuilt(model: Any) -> list[str]:
    """Return the names of the innermost layers of a Keras 3 model that would create weights in their first call."""
    own_build = [layer for layer in all_layers(model) if type(layer).build is not keras.layers.Layer.build]
    return [
        layer.name for layer in own_build if not layer.built and not (isinstance(layer, keras.Model) and layer.weights)
    ]
