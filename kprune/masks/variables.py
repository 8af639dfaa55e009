"""Masked weights that record whether the user assigned values to their pruned entries.

`set_weights` of any model that holds the layer (between folds, from another network, an average, the best epoch of
EarlyStopping) assigns to the variables themselves, one by one. A masked one is an instance of a subclass of its own
class, of the same name, whose `assign` asks whether a method of that name called it, and masks the values then. Of
NumPy arrays that are assigned otherwise it notes that they came from the user. What comes any other way, from a
training step for example, is a leak: see zeros.py.

Two private ways of Keras are used here and nowhere else (checked with Keras 3.13.2 and 3.15.1; tests/test_holders.py):
that `set_weights` calls `assign` itself, which no hook of a variable or layer tells, and `_value`, where a variable
keeps its value: while JAX trains or evaluates it has none, and stays so where the data raise.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from keras import ops

from ..runtime.distribution import to_numpy

_CLASSES: dict[type, type] = {}
_MASK = "_kprune_mask"
_GIVEN = "_kprune_given"


def protect(variable: Any, mask: Any) -> None:
    """Mask the values that `set_weights` assigns to a `keras.Variable`."""
    setattr(variable, _MASK, mask)
    if type(variable) not in _CLASSES.values():
        variable.__class__ = _protected(type(variable))


def release(variable: Any) -> None:
    """Undo `protect`."""
    if type(variable) in _CLASSES.values():
        delattr(variable, _MASK)
        variable.__class__ = type(variable).__mro__[1]


def mask_of(variable: Any) -> Any:
    """Return the mask of a protected variable, or None."""
    return getattr(variable, _MASK, None)


def was_given_values(variable: Any) -> bool:
    """Whether the last array assigned to the variable had nonzero values for pruned entries."""
    return getattr(variable, _GIVEN, False)


def note_given(variable: Any) -> None:
    """Record that the variable's pruned entries have values that no training step wrote."""
    setattr(variable, _GIVEN, True)


def has_value(variable: Any) -> bool:
    """Whether a variable is initialized; a variable created in a symbolic call is initialized after that call."""
    return variable._value is not None


def forget_given(variable: Any) -> None:
    """Record that the variable's pruned entries are 0 again, wherever their values came from."""
    if type(variable) in _CLASSES.values():
        setattr(variable, _GIVEN, False)


def _protected(cls: type) -> type:
    if cls not in _CLASSES:

        class MaskedVariable(cls):
            def assign(self, value: Any) -> Any:
                mask = getattr(self, _MASK)
                if mask._value is None:
                    return super().assign(value)
                if sys._getframe(1).f_code.co_name == "set_weights":  # of whatever model or layer holds it
                    value = ops.convert_to_tensor(value, self.dtype)
                    value = ops.where(mask.value, value, ops.zeros((), value.dtype))
                elif isinstance(value, np.ndarray) and value.shape == tuple(self.shape):
                    setattr(self, _GIVEN, bool(np.any(value[~to_numpy(mask)] != 0)))
                return super().assign(value)

        MaskedVariable.__name__ = MaskedVariable.__qualname__ = cls.__name__
        _CLASSES[cls] = MaskedVariable
    return _CLASSES[cls]
