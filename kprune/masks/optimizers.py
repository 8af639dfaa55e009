"""The optimizers that a model holds, and the optimizers that train it.

A snapshot keeps what the model holds (`held_optimizers`): the compiled one and its attributes, which are the same in
every process that makes the model. Where masks change, every live optimizer that has slots of a weight has to forget
(`trainers`), also one that a training loop's function alone knows; which of them are alive no model says.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from ..runtime.optimizers import inner_optimizers, trains
from .holders import live
from .libraries import library_of

_IN_FIT: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()


def held_optimizers(model: Any, optimizer: Any = None) -> list[Any]:
    """Return all optimizers that may hold slots of a model's weights, each once.

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
    >>> [type(one).__name__ for one in held_optimizers(model)]
    ['SGD', 'Adam']
    """
    held = [
        one
        for layer in library_of(model).all_layers(model)
        for value in vars(layer).values()
        for one in _optimizers(value)
    ]
    found = [one for one in (optimizer, getattr(model, "optimizer", None), *held) if one is not None]
    return list({id(one): one for one in found}.values())


def trainers(model: Any, variables: Iterable[Any], besides: Any = None) -> list[Any]:
    """Return the live optimizers of the model's library that train any of these variables, and `besides` if given."""
    candidates = _IN_FIT[model] if fits(model) else _live_optimizers(model)
    variables = list(variables)
    found = [optimizer for optimizer in candidates if trains(optimizer, variables)]
    return found + ([] if besides is None or any(besides is known for known in found) else [besides])


def begin_fit(model: Any) -> None:
    """Find the live optimizers now and reuse them until `end_fit`, because masks may change often during `fit`."""
    _IN_FIT[model] = weakref.WeakSet(_live_optimizers(model))


def fits(model: Any) -> bool:
    """Whether a callback is running between `begin_fit` and `end_fit` (Ctrl-C may prevent the call of `end_fit`)."""
    return model in _IN_FIT and _in_callback()


def _in_callback() -> bool:
    kinds = tuple(library.callbacks.Callback for name in ("keras", "tf_keras") if (library := sys.modules.get(name)))
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), kinds):
            return True
        frame = frame.f_back
    return False


def end_fit(model: Any) -> None:
    """Forget the optimizers that `begin_fit` found, so that each mask change searches for live optimizers again."""
    _IN_FIT.pop(model, None)


def _live_optimizers(model: Any) -> list[Any]:
    found = live(*library_of(model).OPTIMIZERS)
    return [optimizer for optimizer in found if inner_optimizers(optimizer) == [optimizer]]


def check_is_optimizer(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is None or an optimizer of Keras 3 or tf_keras.

    >>> check_is_optimizer("optimizer", None)
    """
    if value is not None and not isinstance(value, _classes()):
        raise ValueError(f"`{name}` must be a Keras optimizer instance, not a name. Received: {name}={value!r:.200}")


def check_like_optimizer(optimizer: Any) -> None:
    """Raise ValueError unless `optimizer` is None, a Keras 3 or tf_keras optimizer, or an object that resembles one.

    >>> check_like_optimizer(keras.optimizers.SGD())
    """
    if optimizer is not None and (
        isinstance(optimizer, type) or not (hasattr(optimizer, "variables") and hasattr(optimizer, "learning_rate"))
    ):
        raise ValueError(
            f"`optimizer` must be a Keras optimizer instance, not a name. Received: optimizer={optimizer!r:.200}"
        )


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
