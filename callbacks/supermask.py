"""Supermask: train which weights to keep, rather than the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kprune.config import PruningConfig
from kprune.criteria import Context, Scores
from kprune.growth import open_masks
from kprune.masks import MaskedWeight, Masks, library_of, masked_weights, set_masks
from kprune.masks.layout import layout_of
from kprune.runtime.distribution import to_numpy
from kprune.runtime.files import joined, split
from kprune.runtime.stand_in import SLOPES, ScoreOptimizer
from kprune.schedules import check_sparsity
from kprune.util.checks import check_choice, check_flag, check_integer

from ._stand_in import StandInCallback
from ._updating import UpdatingCallback


class Supermask(StandInCallback, UpdatingCallback):
    """Train the masks while the weights themselves stay unchanged, bit for bit.

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
                '`sparsity` must be None for method="bernoulli", which learns the sparsity. Received: '
                f"sparsity={sparsity!r}"
            )
        self.sparsity = 0.5 if sparsity is None and method == "edge_popup" else sparsity
        if self.sparsity is not None:
            check_sparsity("sparsity", self.sparsity)
        check_flag("signed_constant", signed_constant)
        check_integer("frequency", frequency, 1)
        self.config = PruningConfig(self._scores, scope=scope, rounds=1, seed=seed)
        self.method, self.signed_constant, self.frequency, self.seed = method, signed_constant, frequency, seed
        self._ended: tuple[Any, list[np.ndarray]] | None = None  # a model, and its scores as a fit ended
        self._updated_at: int | None = None
        self._fits = 0  # earlier ones of this model, whose draws do not come again

    def make_stand_in(self, own: Any, variables: list[Any], held: list[Any]) -> ScoreOptimizer:
        return ScoreOptimizer(own, variables, held, self.method)

    def check_fit(self) -> None:
        super().check_fit()
        behind = library_of(self.model).behind(self.model)
        if behind is not None and behind.gradient != "straight_through":
            raise ValueError(
                "Supermask requires masks that pass gradients to pruned entries: call kprune.strip(model), then "
                f'kprune.mask(model, store="latent"). Received: gradient={behind.gradient!r}'
            )

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            if not self._restored:
                self._begin()

    def _begin(self) -> None:
        """Start from the scores of an earlier fit of this model, or from new scores if there are none."""
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
        """Do nothing, because updates are due every `frequency` steps, no matter when the fit ends."""

    def next_due(self) -> int:
        begun = self._counter.begun or 0
        return begun if self._updated_at is None else self._updated_at + self.frequency

    def update(self, taken: int) -> None:
        """Redraw the masks if an update is due; if several are overdue, redraw only once."""
        begun = self._counter.begun or 0
        step = begun + (taken - begun) // self.frequency * self.frequency
        if step != self._updated_at:
            self._updated_at = step
            self._set(step)

    def on_train_end(self, logs: Any = None) -> None:
        if self._updated_at is not None:  # there has been an epoch
            self._set(None)
        self._ended = self.model, [to_numpy(self._score(weight)) for weight in self._weights()]
        super().on_train_end(logs)

    def _score(self, weight: MaskedWeight) -> Any:
        """Return the variable that contains a weight's scores."""
        return self._parameters(weight)[0]

    def _scores(self, context: Context) -> Scores:
        scored = {weight.path for weight in self._weights()}
        return {w.path: to_numpy(self._score(w)) if w.path in scored else w.seen() for w in context.weights}

    def _set(self, step: int | None) -> None:
        """Set the masks from the current scores; at the end of training (if `step` is None), use no randomness."""
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
        counter = np.array(self._counter.get_state(), "float64")
        return joined(counter={"0": counter}, updated={"0": steps}, trained=self.get_trained())

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        super().set_state(state)
        parts = split(state, "counter", "updated", "trained")
        self.set_trained(parts["trained"])
        self._counter.set_state(parts["counter"]["0"].tolist())
        step, self._fits = parts["updated"]["0"].tolist()
        self._updated_at = None if step < 0 else step


def _signed_constant(value: np.ndarray) -> np.ndarray:
    if np.ptp(np.abs(value)) == 0:  # it is one already, and stays so to the bit
        return value
    root = math.sqrt(np.mean(np.square(value, dtype="float64")))
    return np.where(value < 0, -root, root).astype(value.dtype)
