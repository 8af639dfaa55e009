"""Optimizer state: what to reset when a mask changes, and which optimizers cannot keep weights at zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .distribution import strategy_scope, to_numpy
from .stand_in import StandIn
from .writing import keep_where

# Muon orthogonalizes the whole update of a kernel, so it moves weights whose gradient is exactly zero.
DENSE_UPDATES = ("Muon",)


def inner_optimizers(optimizer: Any) -> list[Any]:
    """Return the optimizers that hold the slots: those inside `optimizer` if it wraps others, or else `optimizer`."""
    if isinstance(optimizer, StandIn):
        return inner_optimizers(optimizer.inner())
    if hasattr(optimizer, "inner_optimizer"):
        return inner_optimizers(optimizer.inner_optimizer)
    if type(optimizer).__name__ == "MultiOptimizer":
        return [inner for part in optimizer.optimizers for inner in inner_optimizers(part)]
    return [optimizer]


def iterations(optimizer: Any) -> int:
    """Return the number of steps that an optimizer has taken (`optimizer.iterations`)."""
    count = optimizer.iterations
    # A variable, on several replicas perhaps; where Keras 3 accumulates gradients a tensor, which on JAX is an array.
    return int(count.numpy() if hasattr(count, "numpy") else count)


def batches_per_step(optimizer: Any) -> int:
    """Return the number of batches per optimizer step, which is above 1 if the optimizer accumulates gradients."""
    return getattr(inner_optimizers(optimizer)[0], "gradient_accumulation_steps", None) or 1


def batches_taken(optimizer: Any) -> int:
    """Return the number of batches that the optimizer has received, including those of an incomplete step.

    An epoch need not end with a step where gradients are accumulated, so this tells where in the data a model is.
    """
    if batches_per_step(optimizer) == 1:
        return iterations(optimizer)
    variables = inner_optimizers(optimizer)[0].variables
    return int(to_numpy(next(v for v in variables if v.name == "iteration")))


def has_acted(optimizer: Any) -> tuple[float, ...]:
    """Return the batch count and any loss scale, at least one of which changes with each call of the optimizer."""
    optimizer = optimizer.inner() if isinstance(optimizer, StandIn) else optimizer
    scales = [getattr(optimizer, name, None) for name in ("dynamic_scale", "loss_scale")]
    return (batches_taken(optimizer), *(float(to_numpy(scale)) for scale in scales if hasattr(scale, "numpy")))


def check_optimizer(optimizer: Any) -> None:
    """Raise ValueError, naming the optimizer, if its updates move pruned weights."""
    for inner in inner_optimizers(optimizer):
        if type(inner).__name__ in DENSE_UPDATES:
            raise ValueError(
                "This optimizer updates every entry of a kernel, even where the gradient is zero, so pruned weights "
                "would not stay 0: compile with another optimizer, such as AdamW or SGD. Received: "
                f"optimizer={type(inner).__name__}"
            )


def slots(optimizer: Any, variable: Any) -> list[tuple[Any, float]]:
    """Return (slot, initial value) for each optimizer slot of `variable` that has the variable's shape.

    That value is 0, but for the accumulators of Adagrad and Ftrl, which start at `initial_accumulator_value`.
    """
    return [pair for inner in inner_optimizers(optimizer) for pair in _slots(inner, variable)]


def reset_slots(optimizer: Any, variable: Any) -> None:
    """Reset the optimizer's slots of `variable` to their initial values."""
    keep_where(np.zeros(tuple(variable.shape), bool), slots(optimizer, variable))


def trains(optimizer: Any, variables: list[Any]) -> bool:
    """Whether the optimizer has slots for one of these variables."""
    if hasattr(optimizer, "get_slot_names"):
        return any(True for v in variables for _ in _slots(optimizer, v))
    if hasattr(optimizer, "_index_dict"):  # tf_keras
        return any(optimizer._var_key(v) in optimizer._index_dict for v in variables)
    held = {id(v) for v in trained(optimizer)}
    return any(id(v) in held for v in variables)


def trained(optimizer: Any) -> list[Any]:
    """Return the variables that a Keras 3 optimizer was built with; the list is empty before it is built."""
    return list(getattr(optimizer, "_trainable_variables", []))


def _slots(optimizer: Any, variable: Any) -> Iterator[tuple[Any, float]]:
    """Yield (slot, initial value) for each slot of one weight.

    Keras and tf_keras optimizers keep a list per kind of slot, in the order of the variables that they were built
    with; legacy tf_keras ones answer `get_slot`. Slots of another shape (Adafactor's row and column means) hold no
    state of a single weight.
    """
    if hasattr(optimizer, "get_slot_names"):
        for name in optimizer.get_slot_names():
            initial = getattr(optimizer, "_initial_accumulator_value", 0.0) if name == "accumulator" else 0.0
            try:
                yield optimizer.get_slot(variable, name), initial
            except KeyError:  # a variable that it does not train
                return
        return
    if hasattr(optimizer, "_index_dict"):  # tf_keras
        positions = optimizer._index_dict
        position = positions.get(optimizer._var_key(variable))
    else:
        positions = trained(optimizer)
        position = next((i for i, v in enumerate(positions) if v is variable), None)
    if position is None:
        return
    for name, slots in vars(optimizer).items():
        if name == "_trainable_variables" or not isinstance(slots, list) or len(slots) != len(positions):
            continue
        slot = slots[position]
        if hasattr(slot, "assign") and tuple(slot.shape) == tuple(variable.shape):
            yield slot, optimizer.initial_accumulator_value if name == "_accumulators" else 0.0


def build(optimizer: Any, model: Any) -> None:
    """Create the optimizer's slots for the model's trainable variables if it has none yet."""
    if hasattr(optimizer, "get_slot_names"):
        raise ValueError(
            "A legacy optimizer keeps its learning rate outside its variables, so it cannot be rewound: use a "
            f"current optimizer from tf_keras.optimizers. Received: optimizer=legacy.{type(optimizer).__name__}"
        )
    if not getattr(optimizer, "built", getattr(optimizer, "_built", False)):
        with strategy_scope(model):
            optimizer.build(model.trainable_variables)


def all_variables(optimizer: Any) -> list[Any]:
    """Return each state variable of an optimizer once: iterations, learning rate, slots, averages and loss scale."""
    if hasattr(optimizer, "get_slot_names"):  # a legacy one, of which `variables` is a method
        return list(optimizer.weights)
    found = list(optimizer.variables)
    # tf_keras counts neither its dynamic loss scale nor its learning rate among the variables; the former has no public
    # name (checked with tf_keras 2.21; tests/tf_keras/test_lottery_tf_keras.py).
    scale = vars(optimizer).get("_loss_scale")
    found += [scale.current_loss_scale, scale.counter] if hasattr(scale, "counter") else []
    for inner in inner_optimizers(optimizer):
        found += list(inner.variables)
        found += [inner.learning_rate] if hasattr(inner.learning_rate, "assign") else []
    return list({id(v): v for v in found}.values())


def initial_value(optimizer: Any, variable: Any) -> float:
    """Return the initial value of an optimizer's variable, which is 0 except for accumulators and a loss scale."""
    if variable is getattr(optimizer, "dynamic_scale", None):
        return float(optimizer.initial_scale)
    for inner in inner_optimizers(optimizer):
        if any(variable is one for one in getattr(inner, "_accumulators", ())):
            return float(inner.initial_accumulator_value)
    return 0.0
