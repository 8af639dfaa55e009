"""Find live objects that hold a weight but are unknown to its layer, and drop their compiled functions.

A layer does not know the models that it is part of, nor the optimizers that train it, and both may have been made
before kprune was imported; nothing public in Keras is told when a model takes a layer in. The garbage collector knows
them: one look at all live objects takes about 0.1 s, so it is taken when masks come, go or change, and once per fit.

TensorFlow keeps what a method decorated with `tf.function` has traced for an object in `_descriptor_cache`, which is
used here and nowhere else (checked with TensorFlow 2.21; tests/test_holders.py).
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from itertools import compress
from typing import Any

_COMPILED: weakref.WeakKeyDictionary[type, list[Any]] = weakref.WeakKeyDictionary()


def live(*kinds: type) -> list[Any]:
    """Return all live instances of these classes and their subclasses."""
    known = {id(kind) for one in kinds for kind in _derived(one)}
    objects = gc.get_objects()
    return list(compress(objects, map(known.__contains__, map(id, map(type, objects)))))


def _derived(kind: type) -> Iterator[type]:
    yield kind
    derived: type
    for derived in kind.__subclasses__():
        yield from _derived(derived)


def renew(model: Any, below: list[Any]) -> None:
    """Drop a model's compiled functions, even while `fit` is running.

    These are its train, test and predict functions, and what its methods, or those of the layers below it, that are a
    `tf.function` (`call`, `train_step` ...) have traced.
    """
    forget_traces(below)
    for kind in ("train", "test", "predict"):
        if getattr(model, f"{kind}_function", None) is not None:
            getattr(model, f"make_{kind}_function")(force=True)


def forget_traces(layers: list[Any]) -> None:
    """Drop the traces of layer and model methods that are `tf.function`s, such as `call` or `train_step`."""
    if sys.modules.get("tensorflow") is not None:
        for layer in layers:
            for method in _compiled_methods(type(layer)):
                method._descriptor_cache.pop(layer, None)


def _compiled_methods(cls: type) -> list[Any]:
    if cls not in _COMPILED:
        kind = sys.modules["tensorflow"].types.experimental.PolymorphicFunction
        methods = (method for base in cls.__mro__ for method in vars(base).values())
        _COMPILED[cls] = [method for method in methods if isinstance(method, kind)]
    return _COMPILED[cls]
