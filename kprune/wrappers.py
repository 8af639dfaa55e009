"""Masks in tf_keras models: tfmot's `PruneLowMagnitude` wrappers, with kprune in charge of them.

tfmot multiplies weight and mask before each forward pass, so after each optimizer step its weights leak. Here the
weight's constraint multiplies once more after the step, and the wrapper's own schedule never prunes.

tf_keras has no public setter for a variable's constraint, nor a public walk over all layers: `_constraint` and
`_flatten_layers` are used here and in criteria/synflow_tf_keras.py only (checked with tf_keras 2.21, tfmot 0.8.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras
from absl import logging
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry, pruning_wrapper

from .masks import Filters, MaskReport, finish_report, skip_reason, unique_paths

# tfmot's own ConstantSparsity, beginning at a step that no training reaches: a saved model loads without kprune.
_NEVER = 2**62


class MaskConstraint:
    """w -> c(w) * mask, where c is the constraint that the weight had."""

    def __init__(self, mask: Any, constraint: Any):
        self.mask, self.constraint = mask, constraint

    def __call__(self, weight: Any) -> Any:
        weight = weight if self.constraint is None else self.constraint(weight)
        return weight * self.mask


def weight_names(model: Any) -> set[str]:
    """The names by which `mask(weights=...)` knows the model's weights."""
    return {_name(w) for w in model.weights}


def mask_model(model: Any, filters: Filters, weights: Sequence[str]) -> MaskReport:
    if _wrappers(model):
        _adopt(model)
        masked = unique_paths([path for path, *_ in find_masked(model)])
        known = {id(w) for _, _, w, _ in find_masked(model)}
        reason = "its layer is not among those that are wrapped already"
        skipped = {_path(w): reason for w in _weights(model) if id(w) not in known}
        return finish_report(model, masked, skipped)
    chosen: dict[int, list[Any]] = {}
    skipped = {}
    for layer in _leaves(model):
        prunable = _prunable(layer)
        for w in layer.weights:
            reason = skip_reason(_name(w), w, _path(w), layer, filters, weights)
            if not reason and not _clonable(model):
                reason = "tfmot cannot wrap the layers of a subclassed model; wrap them where the model makes them"
            elif not reason and not any(w is p for p in prunable):
                reason = f"tfmot does not support this weight of a {type(layer).__name__} layer"
            if reason:
                skipped[_path(w)] = reason
            else:
                chosen.setdefault(id(layer), []).append(w)
    if not chosen:
        return finish_report(model, [], skipped)

    def wrap(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=wrap) if _clonable(layer) else layer
        if id(layer) not in chosen:
            return layer
        wanted = chosen[id(layer)]
        if len(wanted) < len(_prunable(layer)):
            layer.get_prunable_weights = lambda: wanted
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=_never())

    clone = tf_keras.models.clone_model(model, clone_function=wrap)
    _adopt(clone)
    return finish_report(clone, unique_paths([path for path, *_ in find_masked(clone)]), skipped)


def find_masked(model: Any) -> list[tuple[str, Any, Any, Any]]:
    return [(_path(w), wrapper, w, mask) for wrapper in _wrappers(model) for w, mask, _ in wrapper.pruning_vars]


def strip_model(model: Any) -> Any:
    if _wrappers(model) and not _clonable(model):
        raise ValueError(
            "tfmot's wrappers cannot be taken out of a subclassed tf_keras model: copy the weights into one that was "
            f"made without them. Received: model={model.name!r}"
        )
    for _, _, w, _ in find_masked(model):
        if isinstance(w._constraint, MaskConstraint):
            w._constraint = w._constraint.constraint
    return tfmot.sparsity.keras.strip_pruning(model)


def _adopt(model: Any) -> None:
    """Put kprune in charge of the wrappers: masks move only by `set_masks`, weights are exactly 0 after each step."""
    ruled = set()
    for wrapper in _wrappers(model):
        if not wrapper.pruning_vars:
            raise ValueError(f"The model is not built, so its masks do not exist yet. Received: model={model.name!r}")
        if getattr(wrapper.pruning_schedule, "begin_step", None) != _NEVER:
            ruled.add(type(wrapper.pruning_schedule).__name__)
            wrapper.pruning_schedule = _never()
            wrapper.pruning_obj._pruning_schedule = wrapper.pruning_schedule
        # Before step 1 the wrapper asserts that tfmot's UpdatePruningStep callback is there; kprune does not need it.
        if int(wrapper.pruning_step) < 1:
            wrapper.pruning_step.assign(1)
        for w, mask, _ in wrapper.pruning_vars:
            if not isinstance(w.constraint, MaskConstraint):
                w._constraint = MaskConstraint(mask, w.constraint)
    if ruled:
        logging.warning(
            "kprune: this model was wrapped by tfmot with its own schedule (%s). kprune rules from here on: tfmot's "
            "schedule is off, masks change only by kprune's callbacks and functions.",
            ", ".join(sorted(ruled)),
        )


def _never() -> Any:
    return tfmot.sparsity.keras.ConstantSparsity(0.0, begin_step=_NEVER)


def _wrappers(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, pruning_wrapper.PruneLowMagnitude)]


def _leaves(model: Any) -> list[Any]:
    """The layers that could be wrapped: those that the (nested) models hold, not what is inside a layer."""
    if not isinstance(model, tf_keras.Model):
        return [model]
    found: dict[int, Any] = {}
    for layer in model.layers:
        found.update({id(leaf): leaf for leaf in _leaves(layer)})
    return list(found.values())


def _weights(model: Any) -> list[Any]:
    masks = {id(v) for wrapper in _wrappers(model) for v in [*wrapper._non_trainable_weights]}
    return [w for w in model.weights if id(w) not in masks]


def _prunable(layer: Any) -> list[Any]:
    if not hasattr(layer, "get_prunable_weights"):
        if not prune_registry.PruneRegistry.supports(layer):
            return []
        prune_registry.PruneRegistry.make_prunable(layer)
    return list(layer.get_prunable_weights())


def _clonable(model: Any) -> bool:
    return isinstance(model, tf_keras.Sequential) or (isinstance(model, tf_keras.Model) and model._is_graph_network)


def _path(w: Any) -> str:
    return str(w.name).partition(":")[0]


def _name(w: Any) -> str:
    return _path(w).rpartition("/")[2]
