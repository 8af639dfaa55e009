"""Supermask: learn which weights to keep, without training their values."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from kprune.config import PruningConfig
from kprune.criteria import Context, Scores
from kprune.growth import open_masks
from kprune.masks import MaskedWeight, Masks, hold_weights, masked_weights, release_weights, set_masks
from kprune.masks.layout import layout_of
from kprune.masks.optimizers import trainers
from kprune.runtime.distribution import to_numpy
from kprune.runtime.files import joined, split
from kprune.runtime.optimizers import reset_slots
from kprune.schedules import check_sparsity
from kprune.util.checks import check_choice, check_flag, check_integer

from ._beside import restored_after
from ._updating import UpdatingCallback
from .take_snapshot import TakeSnapshot

METHODS = ("edge_popup", "bernoulli")


class Supermask(UpdatingCallback):
    """Learn which weights to keep; the weights themselves stay the same, bit for bit.

    Each entry w of a masked weight has a score s; the layer reads where(mask, w, 0). As the fit goes on the optimizer
    trains the scores in the place of the weights, by the straight-through gradient:

    - "edge_popup" (arXiv:1911.13299): mask = the entries of the highest scores, as many as the sparsity leaves;
      dL/ds = w * dL/d(mask * w), for pruned entries, too. Scores start uniform in +-1/sqrt(inputs).
    - "bernoulli" (arXiv:1905.01067): mask = random < sigmoid(s), drawn anew at each update; dL/ds has the factor
      sigmoid'(s) besides. Scores start at 0, and the fit ends with the entries of s > 0: the sparsity is found.

    Biases and normalization train on unless they are frozen (`bias.trainable = False`). While the fit runs, the
    variables hold the scores, and `MaskedWeight.fixed` the weights: files saved then load as weights under masks, but
    `model.get_weights()` gives scores. When the fit ends, the weights come back, and the masks stay (store="latent").
    A fit that is interrupted leaves the scores in the variables, until the next one or `kprune.strip`. A further fit of
    the same callback and model continues from its scores. The learning rate is that of scores: SGD wants 0.1 to 100.

    Args:
        method: "edge_popup" or "bernoulli".
        sparsity: fraction of zeros, in [0, 1), 0.5 by default; None for "bernoulli".
        scope: how the sparsity is shared among the weights, as in `kprune.PruningConfig`.
        signed_constant: whether to make the weights sign(w) * sqrt(mean(w^2)) first.
        frequency: steps between two updates of the masks, at least 1; both papers update in each step.
        seed: of the scores' start and of the draws.
        optimizer: the one that trains, where a `train_step` has its own; the compiled one by default.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or the model is one of
            tf_keras, whose wrappers zero what is pruned, or another callback prunes, takes snapshots, or would put
            back scores after the weights.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> kernel = np.array(model.layers[0].kernel)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), verbose=0, callbacks=[kprune.callbacks.Supermask()])
    >>> kprune.summary(model).sparsity, bool(np.array_equal(model.layers[0].kernel, kernel))
    (0.5, True)
    """

    store, trains_weights, alone = "latent", False, "trains scores in place of weights"

    def __init__(
        self,
        method: str = "edge_popup",
        sparsity: float | None = None,
        *,
        scope: str | Callable[..., Any] = "layerwise",
        signed_constant: bool = False,
        frequency: int = 1,
        seed: int = 0,
        optimizer: Any = None,
    ):
        super().__init__(optimizer)
        check_choice("method", method, METHODS)
        if method == "bernoulli" and sparsity is not None:
            raise ValueError(
                '`sparsity` must be None for method="bernoulli", which determines the sparsity itself. Received: '
                f"sparsity={sparsity!r}"
            )
        self.sparsity = 0.5 if sparsity is None and method == "edge_popup" else sparsity
        if self.sparsity is not None:
            check_sparsity("sparsity", self.sparsity)
        check_flag("signed_constant", signed_constant)
        check_integer("frequency", frequency, 1)
        self.config = PruningConfig(_scores, scope=scope, rounds=1, seed=seed)
        self.method, self.signed_constant, self.frequency, self.seed = method, signed_constant, frequency, seed
        self._ended: tuple[weakref.ref[Any], list[np.ndarray]] | None = None  # a model, and its scores as a fit ended
        self._updated_at: int | None = None

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        try:
            hold_weights(model, self.method)
        except BaseException:
            self.cancel_fit()
            self._carrier.leave()
            raise

    def check_fit(self) -> None:
        if any(isinstance(other, TakeSnapshot) for other in self._carrier.callbacks):
            raise ValueError(
                "TakeSnapshot cannot be combined with Supermask, because the variables contain scores instead of "
                "weights while Supermask trains: remove TakeSnapshot. Received: callbacks=[..., TakeSnapshot]"
            )
        if later := restored_after(self):
            raise ValueError(
                f"{later} restores values from during the fit, when the variables contained scores instead of "
                "weights: list it before Supermask in `callbacks`. Received: callbacks=[..., Supermask, ..., "
                f"{later}]"
            )

    def cancel_fit(self) -> None:
        release_weights(self.model)

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()

    def _begin(self) -> None:
        """Start from the scores of an earlier fit of this model, or from new ones."""
        self._counter.forget()
        self._updated_at = None
        known = self._ended[1] if self._ended is not None and self._ended[0]() is self.model else []
        held = _held(self.model)
        if [score.shape for score in known] != [weight.shape for weight in held]:
            known = [self._first(weight, i) for i, weight in enumerate(held)]
            for weight in held if self.signed_constant else ():
                weight.fixed.assign(_signed_constant(to_numpy(weight.fixed)))
        for weight, score in zip(held, known, strict=True):
            weight.variable.assign(score.astype(weight.value().dtype))
            for optimizer in trainers(self.model, [weight.variable], self.optimizer):
                reset_slots(optimizer, weight.variable)
        self._set(self._masks(self._counter.now()))

    def _first(self, weight: MaskedWeight, i: int) -> np.ndarray:
        if self.method == "bernoulli":
            return np.zeros(weight.shape)
        bound = 1 / math.sqrt(max(1, math.prod(layout_of(weight).shape[:-1])))
        return np.random.default_rng([self.seed, i]).uniform(-bound, bound, weight.shape)

    def plan(self, taken: int, epoch: int) -> None:
        """Updates are due at a fixed interval, however long the fit is."""

    def next_due(self) -> int:
        begun = self._counter.begun or 0
        return begun if self._updated_at is None else self._updated_at + self.frequency

    def update(self, taken: int) -> None:
        """Draw new masks if an update is due; only once if several are overdue."""
        begun = self._counter.begun or 0
        step = begun + (taken - begun) // self.frequency * self.frequency
        if step != self._updated_at:
            self._updated_at = step
            self._set(self._masks(step))

    def on_train_end(self, logs: Any = None) -> None:
        self._set(self._masks(None))
        self._ended = weakref.ref(self.model), [weight.value() for weight in _held(self.model)]
        release_weights(self.model)
        super().on_train_end(logs)

    def on_test_begin(self, logs: Any = None) -> None:
        self._leave()
        super().on_test_begin(logs)

    def on_predict_begin(self, logs: Any = None) -> None:
        self._leave()
        super().on_predict_begin(logs)

    def _leave(self) -> None:
        if not self._carrier.runs:
            release_weights(self.model)

    def _set(self, masks: Masks) -> None:
        set_masks(self.model, masks, self.optimizer)

    def _masks(self, step: int | None) -> Masks:
        """The masks that the current scores give at this step; at the end of the fit (None), without randomness."""
        if self.method == "edge_popup":
            return self.config.masks(self.model, self.sparsity, within=open_masks(masked_weights(self.model)))
        if step is None:
            return {weight.path: weight.value() > 0 for weight in _held(self.model)}
        rng = np.random.default_rng([self.seed, step])
        scores = {weight.path: weight.value().astype("float64") for weight in _held(self.model)}
        return {path: rng.random(score.shape) < 1 / (1 + np.exp(-score)) for path, score in scores.items()}

    def get_state(self) -> dict[str, np.ndarray]:
        steps = np.array([-1 if self._updated_at is None else self._updated_at], "int64")
        return joined(
            counter={"0": np.array(self._counter.get_state(), "float64")},
            updated={"0": steps},
            weights={str(i): to_numpy(weight.fixed) for i, weight in enumerate(_held(self.model))},
        )

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        parts, held = split(state, "counter", "updated", "weights"), _held(self.model)
        weights = [parts["weights"].get(str(i)) for i in range(len(held))]
        for weight, value in zip(held, weights, strict=True):
            if value is None or value.shape != weight.shape:
                raise ValueError(
                    "The saved state of Supermask does not match this model: it must contain an array of shape "
                    f"{weight.shape} for {weight.path}. Received: shape={None if value is None else value.shape}"
                )
        for weight, value in zip(held, weights, strict=True):
            weight.fixed.assign(value)
        self._counter.set_state(parts["counter"]["0"].tolist())
        step = int(parts["updated"]["0"][0])
        self._updated_at = None if step < 0 else step


def _held(model: Any) -> list[MaskedWeight]:
    """The masked weights whose variables hold scores."""
    return [weight for weight in masked_weights(model) if weight.fixed is not None]


def _scores(context: Context) -> Scores:
    return {weight.path: weight.seen() for weight in context.weights}


def _signed_constant(value: np.ndarray) -> np.ndarray:
    root = math.sqrt(np.mean(np.square(value, dtype="float64")))
    return (np.sign(value) * root).astype(value.dtype)
