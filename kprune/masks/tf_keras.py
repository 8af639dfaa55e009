"""kprune's interface to tf_keras (see libraries.py), which uses tfmot's wrappers as masks under kprune's control.

tf_keras has no public walk over all that it counts as a model's layers: `_flatten_layers` is used here and in
wrappers.py only (checked with tf_keras 2.21).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from absl import logging
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

from ..runtime.distribution import strategy_scope
from .behind import Behind
from .holders import live, renew
from .types import FROZEN, WAITS, Filters, MaskedWeight, MaskReport, finish_report, is_a, skip_reason, unique_paths
from .wrappers import (
    FollowerConstraint,
    MaskConstraint,
    PruneLowMagnitude,
    clonable,
    constrain,
    is_never,
    layers_held,
    never,
    own_name,
    prunable_weights,
    weight_path,
)
from .zeros import CAUSE

package = tf_keras
OPTIMIZERS = (tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer)
IN_PLACE = False
ops = SimpleNamespace(
    convert_to_tensor=tf.convert_to_tensor,
    log=tf.math.log,
    maximum=tf.maximum,
    sigmoid=tf.sigmoid,
    softmax=tf.nn.softmax,
)

# tfmot's threshold of a weight, which only tfmot's own pruning uses, says here whether kprune rules the weight; it is
# saved with the model. tfmot's are never negative.
_NOT_RULED = -1.0


class CarriedState(tf.train.experimental.PythonState):
    """The states of the callbacks in `fit`, saved in the model's TensorFlow checkpoints (see callbacks/_carrier.py)."""

    def __init__(self, carrier: Any):
        self.carrier = carrier

    def serialize(self) -> bytes:
        return self.carrier.dump()

    def deserialize(self, string_value: Any) -> None:
        self.carrier.load(string_value)


def backend() -> str:
    return "tf_keras"


def weight_names(model: Any) -> set[str]:
    return {own_name(w) for w in model.weights}


def mask_model(model: Any, filters: Filters, weights: Sequence[str], behind: Behind) -> MaskReport:
    if behind != Behind():
        raise ValueError(
            "A tf_keras model cannot keep the values of pruned weights: tfmot's wrappers set them to 0. "
            f"Received: store={behind.store!r}"
        )
    if _wrappers(model):
        take_over(model)
        ruled = {id(weight.variable) for weight in find_masked(model)}
        wrapped = {id(w) for wrapper in _wrappers(model) for w in wrapper.layer.weights}
        skipped = []
        for w in plain_variables(model):
            if id(w) not in ruled:
                reason = skip_reason(own_name(w), w, weight_path(w), None, None, weights)
                other = "it was excluded when its layer was" if id(w) in wrapped else "its layer is not"
                skipped.append((w, reason or f"{other} wrapped"))
        return _report(model, skipped)
    chosen: dict[int, set[int]] = {}
    skipped = []
    leaves = layers_held(model, clonable(model))
    for layer, reachable in leaves:
        prunable = prunable_weights(layer)
        for w in layer.weights:
            reason = skip_reason(own_name(w), w, weight_path(w), layer, filters, weights)
            if not reason and not reachable:
                reason = "tfmot cannot wrap the layers of a subclassed model; wrap them where the model creates them"
            elif not reason and not any(w is p for p in prunable):
                reason = f"tfmot does not support this weight of a {type(layer).__name__} layer"
            elif not reason and not any(w is t for t in layer.trainable_weights):
                reason = FROZEN  # tf_keras says so of the layer, not of the variable
            setattr(w, WAITS, reason == FROZEN)
            if reason:
                skipped.append((w, reason))
            else:
                chosen.setdefault(id(layer), set()).add(id(w))
    held = {id(w) for layer, _ in leaves for w in layer.weights}
    skipped += [(w, "it belongs to a model, not to one of its layers") for w in model.weights if id(w) not in held]
    if not chosen:
        return _report(model, skipped)
    made: dict[int, Any] = {}

    def wrap(layer: Any) -> Any:
        # A layer, or a model, that several models share is wrapped once.
        if id(layer) not in made:
            made[id(layer)] = layer
            if isinstance(layer, tf_keras.Model):
                if clonable(layer):
                    made[id(layer)] = tf_keras.models.clone_model(layer, clone_function=wrap)
            elif id(layer) in chosen:
                made[id(layer)] = PruneLowMagnitude(layer, pruning_schedule=never())
        return made[id(layer)]

    with strategy_scope(model):
        clone = tf_keras.models.clone_model(model, clone_function=wrap)
        if not clone.built:
            clone.build(model.input_shape)
    for wrapper in _wrappers(clone):
        for w, _, threshold in wrapper.pruning_vars:
            if id(w) not in chosen[id(wrapper.layer)]:
                threshold.assign(_NOT_RULED)
    _adopt(clone)
    return _report(clone, skipped)


def take_over(model: Any) -> None:
    _adopt(model)
    _warn_of_unfrozen(model, {id(weight.variable) for weight in find_masked(model)})


def behind(model: Any) -> Behind | None:
    return None


def find_masked(model: Any) -> list[MaskedWeight]:
    return [
        MaskedWeight(weight_path(w, wrapper.layer), wrapper, w, mask)
        for wrapper in _wrappers(model)
        for w, mask, threshold in wrapper.pruning_vars
        if float(threshold.numpy()) != _NOT_RULED
    ]


def find_followers(model: Any) -> list[MaskedWeight]:
    held = [w for w in plain_variables(model) if isinstance(w.constraint, FollowerConstraint)]
    return [MaskedWeight(weight_path(w), model, w, w.constraint.mask) for w in held]


def mask_followers(model: Any, variables: list[Any]) -> None:
    new = [w for w in variables if not isinstance(w.constraint, FollowerConstraint)]
    with strategy_scope(model):
        masks = [tf.Variable(tf.ones(w.shape, tf.bool), trainable=False, name=f"{own_name(w)}_mask") for w in new]
    for w, mask in zip(new, masks, strict=True):
        constrain(w, FollowerConstraint(mask, w.constraint))
    if new:
        _renew_functions(model, new)


def strip_model(model: Any) -> Any:
    pruned = _pruned_by_wrappers(model)
    stripped = _stripped(model)
    _renew_functions(model, pruned)
    return stripped


def _stripped(model: Any) -> Any:
    if _wrappers(model) and not clonable(model):
        raise ValueError(
            "tfmot's wrappers cannot be removed from a subclassed tf_keras model: copy the weights into a model "
            f"built without wrappers. Received: model={model.name!r}"
        )
    shape = model.input_shape if _wrappers(model) else None
    for w in _held(model):
        if isinstance(w.constraint, MaskConstraint):
            constrain(w, w.constraint.constraint)
    with strategy_scope(model):
        stripped = tfmot.sparsity.keras.strip_pruning(model)
        if not stripped.built:
            stripped.build(shape)
    return stripped


@contextmanager
def plain(model: Any) -> Iterator[Any]:
    constraints = [(w, w.constraint) for w in _held(model)]
    try:
        yield _stripped(model) if _wrappers(model) else model
    finally:
        for w, constraint in constraints:
            constrain(w, constraint)


def check_leaks(model: Any, weights: list[MaskedWeight]) -> None:
    # tf_keras does not say who gave a weight its values.
    moved = [weight.path for weight in weights if weight.moved().size]
    if moved:
        logging.warning(
            "kprune: pruned entries of %s are no longer 0. Unless you set these weights yourself, the likely cause is "
            "that %s",
            ", ".join(moved[:4]),
            CAUSE,
        )


def all_layers(model: Any) -> list[Any]:
    return [model, *(sub for sub in model.submodules if isinstance(sub, tf_keras.layers.Layer))]


def owned_weights(model: Any) -> list[tuple[Any, Any]]:
    layers = all_layers(model)
    in_rnn = {id(sub) for layer in layers if is_a(layer, "RNN") for sub in all_layers(layer)[1:]}
    owners: dict[int, list[Any]] = {}
    for layer in layers:
        if id(layer) in in_rnn:
            continue
        subs = [] if is_a(layer, "RNN") else all_layers(layer)[1:]
        below = {id(w) for sub in subs for w in sub.weights}
        for w in layer.weights:
            if id(w) not in below:
                owners.setdefault(id(w), []).append(layer)
    return [(layer, w) for w in plain_variables(model) for layer in owners.get(id(w), [])]


def owner(wrapper: Any, variable: Any) -> Any:
    inside = wrapper.layer
    return next((sub for sub in inside.submodules if getattr(sub, "kernel", None) is variable), inside)


def weight_name(layer: Any, w: Any) -> str:
    return own_name(w)


def holds_kernel(layer: Any, w: Any) -> bool:
    return len(w.shape) > 1


def seed_states(model: Any) -> list[Any]:
    return []  # TensorFlow's own generators keep them


def carry(model: Any, carrier: Any) -> None:
    model._kprune_state = None if carrier is None else CarriedState(carrier)


def carried(model: Any) -> Any:
    state = getattr(model, "_kprune_state", None)
    return None if state is None else state.carrier


def plain_variables(model: Any) -> list[Any]:
    masks = {id(v) for wrapper in _wrappers(model) for v in wrapper._non_trainable_weights}
    return [w for w in model.weights if id(w) not in masks]


def _adopt(model: Any) -> None:
    """Take over tfmot's wrappers, so that only `set_masks` changes masks and pruned weights are 0 after each step."""
    if any(wrapper.pruning_obj is None for wrapper in _wrappers(model)):
        raise ValueError(f"The model must be built before its masks can be used. Received: model={model.name!r}")
    ruled, changed = set(), False
    for wrapper in _wrappers(model):
        if type(wrapper) is pruning_wrapper.PruneLowMagnitude:
            wrapper.__class__ = PruneLowMagnitude
            wrapper.supports_masking = wrapper.layer.supports_masking
            changed = True
        if not is_never(wrapper.pruning_schedule):
            ruled.add(type(wrapper.pruning_schedule).__name__)
            wrapper.pruning_schedule = never()
            wrapper.pruning_obj._pruning_schedule = wrapper.pruning_schedule
        # Before step 1 tfmot's wrapper asserts that its UpdatePruningStep callback is there, should tfmot load a file.
        if int(wrapper.pruning_step.numpy()) < 1:
            wrapper.pruning_step.assign(1)
        for w, mask, _ in wrapper.pruning_vars:
            own = w.constraint.constraint if isinstance(w.constraint, MaskConstraint) else w.constraint
            if own is w.constraint or w.constraint.mask is not mask:
                constrain(w, MaskConstraint(mask, own))
                changed = True
    if changed or ruled:
        _renew_functions(model, _pruned_by_wrappers(model))
    if ruled:
        logging.warning(
            "kprune: this model was wrapped by tfmot with tfmot's own schedule (%s). kprune takes over: that schedule "
            "is switched off, and only kprune's callbacks and functions change masks.",
            ", ".join(sorted(ruled)),
        )


def _warn_of_unfrozen(model: Any, ruled: set[int]) -> None:
    trained = {id(w) for w in model.trainable_weights}
    waiting = [w for w in plain_variables(model) if getattr(w, WAITS, False) and id(w) in trained - ruled]
    if waiting:
        logging.warning(
            "kprune: these weights were frozen when the model was masked and now train without masks: %s. To mask "
            "them, wrap the model again: call kprune.strip, kprune.mask and `compile`, then set the masks again.",
            ", ".join(map(weight_path, waiting[:4])),
        )


def _renew_functions(model: Any, weights: list[Any]) -> None:
    """Drop the compiled functions, which use old schedules or constraints, of all live models with these weights."""
    changed = {id(w) for w in weights}
    for other in {id(one): one for one in [model, *live(tf_keras.Model)]}.values():
        if getattr(other, "built", False) and changed.intersection(map(id, other.weights)):
            renew(other, list(other._flatten_layers()))


def _report(model: Any, skipped: list[tuple[Any, str]]) -> MaskReport:
    paths = unique_paths([weight_path(w) for w, _ in skipped])
    reasons = dict(zip(paths, (reason for _, reason in skipped), strict=True))
    return finish_report(model, unique_paths([weight.path for weight in find_masked(model)]), reasons)


def _wrappers(model: Any) -> list[Any]:
    found = [layer for layer in model._flatten_layers() if isinstance(layer, pruning_wrapper.PruneLowMagnitude)]
    return list({id(wrapper): wrapper for wrapper in found}.values())


def _pruned_by_wrappers(model: Any) -> list[Any]:
    return [w for wrapper in _wrappers(model) for w, *_ in wrapper.pruning_vars]


def _held(model: Any) -> list[Any]:
    """Return the weights that have kprune's constraints."""
    return [*_pruned_by_wrappers(model), *(weight.variable for weight in find_followers(model))]
