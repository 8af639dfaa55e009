"""Supermask: train which weights to keep, and not the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kprune.config import PruningConfig
from kprune.criteria import Context, Scores
from kprune.growth import open_masks
from kprune.masks import MaskedWeight, Masks, held_optimizers, library_of, masked_weights, set_masks
from kprune.masks.layout import layout_of
from kprune.runtime.distribution import to_numpy
from kprune.runtime.files import joined, split
from kprune.runtime.scoring import SLOPES
from kprune.schedules import check_sparsity
from kprune.util.checks import check_choice, check_flag, check_integer

from ._beside import beside, in_fit_of, restores_best
from ._scoring import Scoring
from ._updating import UpdatingCallback
from .take_snapshot import TakeSnapshot


class Supermask(UpdatingCallback):
    """Train the masks over weights that stay as they are, bit for bit.

    Each entry w of a masked weight has a score s; the layer reads where(mask, w, 0). In place of the weights the fit
    trains the scores, by the straight-through gradient:

    - "edge_popup" (arXiv:1911.13299): mask = the entries of the highest scores, as many as the sparsity leaves;
      dL/ds = w * dL/d(mask * w), for pruned entries, too. Scores start uniform in +-1/sqrt(inputs).
    - "bernoulli" (arXiv:1905.01067): mask = random < sigmoid(s), drawn anew at each update; dL/ds has the factor
      sigmoid'(s) besides. Scores start at 0, and the fit ends with the entries of s > 0: the sparsity is found.

    A new optimizer of the compiled one's class and config steps the scores; it takes the compiled one's place
    (`model.optimizer`) until the fit ends, or, after an interruption, until the model is next trained. Its learning
    rate is that of scores: SGD wants 0.1 to 100. Biases and normalization train on, unless they are frozen
    (`bias.trainable = False`). Files, clones and backups hold weights and masks; a backup holds scores, too. The masks
    stay when the fit ends (store="latent"). A further fit of the same callback and model continues from its scores.

    Args:
        method: "edge_popup" or "bernoulli".
        sparsity: fraction of zeros, in [0, 1), 0.5 by default; None for "bernoulli".
        scope: how the sparsity is shared among the weights, as in `kprune.PruningConfig`.
        signed_constant: whether to make the weights sign(w) * sqrt(mean(w^2)) first; a weight of 0 counts as positive.
        frequency: steps between two updates of the masks, at least 1; both papers update in each step.
        seed: of the scores' start and of the draws.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: as other pruning callbacks, or the model is one of
            tf_keras, whose wrappers zero what is pruned, has masks that pass no gradient to pruned entries, or holds
            further optimizers, or one that cannot be made anew from its config (a MultiOptimizer, classes that are not
            registered); or another callback prunes, takes snapshots or restores the best weights; or the loop is not
            `model.fit`. In the fit: scores have diverged.
        RuntimeError: the model is compiled anew in the middle of the fit, or its optimizer is used after an
            interruption.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> kernel = np.array(model.layers[0].kernel)
    >>> _ = model.fit(np.ones((64, 8)), np.ones((64, 1)), verbose=0, callbacks=[kprune.callbacks.Supermask()])
    >>> kprune.summary(model).sparsity, bool(np.array_equal(model.layers[0].kernel, kernel))
    (0.5, True)
    """

    store, alone = "latent", "trains scores in place of the weights"

    def __init__(
        self,
        method: str = "edge_popup",
        sparsity: float | None = None,
        *,
        scope: str | Callable[..., Any] = "layerwise",
        signed_constant: bool = False,
        frequency: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        check_choice("method", method, tuple(SLOPES))
        if method == "bernoulli" and sparsity is not None:
            raise ValueError(
                f'`sparsity` must be None for "bernoulli", which finds it. Received: sparsity={sparsity!r}'
            )
        self.sparsity = 0.5 if sparsity is None and method == "edge_popup" else sparsity
        if self.sparsity is not None:
            check_sparsity("sparsity", self.sparsity)
        check_flag("signed_constant", signed_constant)
        check_integer("frequency", frequency, 1)
        self.config = PruningConfig(self._scores, scope=scope, rounds=1, seed=seed)
        self.method, self.signed_constant, self.frequency, self.seed = method, signed_constant, frequency, seed
        self._ended: tuple[Any, list[np.ndarray]] | None = None  # a model, and its scores as a fit ended
        self._scoring: Scoring | None = None
        self._updated_at: int | None = None
        self._fits = 0  # earlier ones of this model, whose draws do not come again

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if getattr(model, "optimizer", None) is not None and in_fit_of(model):
            try:
                self._scoring = Scoring.begin(self, model, self.method)
            except BaseException:
                self._carrier.leave()
                raise

    def check_fit(self) -> None:
        received = f"Received: model={self.model.name!r}"
        if self._scoring is None:
            raise ValueError(
                "Supermask requires a model that is compiled with an optimizer, and model.fit: it cannot be used in "
                f"training loops of your own. {received}"
            )
        behind = library_of(self.model).behind(self.model)
        if behind is not None and behind.gradient != "straight_through":
            raise ValueError(
                "Supermask requires masks that pass gradients to pruned entries: call kprune.strip(model), then "
                f'kprune.mask(model, store="latent"). Received: gradient={behind.gradient!r}'
            )
        if len(held_optimizers(self.model)) > 1:
            raise ValueError(
                "Supermask supports models that are trained by the compiled optimizer only, because others would move "
                f"the weights. Received: optimizers={[one.name for one in held_optimizers(self.model)]}"
            )
        if any(isinstance(other, TakeSnapshot) for other in self._carrier.callbacks):
            raise ValueError(
                "TakeSnapshot cannot be used beside Supermask, because the optimizer that it would keep trains scores. "
                "Received: other=TakeSnapshot"
            )

        for other in beside(self):
            if restores_best(getattr(other, "callback", other)):
                raise ValueError(
                    "EarlyStopping with restore_best_weights=True cannot be used beside Supermask, because it would "
                    "restore the biases of the best epoch and not its scores: set it to False, or keep the best epoch "
                    f"by keras.callbacks.ModelCheckpoint. Received: other={type(other).__name__}"
                )

    def cancel_fit(self) -> None:
        Scoring.end(self.model)

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()

    def _begin(self) -> None:
        """Start from the scores that an earlier fit of this model has left, or from fresh ones."""
        self._counter.forget()
        self._updated_at = None
        weights = self._weights()
        known = self._ended[1] if self._ended is not None and self._ended[0] is self.model else []
        self._fits, self._ended = self._fits + 1, None
        if [score.shape for score in known] != [weight.shape for weight in weights]:
            self._fits = 0
            known = [self._first(weight, i) for i, weight in enumerate(weights)]
            for weight in weights if self.signed_constant else ():
                weight.variable.assign(_signed_constant(weight.value()))
        for weight, score in zip(weights, known, strict=True):
            self._score(weight).assign(score.astype(weight.value().dtype))

    def _first(self, weight: MaskedWeight, i: int) -> np.ndarray:
        if self.method == "bernoulli":
            return np.zeros(weight.shape)
        bound = 1 / math.sqrt(max(1, math.prod(layout_of(weight).shape[:-1])))
        return np.random.default_rng([self.seed, i]).uniform(-bound, bound, weight.shape)

    def plan(self, taken: int, epoch: int) -> None:
        """Updates come every so many steps, however long the fit is."""

    def next_due(self) -> int:
        begun = self._counter.begun or 0
        return begun if self._updated_at is None else self._updated_at + self.frequency

    def update(self, taken: int) -> None:
        """Draw the masks anew if that has come due; once, where several updates have passed."""
        begun = self._counter.begun or 0
        step = begun + (taken - begun) // self.frequency * self.frequency
        if step != self._updated_at:
            self._updated_at = step
            self._set(step)

    def on_train_end(self, logs: Any = None) -> None:
        if self._updated_at is not None:  # there has been an epoch
            self._set(None)
        self._ended = self.model, [to_numpy(self._score(weight)) for weight in self._weights()]
        Scoring.end(self.model)
        self._scoring = None
        super().on_train_end(logs)

    def on_test_begin(self, logs: Any = None) -> None:
        self._leave()
        super().on_test_begin(logs)

    def on_predict_begin(self, logs: Any = None) -> None:
        self._leave()
        super().on_predict_begin(logs)

    def _leave(self) -> None:
        if not self._carrier.runs:
            Scoring.end(self.model)

    def _weights(self) -> list[MaskedWeight]:
        """The masked weights that have scores."""
        return [weight for weight in masked_weights(self.model) if weight.trainable]

    def _score(self, weight: MaskedWeight) -> Any:
        """The variable that holds a weight's scores."""
        if self._scoring is None or not self._scoring.holds(self.model):
            raise RuntimeError(
                "Supermask's optimizer is no longer the model's, so no score can train: do not call `compile` or "
                "assign `model.optimizer` during the fit."
            )
        return self._scoring.optimizer.score(weight.variable)

    def _scores(self, context: Context) -> Scores:
        scored = {weight.path for weight in self._weights()}
        return {w.path: to_numpy(self._score(w)) if w.path in scored else w.seen() for w in context.weights}

    def _set(self, step: int | None) -> None:
        """Set the masks by the scores as they are now, at this step; at the end of the fit (None) without chance."""
        set_masks(self.model, self._masks(step), self.optimizer)

    def _masks(self, step: int | None) -> Masks:
        weights = masked_weights(self.model)
        if self.method == "edge_popup":
            return self.config.masks(self.model, self.sparsity, within=open_masks(weights))
        masks = {weight.path: weight.kept() for weight in weights}
        rng = None if step is None else np.random.default_rng([self.seed, self._fits, step])
        for weight in self._weights():
            score = to_numpy(self._score(weight)).astype("float64")
            if not np.isfinite(score).all():
                raise ValueError(
                    f"The scores of {weight.path} are infinite or NaN, because training diverged: lower the learning "
                    f"rate. Received: method={self.method!r}"
                )
            masks[weight.path] = score > 0 if rng is None else rng.random(score.shape) < 1 / (1 + np.exp(-score))
        return masks

    def get_state(self) -> dict[str, np.ndarray]:
        steps = np.array([-1 if self._updated_at is None else self._updated_at, self._fits], "int64")
        trained = [] if self._scoring is None else self._scoring.variables()
        return joined(
            counter={"0": np.array(self._counter.get_state(), "float64")},
            updated={"0": steps},
            trained={str(i): to_numpy(v) for i, v in enumerate(trained)},
        )

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        parts = split(state, "counter", "updated", "trained")
        trained = [] if self._scoring is None else self._scoring.variables()
        values = [parts["trained"].get(str(i)) for i in range(len(trained))]
        for v, value in zip(trained, values, strict=True):
            if value is None or value.shape != tuple(v.shape):
                raise ValueError(
                    "The state of Supermask does not match this model and its optimizer. Received: "
                    f"{v.path}={None if value is None else value.shape}"
                )
        for v, value in zip(trained, values, strict=True):
            v.assign(value)
        self._counter.set_state(parts["counter"]["0"].tolist())
        step, self._fits = parts["updated"]["0"].tolist()
        self._updated_at = None if step < 0 else step


def _signed_constant(value: np.ndarray) -> np.ndarray:
    if np.ptp(np.abs(value)) == 0:  # it is one already, and stays so to the bit
        return value
    root = math.sqrt(np.mean(np.square(value, dtype="float64")))
    return np.where(value < 0, -root, root).astype(value.dtype)
