"""The context passed to a criterion, and the registry of criteria.

A criterion is registered with the traits in which it differs from the plain case:

- `default_rounds`: rounds of scoring and cutting where the user does not say (1);
- `needs`: ("data",) if it reads `context.data`, ("data", "loss") if it asks the loss of it (nothing);
- `tracker`: the class of what watches the training for it, a `Tracker`; it reads `context.tracker` then (None);
- `entrywise`: the ufunc of NumPy, with one of its name in `keras.ops`, that makes a weight's entry its score; masks are
  then updated without holding the scores, or on an accelerator (None);
- `tensors`: a function (weights, tracker) -> the scores of each weight, a float64 tensor on its device, or None if they
  do not lie there; masks are then updated on an accelerator (None);
- `revives`: whether a weight that an earlier round cut may return in a later one (False).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from ..data.batches import Batch
from ..masks import MaskedWeight, Masks
from ..util.registry import Registry
from ..util.threads import side_by_side

Scores = dict[str, np.ndarray]
# (values of the weights, vectors of their shapes, batch) -> arrays of their shapes
Derivative = Callable[[list[np.ndarray], list[np.ndarray], Batch], list[np.ndarray]]
CRITERIA = Registry("criterion")


class Compiled:
    """A store for what criteria compile for a model, so that all updates of a training run can reuse it.

    It is forgotten as soon as the model's variables, or which of them train, are others.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> compiled = kprune.criteria.Compiled()
    >>> compiled.of(model)["scorer"] = "for all updates"
    >>> compiled.of(model)
    {'scorer': 'for all updates'}
    >>> model.trainable = False
    >>> compiled.of(model)
    {}
    """

    def __init__(self) -> None:
        self._variables: list[tuple[int, bool]] | None = None
        self._made: dict[str, Any] = {}

    def of(self, model: Any) -> dict[str, Any]:
        """Return the compiled objects that are still valid for this model, by name."""
        # What has been compiled holds the variables, so that no other one takes the place of one in memory.
        variables = [(id(v), v.trainable) for v in model.variables]
        if variables != self._variables:
            self._variables, self._made = variables, {}
        return self._made


@dataclass
class Context:
    """Everything that a criterion may read; a criterion must not change the model.

    Attributes:
        model: the masked model.
        weights: its masked weights, in model order.
        masks: path -> bool array; the masks of this round, which the model itself need not carry yet.
        seed: for criteria that draw random numbers.
        data: batches (x, y, sample_weight) of NumPy arrays, for criteria that need data.
        tracker: what has watched the training, of the class that the criterion is registered with.
        compiled: name -> what has been compiled for the model and reads its values anew in each call; of a fit, the
            updates share it.
    """

    model: Any
    weights: list[MaskedWeight]
    masks: Masks
    seed: int = 0
    data: list[Batch] = field(default_factory=list, repr=False)
    tracker: Any = None
    compiled: dict[str, Any] = field(default_factory=dict, repr=False)
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """The number of entries of all masked weights."""
        return sum(weight.size for weight in self.weights)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Call `make()` in the first round only, and return its result, such as a compiled scorer, in every round."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def dtype(self) -> str:
        """Return the dtype of scoring: "float64" if any weight is float64, else "float32"."""
        dtypes = {keras.backend.standardize_dtype(weight.variable.dtype) for weight in self.weights}
        return "float64" if "float64" in dtypes else "float32"

    def kept_values(self) -> list[np.ndarray]:
        """Return the weights' values under this round's masks (w where kept, else 0), as float32 or float64."""
        found = [(self.masks[weight.path], _wide(weight.seen())) for weight in self.weights]
        return side_by_side(lambda pair: np.where(*pair, np.zeros((), pair[1].dtype)), found, self.size)

    def values(self) -> list[tuple[MaskedWeight, np.ndarray]]:
        """Return the masked weights with their stored values, as float32 or float64."""
        return [(weight, _wide(weight.value())) for weight in self.weights]


def _wide(value: np.ndarray) -> np.ndarray:
    return value if value.dtype == np.float64 else value.astype(np.float32, copy=False)
