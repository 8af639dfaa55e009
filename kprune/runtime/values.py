"""The values of variables at one moment, to be restored later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras


class Values:
    """The values of Keras 3 or tf_keras variables at the time when they were added.

    They are kept as tensors where they lie. TensorFlow copies them only if the variable changes.

    >>> variable = keras.Variable([1.0, 2.0])
    >>> values = Values([variable])
    >>> _ = variable.assign([3.0, 4.0])
    >>> values.put_back()
    >>> variable.numpy().tolist()
    [1.0, 2.0]
    """

    def __init__(self, variables: Iterable[Any] = ()):
        self._held: dict[int, tuple[Any, Any]] = {}
        self.add(variables)

    def add(self, variables: Iterable[Any]) -> None:
        """Record the values of these variables, too; variables that are already recorded keep their earlier values."""
        for v in variables:
            if id(v) not in self._held:
                self._held[id(v)] = v, _tensor(v)

    def put_back(self) -> None:
        """Restore the recorded values of the variables."""
        for v, value in self._held.values():
            v.assign(value)


def _tensor(variable: Any) -> Any:
    if isinstance(variable, keras.Variable) and keras.backend.backend() != "tensorflow":
        return keras.ops.copy(variable.value)  # a training step may donate the array itself to its compiled function
    import tensorflow as tf

    return tf.convert_to_tensor(variable.value if isinstance(variable, keras.Variable) else variable)
