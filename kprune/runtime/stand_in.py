"""Optimizers that replace a model's own optimizer during `fit`, and train other parameters in place of weights."""

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
    """The contents of a `StandIn`, in an object that Keras does not look into when it saves the optimizer."""

    own: Any
    inner: Any
    variables: list[Any]
    held: dict[int, list[Any]]
    stepping: list[bool]
    settings: dict[str, Any]


class StandIn(keras.optimizers.Optimizer):
    """An optimizer that replaces a model's own optimizer during `fit`, and trains parameters in place of some weights.

    A new optimizer of the same class and config steps these parameters, and variables that have none as ever. In saved
    files it stands for the model's own optimizer, whose state does not change. It steps inside `stepping` only.

    Args:
        own: the model's own optimizer.
        variables: all that the model trains, in the model's order.
        held: those of them in whose place parameters train.
        settings: of a subclass.

    Raises:
        ValueError: the own optimizer cannot be made anew from its config.
    """

    def __init__(self, own: Any, variables: Iterable[Any], held: Iterable[Any], **settings: Any):
        super().__init__(learning_rate=0.0, name=own.name)
        inner, variables = _made_anew(own), list(variables)
        self._parts = _Parts(own, inner, variables, {}, [], settings)
        self._parts.held.update({id(v): self._make(v) for v in held})
        _exclude_from_weight_decay(own, inner, self._without_decay(own, variables))
        inner.build([one for v in variables for one in self._stepped(v)])
        if not own.built:  # as a fit would, so that files and backups always hold the same state of it
            own.build(variables)
        self.built = True

    def _make(self, weight: Any) -> list[Any]:
        """Return the parameters of a weight; the first one has the weight's shape."""
        raise NotImplementedError

    def _gradients(self, gradient: Any, value: Any, parameters: list[Any]) -> list[Any]:
        """Return the gradients of the parameters, given the gradient of the weight; all are tensors."""
        raise NotImplementedError

    def _value(self, parameters: list[Any]) -> Any:
        """Return the weight's value for these parameters (a tensor), or None if the weight is left unchanged."""
        raise NotImplementedError

    def inner(self) -> Any:
        """Return the optimizer that updates the parameters."""
        return self._parts.inner

    def own(self) -> Any:
        """Return the model's own optimizer."""
        return self._parts.own

    def parameters(self, weight: Any) -> list[Any]:
        """Return the parameters (`keras.Variable`s) that are trained in place of a weight."""
        return self._parts.held[id(weight)]

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Allow gradients to be applied in a `with` block; applying them elsewhere raises an error."""
        self._parts.stepping.append(True)
        try:
            yield
        finally:
            self._parts.stepping.pop()

    def _check_stepping(self) -> None:
        if not self._parts.stepping:
            raise RuntimeError(
                "model.optimizer replaces the compiled optimizer while `fit` runs with a kprune callback, and cannot "
                "be used outside that `fit` call. If `fit` was interrupted, call model.compile(...), or restore the "
                f"compiled optimizer by calling fit or train_on_batch. Received: optimizer={self.name!r}"
            )

    def _stepped(self, variable: Any) -> list[Any]:
        return self._parts.held.get(id(variable), [variable])

    def _without_decay(self, own: Any, variables: list[Any]) -> list[Any]:
        own = _leaf(own)
        return [self._stepped(v)[0] for v in variables if not own._use_weight_decay(v)]

    def _passed_on(self, gradient: Any, value: Any, parameters: list[Any]) -> list[Any]:
        if gradient is None:
            return [None] * len(parameters)
        tensors = list(map(ops.convert_to_tensor, parameters))
        return self._gradients(ops.convert_to_tensor(gradient), ops.convert_to_tensor(value), tensors)

    def build(self, variables: Any) -> None:
        """Do nothing, because everything is already built."""

    @property
    def variables(self) -> list[Any]:
        return [*self._parts.inner.variables, *(one for held in self._parts.held.values() for one in held)]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self._check_stepping()
        held, stepped, passed = self._parts.held, [], []
        given = self._parts.variables if trainable_variables is None else list(trainable_variables)
        for v, gradient in zip(given, grads, strict=True):
            stepped += self._stepped(v)
            passed += self._passed_on(gradient, v, held[id(v)]) if id(v) in held else [gradient]
        self._parts.inner.apply(passed, stepped)
        self._write(given)

    def _write(self, variables: Iterable[Any]) -> None:
        """Set the weights to the values that follow from their parameters."""
        for v in variables:
            held = self._parts.held.get(id(v))
            value = None if held is None else self._value(list(map(ops.convert_to_tensor, held)))
            if value is not None:
                v.assign(value)

    def stateless_apply(self, optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
        self._check_stepping()
        parts, cut = self._parts, len(self._parts.inner.variables)
        left = iter(optimizer_variables[cut:])
        held = {key: [next(left) for _ in one] for key, one in parts.held.items()}
        stepped, passed = [], []
        for v, value, gradient in zip(parts.variables, trainable_variables, grads, strict=True):
            stepped += held.get(id(v), [value])
            passed += self._passed_on(gradient, value, held[id(v)]) if id(v) in held else [gradient]
        new, state = parts.inner.stateless_apply(optimizer_variables[:cut], passed, stepped)
        new, values = iter(new), []
        for v, before in zip(parts.variables, trainable_variables, strict=True):
            if id(v) not in held:
                values.append(next(new))
                continue
            held[id(v)] = [next(new) for _ in held[id(v)]]
            value = self._value(held[id(v)])
            values.append(before if value is None else value)
        return values, [*state, *(one for key in parts.held for one in held[key])]

    def finalize_variable_values(self, var_list: Any) -> None:
        self._parts.inner.finalize_variable_values([one for v in var_list for one in self._stepped(v)])
        self._write(var_list)

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


class ScoreOptimizer(StandIn):
    """A stand-in that trains a score for each weight entry; weights that have scores do not change.

    A masked layer reads where(mask, w, 0), and its weight gets the gradient g by what is read, for pruned entries, too.
    The score s of each entry, 0 at first, has the gradient g * w * slope(s).

    Args:
        own, variables, held: as of `StandIn`.
        slope: a key of `SLOPES`.
    """

    def __init__(self, own: Any, variables: Iterable[Any], held: Iterable[Any], slope: str):
        super().__init__(own, variables, held, slope=SLOPES[slope])

    def _make(self, weight: Any) -> list[Any]:
        return [_beside(weight, "score")]

    def _gradients(self, gradient: Any, value: Any, parameters: list[Any]) -> list[Any]:
        return [gradient * value * self._parts.settings["slope"](parameters[0])]

    def _value(self, parameters: list[Any]) -> Any:
        return None


class ThresholdOptimizer(StandIn):
    """A stand-in that trains a latent weight v and a number s in place of w = sign(v) * max(|v| - sigmoid(s), 0).

    With the loss's gradient g by w, only entries of |v| > sigmoid(s) have one: v has g there, and s

        decay * s - sigmoid'(s) * sum(sign(v) * g)

    times a third parameter, `learns`, which is 1 until somebody assigns 0.

    Args:
        own, variables, held: as of `StandIn`; v is w at first, and w does not change before the first step.
        start: s at first.
        decay: of s, toward 0.
    """

    def __init__(self, own: Any, variables: Iterable[Any], held: Iterable[Any], start: float, decay: float):
        super().__init__(own, variables, held, start=start, decay=decay)
        if _leaf(own) is not own:
            raise ValueError(
                "a loss scale would scale only part of each threshold's gradient (the dtype policy 'mixed_bfloat16' "
                "needs no loss scale)"
            )

    def _make(self, weight: Any) -> list[Any]:
        latent = _beside(weight, "latent")
        threshold, learns = (_beside(weight, name, scalar=True) for name in ("threshold", "learns"))
        latent.assign(ops.copy(ops.convert_to_tensor(weight)))  # JAX donates each buffer once
        threshold.assign(self._parts.settings["start"])
        learns.assign(1)
        return [latent, threshold, learns]

    def _without_decay(self, own: Any, variables: list[Any]) -> list[Any]:
        return [*super()._without_decay(own, variables), *(v for one in self._parts.held.values() for v in one[1:])]

    def _gradients(self, gradient: Any, value: Any, parameters: list[Any]) -> list[Any]:
        latent, s, learns = parameters
        threshold = ops.sigmoid(s)
        passed = ops.where(ops.abs(latent) > threshold, gradient, ops.zeros((), gradient.dtype))
        slope = threshold * (1 - threshold)
        rise = self._parts.settings["decay"] * s - slope * ops.sum(ops.sign(latent) * passed)
        return [passed, learns * rise, ops.zeros_like(learns)]

    def _value(self, parameters: list[Any]) -> Any:
        latent, s, _ = parameters
        return ops.sign(latent) * ops.relu(ops.abs(latent) - ops.sigmoid(s))


def _made_anew(own: Any) -> Any:
    if type(own).__name__ == "MultiOptimizer":
        raise ValueError(
            "a MultiOptimizer chooses an optimizer for each weight, but other parameters are trained in place of the "
            "weights"
        )
    inner = type(own).from_config(own.get_config())  # which changes what it is given
    if inner.get_config() != own.get_config():
        raise ValueError(f"{type(own).__name__}.from_config(config) returns an optimizer with a different config")
    return inner


def _leaf(optimizer: Any) -> Any:
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _exclude_from_weight_decay(own: Any, inner: Any, excluded: list[Any]) -> None:
    """Exclude parameters from weight decay if the model's own optimizer excludes the weights they stand in for.

    What is excluded has no public name (checked with Keras 3.13.2 and 3.15.1; tests/test_supermask.py), and is not in
    an optimizer's config.
    """
    if excluded:
        _leaf(inner).exclude_from_weight_decay(var_list=excluded)


def _beside(weight: Any, name: str, scalar: bool = False) -> Any:
    """Create a scalar, or a parameter with a weight's shape and layout, under a unique path beside the weight's."""
    with ExitStack() as scopes:
        for part in weight.path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(part))
        return keras.Variable(
            "zeros",
            () if scalar else weight.shape,
            weight.dtype,
            trainable=True,
            name=f"{weight.name}_{name}",
            layout=None if scalar else device_layout(weight),
        )


__all__ = ["SLOPES", "ScoreOptimizer", "StandIn", "ThresholdOptimizer"]
