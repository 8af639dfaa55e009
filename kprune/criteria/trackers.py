"""Trackers, which watch training for criteria that need more than the current weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..masks import masked_weights
from ..masks.matching import check_numbers


class Tracker:
    """A base class for objects that record training for a criterion; callbacks run them automatically.

    A criterion that is registered with `CRITERIA.register(name, tracker=Cls)` gets an instance of `Cls` as
    `context.tracker`. Callbacks make it, tell it of the training, and keep its state in backups; outside of `fit` that
    is the user's part: `begin`, `after_step` after each step, `kprune.prune(..., trackers=tracker)`, and `end` when
    training is over.

    >>> import keras, kprune
    >>> @kprune.criteria.CRITERIA.register("steps_seen", tracker=type("Steps", (Tracker,), {}))
    ... def steps_seen(context):
    ...     return {weight.path: weight.value() for weight in context.weights}
    """

    def begin(self, model: Any) -> None:
        """Start recording as training begins, or as it continues from weights restored by a backup or a rewind."""

    def after_step(self, model: Any) -> None:
        """Record an optimizer step, or n steps if `steps_per_execution` is n."""

    def follows(self, model: Any) -> bool:
        """Return whether `after_step` may be called late, as the next step begins; asked before an epoch's first step.

        If so, Keras on JAX need not wait for the steps: `after_step` only starts work on the device, and finds the
        weights in `kprune.runtime.jax_state`, since the variables may have no values then.
        """
        return False

    def end(self) -> None:
        """Release what is needed only during training, which has ended."""

    def ready(self) -> bool:
        """Return whether enough training has been recorded for the criterion to score weights."""
        return True

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the state to keep in a backup: arrays under names that do not depend on the layers' names."""
        return {}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `get_state` returned; called before `begin`."""


class ArrayTracker(Tracker):
    """A tracker that holds one array per masked weight, with the shape of the weight.

    Attributes:
        arrays: the arrays, in the order of the masked weights; empty before `begin`.
    """

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def of(self, weights: Any) -> dict[str, np.ndarray]:
        """Map each path to its array; raise ValueError if the arrays do not belong to these weights."""
        arrays = self.arrays  # once, as it may be copied from devices
        self._check_shapes(arrays, weights)
        return dict(zip((weight.path for weight in weights), arrays, strict=True))

    def _check_shapes(self, arrays: list[Any], weights: Any) -> None:
        shapes, expected = [tuple(array.shape) for array in arrays], [weight.shape for weight in weights]
        if shapes != expected:
            raise ValueError(
                f"{type(self).__name__} has not watched this model: call its `begin(model)` before training. "
                f"Received: arrays={str(shapes)[:200]}, weights={str(expected)[:200]}"
            )

    def get_state(self) -> dict[str, np.ndarray]:
        return {str(i): array for i, array in enumerate(self.arrays)}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        check_numbers("state", state)
        if any(str(i) not in state for i in range(len(state))):
            raise ValueError(f"`state` must be a value returned by `get_state`. Received: state={list(state)!r:.200}")
        self.arrays = [np.array(state[str(i)]) for i in range(len(state))]


class InitialWeights(ArrayTracker):
    """The weights at the start of training, such as a `fit` call, or at a lottery's rewind point.

    For the criteria "large_init", "magnitude_increase" and "init_final_sign" (arXiv:1905.01067).

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> _ = kprune.mask(model)
    >>> initial = InitialWeights()
    >>> initial.begin(model)
    >>> [array.shape for array in initial.arrays]
    [(2, 1)]
    """

    def begin(self, model: Any) -> None:
        if not self.arrays:
            self.arrays = [weight.value() for weight in masked_weights(model)]
