"""A model whose optimizer trains scores, for one fit: how it begins, and how it ends, also after an interruption."""

from __future__ import annotations

import weakref
from typing import Any, Self

from absl import logging

from kprune.masks import library_of, masked_weights
from kprune.masks.holders import forget_traces
from kprune.runtime.distribution import strategy_scope
from kprune.runtime.optimizers import all_variables
from kprune.runtime.scoring import ScoreOptimizer

from ._beside import fit_runs


class Scoring:
    """A `ScoreOptimizer` in the place of a model's own optimizer, until the fit of a callback ends.

    Keras tells no callback that a fit was interrupted. But a step that raises passes through the train function, which
    gives the model its own optimizer back. And each fit, and each `train_on_batch`, asks the model for its train
    function first: where that is not the callback's own fit, which something else than a step has ended, the model has
    its own optimizer back before it. Until then the one of scores refuses to step.
    """

    def __init__(self, optimizer: ScoreOptimizer):
        self.optimizer = optimizer

    @classmethod
    def begin(cls, callback: Any, model: Any, slope: str) -> Self:
        """Put a new optimizer of scores in place, before Keras makes the train function of the callback's fit."""
        cls.end(model)
        scored = [weight.variable for weight in masked_weights(model) if weight.trainable]
        try:
            with strategy_scope(model):
                scoring = cls(ScoreOptimizer(model.optimizer, model.trainable_variables, scored, slope))
        except Exception as error:
            raise ValueError(
                "Supermask trains scores by a new optimizer, made from the config of the compiled one, which failed: "
                f"{str(error).partition('. ')[0][:300].rstrip('.')}. Register classes and functions of your own with "
                "keras.saving.register_keras_serializable, or compile with another optimizer. Received: "
                f"optimizer={model.optimizer.name!r}"
            ) from error
        of_class = type(model).make_train_function
        known, owner = weakref.ref(callback), weakref.ref(model)

        def make_train_function(force: bool = False) -> Any:
            held, model = known(), owner()
            if held is None or not fit_runs(held):
                logging.warning(
                    "kprune: Supermask's fit was interrupted; model.optimizer is the compiled optimizer again, with "
                    "the learning rate that it had before."
                )
                cls.end(model)
            of_class(model, force=force)
            if held is not None and fit_runs(held):
                scoring._guard(model)

        scoring._install(model, scoring.optimizer)
        # Known by the model alone: weights know the fit's carrier, and that the model, so nothing global may hold them.
        make_train_function.scoring = scoring  # type: ignore[attr-defined]
        object.__setattr__(model, "make_train_function", make_train_function)
        return scoring

    def _guard(self, model: Any) -> None:
        """Let the optimizer step in the model's train function alone, and end with a step that raises."""
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
        """Give the model its own optimizer back, unless it has been compiled anew; nothing if it has it."""
        scoring = getattr(vars(model).get("make_train_function"), "scoring", None)
        if scoring is not None:
            object.__delattr__(model, "make_train_function")
            scoring._install(model, scoring.optimizer.own() if scoring.holds(model) else model.optimizer)

    def _install(self, model: Any, optimizer: Any) -> None:
        model.optimizer, model.train_function = optimizer, None
        forget_traces(library_of(model).all_layers(model))  # of a `train_step` that is a `tf.function`

    def holds(self, model: Any) -> bool:
        """Whether the model's optimizer is this one."""
        return model.optimizer is self.optimizer

    def variables(self) -> list[Any]:
        """All that the fit trains besides weights: scores, their optimizer's state; and the own optimizer's state."""
        return [*self.optimizer.variables, *all_variables(self.optimizer.own())]
