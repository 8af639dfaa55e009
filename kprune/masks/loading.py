"""Optimizer resets when weights are loaded, so that pruned weights get no momentum.

Keras saves a compiled optimizer with the model, also one of a model without masks. What its slots then hold for pruned
entries would move them, although their gradient is 0. Keras reads the parts of a model in the order of the names of
its attributes, so an optimizer may be read before or after the layers with the masks.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import keras

from ..runtime.distribution import to_numpy
from ..runtime.optimizers import inner_optimizers, slots, trained, trains
from ..runtime.writing import keep_where
from .holders import live
from .variables import has_value, mask_of

_LOAD = "load_own_variables"
_last: tuple[Any, list[Any]] = (lambda: None, [])  # the last file, as a weak reference, and the optimizers of that time


def forget_loaded(variables: list[Any], file: Any) -> None:
    """Reset the optimizer slots of pruned entries, both now and whenever an optimizer is loaded.

    Args:
        variables: the masked weights of one layer, whose masks were just loaded.
        file: from which they came, an `h5py.File`; None if from elsewhere.
    """
    for optimizer in _live_optimizers(file):
        if trains(optimizer, variables):
            _reset(optimizer, variables)
            if _LOAD not in vars(optimizer):
                setattr(optimizer, _LOAD, functools.partial(_load, optimizer, getattr(optimizer, _LOAD)))


def _load(optimizer: Any, load: Callable[[Any], None], store: Any) -> None:
    load(store)
    _reset(optimizer, trained(optimizer))


def _reset(optimizer: Any, variables: list[Any]) -> None:
    for v in variables:
        mask = mask_of(v)
        held = [] if mask is None else [pair for pair in slots(optimizer, v) if has_value(pair[0])]
        if held:
            keep_where(to_numpy(mask), held)


def _live_optimizers(file: Any) -> list[Any]:
    """Return the live optimizers with slots, searching for them once per file."""
    global _last
    known, found = _last
    if file is None or known() is not file:
        found = [one for one in live(keras.optimizers.Optimizer) if inner_optimizers(one) == [one]]
        _last = (lambda: None, []) if file is None else (weakref.ref(file), [weakref.ref(one) for one in found])
        return found
    return [one for ref in found if (one := ref()) is not None]
