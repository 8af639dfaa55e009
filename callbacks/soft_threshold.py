"""STR: learn one threshold per weight tensor, below which weights are 0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from absl import logging

from kprune.config import PruningConfig
from kprune.criteria import Context, Scores
from kprune.masks import MaskedWeight, masked_weights, set_masks
from kprune.runtime.distribution import to_numpy
from kprune.runtime.files import joined, split
from kprune.runtime.optimizers import reset_slots, slots
from kprune.runtime.stand_in import ThresholdOptimizer
from kprune.runtime.writing import keep_where, put
from kprune.schedules import check_sparsity
from kprune.util.checks import check_integer, check_number

from ._stand_in import StandInCallback
from ._updating import UpdatingCallback


class STR(StandInCallback, UpdatingCallback):
    """Soft threshold reparameterization (arXiv:2002.03231), which learns how sparse each weight tensor should be.

    In place of each masked weight w the fit trains a latent v, which is w at first, and one number s:

        w = sign(v) * max(|v| - sigmoid(s), 0);  dL/dv = dL/dw where |v| > sigmoid(s), else 0
        dL/ds = decay * s - sigmoid'(s) * sum(sign(v) * dL/dv)

    so that the decay raises thresholds until the loss objects. Every `frequency` steps the zeros are counted: once they
    are `sparsity` of all masked weights, thresholds stand still, and the entries of the highest |v| - sigmoid(s) are
    kept, as many as the sparsity leaves, which train on. Until then no mask has changed, and weights can return.

    A new optimizer of the compiled one's class and config steps v, s and all else that trains; it takes the compiled
    one's place (`model.optimizer`) until the fit ends, or is interrupted. Files and clones hold w; a backup holds v and
    s, too. What is pruned when the fit begins stays pruned.

    Args:
        sparsity: fraction of zeros over all masked weights, in [0, 1).
        start: s at first; sigmoid(-5) is 0.0067, in the unit of the weights.
        decay: of s, above 0: plain gradient descent at the rate r multiplies s by 1 - r * decay in each step.
        frequency: steps between two counts, at least 1.

    Attributes:
        thresholds: path of the weight -> sigmoid(s), as the fit ended or thresholds stood still; empty until then.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or the model is one of
            tf_keras, or holds further optimizers, or one that cannot be made anew from its config (a MultiOptimizer,
            classes that are not registered) or scales the loss; or another callback prunes, takes snapshots or restores
            the best weights; or the loop is not `model.fit`.
        RuntimeError: the model is compiled anew in the middle of the fit, or its optimizer is used after an
            interruption.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> callback = kprune.callbacks.STR(0.75, decay=1.0, frequency=1)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=2, verbose=0, callbacks=[callback])
    >>> kprune.summary(model).sparsity, len(callback.thresholds)
    (0.75, 2)
    """

    store, alone = "zero", "trains thresholds in place of the weights"

    def __init__(self, sparsity: float = 0.9, *, start: float = -5.0, decay: float = 0.01, frequency: int = 10):
        super().__init__()
        check_sparsity("sparsity", sparsity)
        check_number("start", start, "finite", math.isfinite)
        check_number("decay", decay, "above 0 and finite", lambda value: 0 < value < math.inf)
        check_integer("frequency", frequency, 1)
        self.sparsity, self.start, self.decay, self.frequency = sparsity, float(start), float(decay), frequency
        self.config = PruningConfig(self._margins, scope="global")
        self._begin()

    def _begin(self) -> None:
        """Clear the state of an earlier fit."""
        self._counter.forget()
        self.thresholds: dict[str, float] = {}
        self._counted: int | None = None  # the step at which zeros were counted last
        self._reached: bool | None = None  # None before the first epoch

    def make_stand_in(self, own: Any, variables: list[Any], held: list[Any]) -> ThresholdOptimizer:
        return ThresholdOptimizer(own, variables, held, self.start, self.decay)

    def check_fit(self) -> None:
        super().check_fit()
        if not all(weight.trainable for weight in masked_weights(self.model)):
            raise ValueError(
                "STR requires all masked weights to be trainable, because a frozen weight has no threshold: use the "
                f"`filters` argument of kprune.mask to mask only trainable weights. Received: model={self.model.name!r}"
            )

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()

    def plan(self, taken: int, epoch: int) -> None:
        """Record that training has begun; zeros are counted every `frequency` steps, no matter when training ends."""
        self._reached = bool(self._reached)

    def prunes_after(self, epoch: int) -> bool:
        return not self._reached

    def next_due(self) -> int | None:
        if self._reached:
            return None
        begun = self._counter.begun or 0
        return begun if self._counted is None else self._counted + self.frequency

    def update(self, taken: int) -> None:
        """Count the zeros if a count is due; if several are overdue, count only once."""
        due = self.next_due()
        if due is None or taken < due:
            return
        begun = self._counter.begun or 0
        self._counted = begun + (taken - begun) // self.frequency * self.frequency
        if self._zeros() >= self.sparsity:
            self._close()

    def _zeros(self) -> float:
        """Return the fraction of entries that do not exceed their thresholds, computed without the masks."""
        weights = masked_weights(self.model)
        below = [np.abs(to_numpy(self._parameters(w)[0]).astype("float64")) <= self._threshold(w) for w in weights]
        return sum(int(np.count_nonzero(one)) for one in below) / sum(weight.size for weight in weights)

    def _close(self) -> None:
        """Mask all entries except those that exceed their thresholds by the most, and freeze the thresholds.

        A threshold that has come above an entry that is kept goes back, to just below the smallest one.
        """
        masks = self.config.masks(self.model, self.sparsity)
        inner = self._standing.optimizer.inner() if self._standing is not None else None
        values = {}
        for weight in masked_weights(self.model):
            latent, s, learns = self._parameters(weight)
            kept, magnitude, threshold = masks[weight.path], np.abs(to_numpy(latent)), self._threshold(weight)
            smallest = float(np.min(magnitude, where=kept & (magnitude > 0), initial=math.inf))
            if smallest <= threshold:
                threshold = smallest * (1 - 2**-10)
                put(s, np.asarray(math.log(threshold / (1 - threshold)), s.dtype))
            values[weight.path] = np.sign(to_numpy(latent)) * np.maximum(magnitude - threshold, 0)
            keep_where(kept, [(latent, 0.0), *slots(inner, latent)])
            put(learns, np.zeros((), learns.dtype))
            reset_slots(inner, s)
        set_masks(self.model, masks, self.optimizer)
        for weight in masked_weights(self.model):
            value = np.where(masks[weight.path], values[weight.path], 0).astype(weight.value().dtype)
            put(weight.variable, value)
        self._note_thresholds()
        self._reached = True

    def _note_thresholds(self) -> None:
        self.thresholds = {weight.path: self._threshold(weight) for weight in masked_weights(self.model)}

    def _threshold(self, weight: MaskedWeight) -> float:
        return float(1 / (1 + np.exp(-to_numpy(self._parameters(weight)[1]).astype("float64"))))

    def _margins(self, context: Context) -> Scores:
        """Return |v| - sigmoid(s) as scores; the entries with the highest scores are kept."""
        return {
            w.path: np.abs(to_numpy(self._parameters(w)[0]).astype("float64")) - self._threshold(w)
            for w in context.weights
        }

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if logs is not None and not self._reached:
            logs["sparsity"] = self._zeros()

    def on_train_end(self, logs: Any = None) -> None:
        if self._reached is False:
            self._note_thresholds()
            set_masks(self.model, {w.path: w.kept() & (w.value() != 0) for w in masked_weights(self.model)})
            logging.warning(
                "STR: training ended at a sparsity of %.4g, below the target sparsity=%g. Raise `decay` or `start`, or "
                "train longer.",
                self._zeros(),
                self.sparsity,
            )
        super().on_train_end(logs)

    def get_state(self) -> dict[str, np.ndarray]:
        counted, reached = self._counted, self._reached
        steps = np.array([-1 if counted is None else counted, -1 if reached is None else reached], "int64")
        counter, thresholds = np.array(self._counter.get_state(), "float64"), np.array([*self.thresholds.values()])
        return joined(
            counter={"0": counter}, steps={"0": steps}, thresholds={"0": thresholds}, trained=self.get_trained()
        )

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        self._begin()
        parts = split(state, "counter", "steps", "thresholds", "trained")
        self.set_trained(parts["trained"])
        self._counter.set_state(parts["counter"]["0"].tolist())
        paths = [weight.path for weight in masked_weights(self.model)]
        self.thresholds = dict(zip(paths, parts["thresholds"]["0"].tolist(), strict=False))
        counted, reached = parts["steps"]["0"].tolist()
        self._counted, self._reached = (None if counted < 0 else counted), (None if reached < 0 else bool(reached))
