"""The optimizers of a model: the compiled one, and those that its own train step uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from .below import all_layers


def optimizers_of(model: Any, optimizer: Any = None) -> list[Any]:
    """All optimizers that may hold slots of a model's weights, each once.

    Args:
        model: of either Keras.
        optimizer: that of a custom training loop, if any; it comes first.

    Returns:
        The one given, the compiled one, and those that the model or a layer of it holds as an attribute, or in a list
        or dict that is one: those of a GAN's `train_step`, for example.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", "mse")
    >>> model.own = {"critic": keras.optimizers.Adam()}
    >>> [type(one).__name__ for one in optimizers_of(model)]
    ['SGD', 'Adam']
    """
    held = [one for layer in all_layers(model) for value in vars(layer).values() for one in _optimizers(value)]
    found = [one for one in (optimizer, getattr(model, "optimizer", None), *held) if one is not None]
    return list({id(one): one for one in found}.values())


def check_is_optimizer(name: str, value: Any) -> None:
    """Raises ValueError unless what a user gave as `name` is None or an optimizer of either Keras.

    >>> check_is_optimizer("optimizer", None)
    """
    if value is not None and not isinstance(value, _classes()):
        raise ValueError(f"`{name}` must be a Keras optimizer, not the name of one. Received: {name}={value!r:.200}")


def _optimizers(value: Any) -> Iterator[Any]:
    if isinstance(value, _classes()):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            if isinstance(one, _classes()):
                yield one


def _classes() -> tuple[type, ...]:
    tf_keras = sys.modules.get("tf_keras")
    theirs = () if tf_keras is None else (tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer)
    return (keras.optimizers.Optimizer, *theirs)
