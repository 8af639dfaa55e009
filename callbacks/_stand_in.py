"""Callbacks that train other parameters in place of the weights, with an optimizer that replaces the model's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from absl import logging

from kprune.masks import MaskedWeight, held_optimizers, library_of, masked_weights
from kprune.masks.holders import forget_traces
from kprune.masks.keras3 import package
from kprune.runtime.distribution import strategy_scope, to_numpy
from kprune.runtime.optimizers import all_variables
from kprune.runtime.stand_in import StandIn

from ._beside import beside, fit_runs, in_fit_of, restores_best
from .base import MaskingCallback
from .take_snapshot import TakeSnapshot


class Standing:
    """A `StandIn` that replaces a model's own optimizer until the `fit` call ends.

    Keras tells no callback that a fit was interrupted. But a step that raises passes through the train function, which
    gives the model its own optimizer back. And each fit, and each `train_on_batch`, asks the model for its train
    function first: where that is not the callback's own fit, which something else than a step has ended, the model has
    its own optimizer back before it. Until then the stand-in refuses to step.
    """

    def __init__(self, optimizer: StandIn):
        self.optimizer = optimizer

    @classmethod
    def begin(cls, callback: Any, model: Any, make: Callable[[Any, list[Any], list[Any]], StandIn]) -> Self:
        """Install a new optimizer before Keras builds the train function for the `fit` call."""
        cls.end(model)
        held = [weight.variable for weight in masked_weights(model) if weight.trainable]
        name = type(callback).__name__
        try:
            with strategy_scope(model):
                standing = cls(make(model.optimizer, model.trainable_variables, held))
        except Exception as error:
            raise ValueError(
                f"{name} could not create its optimizer from the config of the compiled optimizer: "
                f"{str(error).partition('. ')[0][:300].rstrip('.')}. Register custom classes and functions with "
                "keras.saving.register_keras_serializable, or compile the model with another optimizer. Received: "
                f"optimizer={model.optimizer.name!r}"
            ) from error
        of_class = type(model).make_train_function
        known, owner = weakref.ref(callback), weakref.ref(model)

        def make_train_function(force: bool = False) -> Any:
            one, model = known(), owner()
            fitting = one is not None and fit_runs(one)
            if not fitting:
                logging.warning(
                    "kprune: a call to fit() with %s was interrupted, so model.optimizer is the compiled optimizer "
                    "again, with the learning rate that it had before that call.",
                    name,
                )
                cls.end(model)
            of_class(model, force=force)
            if fitting:
                standing._guard(model)

        standing._install(model, standing.optimizer)
        # Known by the model alone: weights know the fit's carrier, and that the model, so nothing global may hold them.
        make_train_function.standing = standing  # type: ignore[attr-defined]
        object.__setattr__(model, "make_train_function", make_train_function)
        return standing

    def _guard(self, model: Any) -> None:
        """Allow optimizer steps only inside the model's train function; remove the optimizer if a step fails."""
        steps, owner, optimizer, end = model.train_function, weakref.ref(model), self.optimizer, self.end
        if getattr(steps, "guarded", False):
            return

        def train_function(*arguments: Any) -> Any:
            try:
                with optimizer.stepping():
                    return steps(*arguments)
            except BaseException:
                end(owner())
                raise

        train_function.guarded = True  # type: ignore[attr-defined]
        model.train_function = train_function

    @staticmethod
    def end(model: Any) -> None:
        """Restore the model's own optimizer, unless it is already in place or the model was compiled again."""
        standing = getattr(vars(model).get("make_train_function"), "standing", None)
        if standing is not None:
            object.__delattr__(model, "make_train_function")
            standing._install(model, standing.optimizer.own() if standing.holds(model) else model.optimizer)

    def _install(self, model: Any, optimizer: Any) -> None:
        model.optimizer, model.train_function = optimizer, None
        forget_traces(library_of(model).all_layers(model))  # of a `train_step` that is a `tf.function`

    def holds(self, model: Any) -> bool:
        """Return whether the model's optimizer is this stand-in."""
        return model.optimizer is self.optimizer

    def variables(self) -> list[Any]:
        """Return the trained parameters, the state of their optimizer, and that of the model's own optimizer."""
        return [*self.optimizer.variables, *all_variables(self.optimizer.own())]


class StandInCallback(MaskingCallback):
    """Base class of the callbacks that train other parameters in place of the masked weights, in `model.fit` only."""

    prunes = "during"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._standing: Standing | None = None

    def make_stand_in(self, own: Any, variables: list[Any], held: list[Any]) -> StandIn:
        """Return the optimizer for a fit; the arguments are those of `StandIn`."""
        raise NotImplementedError

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        keras_3 = library_of(model).package is package
        if keras_3 and getattr(model, "optimizer", None) is not None and in_fit_of(model):
            try:
                self._standing = Standing.begin(self, model, self.make_stand_in)
            except BaseException:
                self._carrier.leave()
                raise

    def check_fit(self) -> None:
        name, received = type(self).__name__, f"Received: model={self.model.name!r}"
        if library_of(self.model).package is not package:
            raise ValueError(
                f"{name} supports Keras 3 models only, because the optimizer of a tf_keras model cannot be replaced "
                f"during a fit. Received: model={self.model.name!r}, library='tf_keras'"
            )
        if self._standing is None:
            raise ValueError(
                f"{name} cannot be used in custom training loops: compile the model with an optimizer and train it by "
                f"calling model.fit. {received}"
            )
        if len(held_optimizers(self.model)) > 1:
            raise ValueError(
                f"{name} requires the compiled optimizer to be the model's only optimizer, because another one would "
                f"change the weights. Received: optimizers={[one.name for one in held_optimizers(self.model)]}"
            )
        if any(isinstance(other, TakeSnapshot) for other in self._carrier.callbacks):
            raise ValueError(
                f"TakeSnapshot cannot be used together with {name}, because the snapshot would contain the compiled "
                "optimizer, which does not train during this fit. Received: other=TakeSnapshot"
            )
        for other in beside(self):
            if restores_best(getattr(other, "callback", other)):
                raise ValueError(
                    f"EarlyStopping with restore_best_weights=True cannot be used together with {name}, because only "
                    "part of the state of the best epoch would be restored: set restore_best_weights=False, or save "
                    f"the best epoch with keras.callbacks.ModelCheckpoint. Received: other={type(other).__name__}"
                )

    def cancel_fit(self) -> None:
        Standing.end(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        Standing.end(self.model)
        self._standing = None
        super().on_train_end(logs)

    def on_test_begin(self, logs: Any = None) -> None:
        self._leave()
        super().on_test_begin(logs)

    def on_predict_begin(self, logs: Any = None) -> None:
        self._leave()
        super().on_predict_begin(logs)

    def _leave(self) -> None:
        if not self._carrier.runs:
            Standing.end(self.model)

    def _weights(self) -> list[MaskedWeight]:
        """Return the masked weights that the trained parameters stand in for."""
        return [weight for weight in masked_weights(self.model) if weight.trainable]

    def _parameters(self, weight: MaskedWeight) -> list[Any]:
        """Return the variables that are trained in place of a weight."""
        if self._standing is None or not self._standing.holds(self.model):
            raise RuntimeError(
                f"{type(self).__name__} can no longer train, because its optimizer was replaced: do not call `compile` "
                "or assign `model.optimizer` during the fit."
            )
        return self._standing.optimizer.parameters(weight.variable)

    def get_trained(self) -> dict[str, np.ndarray]:
        """Return everything other than weights that the fit has trained, for a backup."""
        trained = [] if self._standing is None else self._standing.variables()
        return {str(i): to_numpy(v) for i, v in enumerate(trained)}

    def set_trained(self, values: dict[str, np.ndarray]) -> None:
        """Restore what `get_trained` returned; raise ValueError if it belongs to another model or optimizer."""
        trained = [] if self._standing is None else self._standing.variables()
        found = [values.get(str(i)) for i in range(len(trained))]
        for v, value in zip(trained, found, strict=True):
            if value is None or value.shape != tuple(v.shape):
                raise ValueError(
                    f"The saved state of {type(self).__name__} does not match this model and its optimizer. Received: "
                    f"{v.path}={None if value is None else value.shape}"
                )
        for v, value in zip(trained, found, strict=True):
            v.assign(value)
