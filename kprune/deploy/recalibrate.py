"""Re-estimate the statistics of batch normalization for a pruned network."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from absl import logging

from ..data.batches import take_batches
from ..masks import library_of, masked_weights
from ..masks.built import check_built
from ..runtime.distribution import to_numpy
from .sample import unchanged


def recalibrate(model: Any, data: Any, *, batches: int | None = None) -> None:
    """Re-estimate the batch normalization layers' moving means and variances, which pruning has made outdated.

        moving mean = mean over the batches of a batch's mean,  moving variance = mean of its variance

    with batches weighed by their examples, in training mode, each layer reading what those before it make of the same
    batch. Nothing else changes: trainable weights, other states, seeds and the optimizer are bit-identical after.

    Args:
        model: a built model of either Keras, masked or not; compiled or not.
        data: training data, as `kprune.prune` takes them: a tuple `(x,)` or `(x, y)`, an array, or what yields batches,
            of which a thousand examples or so are enough. Of an array, batches of 256 are taken.
        batches: how many batches; None for all.

    Raises:
        ValueError: the model has no batch normalization that trains, or `data` hold no example.

    Where it was found to be enough after pruning: https://arxiv.org/abs/2007.02491 (EagleEye).

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    >>> kprune.recalibrate(model, np.array([[1.0, 0.0], [3.0, 4.0]], "float32"))
    >>> np.asarray(model.layers[0].moving_mean).tolist(), np.asarray(model.layers[0].moving_variance).tolist()
    ([2.0, 2.0], [1.0, 4.0])
    """
    masked_weights(model)  # raises for what is no model
    check_built(model)
    known = [layer for layer in library_of(model).all_layers(model) if _statistics(layer)]
    layers = [layer for layer in known if layer.trainable]
    if not layers:
        frozen = " that is not frozen" if known else ""
        raise ValueError(f"The model has no batch normalization layer{frozen}. Received: model={model.name!r}")
    taken = take_batches(data, batches)
    watched = [_Watched(layer) for layer in layers]
    with unchanged(model), contextlib.ExitStack() as stack:
        for one in watched:
            stack.enter_context(one.watching())
        for x, _, _ in taken:
            for one in watched:
                one.examples = len(keras.tree.flatten(x)[0])
            model(x, training=True)
    still = [layer.name for layer in known if layer not in layers]
    still += [one.layer.name for one in watched if not one.assign()]
    if still:
        logging.warning(
            "kprune.recalibrate: the statistics of %s were not changed, because these layers are frozen or are "
            "called with training=False.",
            ", ".join(still[:4]) + (" ..." if len(still) > 4 else ""),
        )


class _Watched:
    """A batch normalization layer, with the weighted sum of its batch statistics over all watched calls."""

    def __init__(self, layer: Any):
        self.layer, self.examples = layer, 0
        self._sums = [np.zeros(tuple(v.shape), np.float64) for v in _statistics(layer)]
        self._weight = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add up the batch statistics of every call to the layer in this context, even if the layer is shared."""
        momentum, call = self.layer.momentum, self.layer.call

        signature = inspect.signature(call)

        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            # Either Keras gives a call the mode that it is in.
            training = bool(signature.bind(*args, **kwargs).arguments.get("training"))
            for v in _statistics(self.layer) if training else ():
                v.assign(np.zeros(v.shape, to_numpy(v).dtype))  # as 0 times NaN is NaN
            outputs = call(*args, **kwargs)
            if training:
                self._weight += self.examples
                for v, total in zip(_statistics(self.layer), self._sums, strict=True):
                    total += self.examples * to_numpy(v).astype(np.float64)
            return outputs

        self.layer.momentum, self.layer.call = 0.0, watched
        try:
            yield
        finally:
            self.layer.momentum = momentum
            del self.layer.call

    def assign(self) -> bool:
        """Assign the new statistics to the layer; return False if no call was in training mode."""
        for v, total in zip(_statistics(self.layer), self._sums, strict=True):
            if self._weight:
                v.assign((total / self._weight).astype(to_numpy(v).dtype))
        return self._weight > 0


def _statistics(layer: Any) -> list[Any]:
    """Return the moving mean and variance of a batch normalization layer, or [] for other layers."""
    found = [getattr(layer, name, None) for name in ("moving_mean", "moving_variance")]
    return [] if any(v is None for v in found) or not hasattr(layer, "momentum") else found
