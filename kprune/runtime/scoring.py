"""An optimizer that trains a score of each weight entry in the weight's stead, and leaves the weight as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from .distribution import device_layout

SLOPES: dict[str, Callable[[Any], Any]] = {
    "edge_popup": ops.ones_like,
    "bernoulli": lambda score: ops.sigmoid(score) * (1 - ops.sigmoid(score)),
}
"""Name of a method -> the slope of the mask in the score by which gradients are passed on."""


@dataclass(frozen=True)
class _Parts:
    """What a `ScoreOptimizer` holds, in an object that Keras does not look into when it saves the optimizer."""

    own: Any
    inner: Any
    variables: list[Any]
    scores: dict[int, Any]
    slope: Callable[[Any], Any]
    stepping: list[bool]


class ScoreOptimizer(keras.optimizers.Optimizer):
    """Takes a model's optimizer's place in a fit, and applies gradients of some weights to scores of theirs.

    A masked layer reads where(mask, w, 0), and its weight gets the gradient g by what is read, for pruned entries, too.
    The score s of each entry has the gradient g * w * slope(s). A new optimizer of the same class and config steps
    scores, and variables without scores as ever; weights that have scores are never assigned. In saved files it stands
    for the model's own optimizer, whose state does not change. It steps inside `stepping` only.

    Args:
        own: the model's own optimizer.
        variables: all that the model trains, in the model's order.
        scored: those of them that get scores; these are 0 at first.
        slope: a key of `SLOPES`.

    Raises:
        ValueError: the own optimizer cannot be made anew from its config.
    """

    def __init__(self, own: Any, variables: Iterable[Any], scored: Iterable[Any], slope: str):
        super().__init__(learning_rate=0.0, name=own.name)
        inner, variables = _made_anew(own), list(variables)
        scores = {id(v): _score_of(v) for v in scored}
        self._parts = _Parts(own, inner, variables, scores, SLOPES[slope], [])
        _exclude_from_weight_decay(own, inner, [(v, self._stepped(v)) for v in variables])
        inner.build([self._stepped(v) for v in variables])
        if not own.built:  # as a fit would, so that files and backups always hold the same state of it
            own.build(variables)
        self.built = True

    def inner(self) -> Any:
        """The optimizer that steps the scores."""
        return self._parts.inner

    def own(self) -> Any:
        """The model's own optimizer."""
        return self._parts.own

    def score(self, variable: Any) -> Any:
        """The score of a weight: a `keras.Variable` of its shape and dtype."""
        return self._parts.scores[id(variable)]

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Context in which gradients are applied; they are anything but a weight's step, so others must not be."""
        self._parts.stepping.append(True)
        try:
            yield
        finally:
            self._parts.stepping.pop()

    def _check_stepping(self) -> None:
        if not self._parts.stepping:
            raise RuntimeError(
                "model.optimizer trains the scores of Supermask, in whose call to fit() alone it can be used. If that "
                "was interrupted, call model.compile(...), or train_on_batch or fit, which restore the compiled "
                f"optimizer. Received: optimizer={self.name!r}"
            )

    def _stepped(self, variable: Any) -> Any:
        return self._parts.scores.get(id(variable), variable)

    def _passed_on(self, gradient: Any, variable: Any, value: Any, score: Any) -> Any:
        if id(variable) not in self._parts.scores or gradient is None:
            return gradient
        slope = self._parts.slope(ops.convert_to_tensor(score))
        return ops.multiply(ops.convert_to_tensor(gradient), ops.multiply(ops.convert_to_tensor(value), slope))

    def build(self, variables: Any) -> None:
        """Nothing is left to build."""

    @property
    def variables(self) -> list[Any]:
        return [*self._parts.inner.variables, *self._parts.scores.values()]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self._check_stepping()
        given = self._parts.variables if trainable_variables is None else list(trainable_variables)
        stepped = [self._stepped(v) for v in given]
        passed = [self._passed_on(g, v, v, s) for g, v, s in zip(grads, given, stepped, strict=True)]
        self._parts.inner.apply(passed, stepped)

    def stateless_apply(self, optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
        self._check_stepping()
        parts = self._parts
        cut = len(parts.inner.variables)
        scores = dict(zip(parts.scores, optimizer_variables[cut:], strict=True))
        stepped = [scores.get(id(v), value) for v, value in zip(parts.variables, trainable_variables, strict=True)]
        passed = map(self._passed_on, grads, parts.variables, trainable_variables, stepped)
        stepped, state = parts.inner.stateless_apply(optimizer_variables[:cut], list(passed), stepped)
        after = {id(v): value for v, value in zip(parts.variables, stepped, strict=True)}
        kept = [
            value if id(v) in scores else after[id(v)]
            for v, value in zip(parts.variables, trainable_variables, strict=True)
        ]
        return kept, [*state, *(after[key] for key in scores)]

    def finalize_variable_values(self, var_list: Any) -> None:
        self._parts.inner.finalize_variable_values([self._stepped(v) for v in var_list])

    def scale_loss(self, loss: Any) -> Any:
        return self._parts.inner.scale_loss(loss)

    @property
    def iterations(self) -> Any:
        return self._parts.inner.iterations

    @property
    def learning_rate(self) -> Any:
        return self._parts.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._parts.inner.learning_rate = value

    def get_config(self) -> dict[str, Any]:
        return dict(self._parts.own.get_config())

    def save_own_variables(self, store: Any) -> None:
        self._parts.own.save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        self._parts.own.load_own_variables(store)


def _made_anew(own: Any) -> Any:
    if type(own).__name__ == "MultiOptimizer":
        raise ValueError("a MultiOptimizer chooses its optimizers by the weights, and scores are none")
    inner = type(own).from_config(own.get_config())  # which changes what it is given
    if inner.get_config() != own.get_config():
        raise ValueError(f"{type(own).__name__}.from_config(config) makes an optimizer with another config")
    return inner


def _exclude_from_weight_decay(own: Any, inner: Any, pairs: list[tuple[Any, Any]]) -> None:
    """Exclude from the new optimizer's decay what is excluded from the own one's, which its config does not hold.

    What is excluded has no public name (checked with Keras 3.13.2 and 3.15.1; tests/test_supermask.py).
    """
    while hasattr(own, "inner_optimizer"):
        own, inner = own.inner_optimizer, inner.inner_optimizer
    excluded = [stepped for v, stepped in pairs if not own._use_weight_decay(v)]
    if excluded:
        inner.exclude_from_weight_decay(var_list=excluded)


def _score_of(weight: Any) -> Any:
    # Beside its weight, as paths must be unique; laid out as the weight is.
    with ExitStack() as scopes:
        for part in weight.path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(part))
        return keras.Variable(
            "zeros",
            weight.shape,
            weight.dtype,
            trainable=True,
            name=f"{weight.name}_score",
            layout=device_layout(weight),
        )


__all__ = ["SLOPES", "ScoreOptimizer"]
