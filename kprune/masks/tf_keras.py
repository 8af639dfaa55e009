"""Masks in tf_keras models: tfmot's `PruneLowMagnitude` wrappers, with kprune in charge of them.

tfmot multiplies weight and mask before each forward pass, so after each optimizer step its weights leak. Here the
forward pass sees the masked weight, so that a pruned one gets no gradient, and the weight's constraint holds it at
exactly 0 after the step; the wrapper's own schedule never prunes.

tf_keras has no public setter for a variable's constraint, nor a public walk over all layers: `_constraint` and
`_flatten_layers` are used here only, and what a layer does in its own `__call__` around `call` has no public name
either (checked with tf_keras 2.21, tfmot 0.8.1).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from absl import logging
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry, pruning_wrapper

from ..runtime.distribution import strategy_scope
from .constraints_tf_keras import FollowerConstraint, MaskConstraint
from .holders import live, renew
from .types import FROZEN, WAITS, Filters, MaskReport, finish_report, skip_reason, unique_paths

# tfmot's own ConstantSparsity, beginning at a step that no training reaches: a saved model loads without kprune.
_NEVER = 2**62
# tfmot's threshold of a weight, which only tfmot's own pruning uses, says here whether kprune rules the weight; it is
# saved with the model. tfmot's are never negative.
_NOT_RULED = -1.0


class PruneLowMagnitude(pruning_wrapper.PruneLowMagnitude):
    """tfmot's wrapper without what changes a model's predictions or losses; under tfmot's name, so that both load it.

    The layer computes with where(mask, w, 0). It keeps its own dtype policy and activity regularizer, takes part in
    Keras's masking of time steps, and a MultiHeadAttention can be read back from a file.
    """

    def __init__(self, layer: Any, **kwargs: Any):
        super().__init__(layer, **{"dtype": layer.dtype_policy, **kwargs})
        self.supports_masking = layer.supports_masking

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._too_early():
            self.layer(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any) -> None:
        if not self._too_early():
            super().build(input_shape)

    def _too_early(self) -> bool:
        """Whether it is a MultiHeadAttention that has not been called: tfmot asks for weights that it makes then."""
        dense = getattr(self.layer, "_output_dense", None)
        return hasattr(self.layer, "_build_from_signature") and not getattr(dense, "built", False)

    def add_weight(self, name: Any = None, *args: Any, **kwargs: Any) -> Any:
        # The masks of one wrapper all get the same name from tfmot, which HDF5 files cannot hold: "1/mask", "2/mask".
        taken = sum(_name(w) == name for w in self._non_trainable_weights)
        with tf.name_scope(str(taken)) if taken else nullcontext():
            return super().add_weight(name, *args, **kwargs)

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        if not _is_never(self.pruning_schedule):  # loaded from a file, and kprune has not taken over
            return super().call(inputs, training=training, **kwargs)
        known = inspect.signature(self.layer.call).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            kwargs = {name: value for name, value in kwargs.items() if name in known or name != "mask"}
        if "training" in known:
            kwargs["training"] = training
        swapped: list[tuple[dict[str, Any], str, Any, Any]] = []
        layers = list(self.layer._flatten_layers())
        for w, mask, _ in self.pruning_vars:
            homes = [(vars(owner), name) for owner in layers for name, v in vars(owner).items() if v is w]
            value = tf.convert_to_tensor(w)
            value = tf.where(tf.cast(mask, tf.bool), value, tf.zeros_like(value))
            swapped += [(*home, w, value) for home in homes]
        try:
            for attributes, name, _, value in swapped:
                attributes[name] = value
            outputs = self.layer.call(inputs, **kwargs)
            self.layer._handle_activity_regularization(inputs, outputs)
        finally:
            for attributes, name, w, _ in swapped:
                attributes[name] = w
        return outputs

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)


# So that files of masked models load without tfmot's `prune_scope`; inside it tf_keras takes this one, too.
tf_keras.utils.get_custom_objects().setdefault("PruneLowMagnitude", PruneLowMagnitude)


class CarriedState(tf.train.experimental.PythonState):
    """The states of the callbacks of a fit, in TensorFlow's checkpoints of its model; see carry.py."""

    def __init__(self, carrier: Any):
        self.carrier = carrier

    def serialize(self) -> bytes:
        return self.carrier.dump()

    def deserialize(self, string_value: Any) -> None:
        self.carrier.load(string_value)


def plain_variables(model: Any) -> list[Any]:
    """The model's weights without what tfmot's wrappers add: masks, thresholds, steps."""
    return _weights(model)


def weight_names(model: Any) -> set[str]:
    """The names by which `mask(weights=...)` knows the model's weights."""
    return {_name(w) for w in model.weights}


def mask_model(model: Any, filters: Filters, weights: Sequence[str]) -> MaskReport:
    if _wrappers(model):
        _adopt(model)
        ruled = {id(w) for _, _, w, _ in find_masked(model)}
        _warn_of_unfrozen(model, ruled)
        wrapped = {id(w) for wrapper in _wrappers(model) for w in wrapper.layer.weights}
        skipped = []
        for w in _weights(model):
            if id(w) not in ruled:
                reason = skip_reason(_name(w), w, _path(w), None, None, weights)
                other = "it was left out when its layer was" if id(w) in wrapped else "its layer is not among those"
                skipped.append((w, reason or f"{other} wrapped"))
        return _report(model, skipped)
    chosen: dict[int, set[int]] = {}
    skipped = []
    leaves = _leaves(model, _clonable(model))
    for layer, reachable in leaves:
        prunable = _prunable(layer)
        for w in layer.weights:
            reason = skip_reason(_name(w), w, _path(w), layer, filters, weights)
            if not reason and not reachable:
                reason = "tfmot cannot wrap the layers of a subclassed model; wrap them where the model makes them"
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
                if _clonable(layer):
                    made[id(layer)] = tf_keras.models.clone_model(layer, clone_function=wrap)
            elif id(layer) in chosen:
                made[id(layer)] = PruneLowMagnitude(layer, pruning_schedule=_never())
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


def find_masked(model: Any) -> list[tuple[str, Any, Any, Any]]:
    return [
        (_path(w, wrapper.layer), wrapper, w, mask)
        for wrapper in _wrappers(model)
        for w, mask, threshold in wrapper.pruning_vars
        if float(threshold.numpy()) != _NOT_RULED
    ]


def find_followers(model: Any) -> list[tuple[str, Any, Any, Any]]:
    held = [w for w in _weights(model) if isinstance(w.constraint, FollowerConstraint)]
    return [(_path(w), model, w, w.constraint.mask) for w in held]


def mask_followers(model: Any, variables: list[Any]) -> None:
    new = [w for w in variables if not isinstance(w.constraint, FollowerConstraint)]
    for w in new:
        with strategy_scope(model):
            mask = tf.Variable(tf.ones(w.shape, tf.bool), trainable=False, name=f"{_name(w)}_mask")
        _constrain(w, FollowerConstraint(mask, w.constraint))
    if new:
        _renew_functions(model, new)


def strip_model(model: Any) -> Any:
    pruned = _pruned_by_wrappers(model)
    stripped = _stripped(model)
    _renew_functions(model, pruned)
    return stripped


def _stripped(model: Any) -> Any:
    if _wrappers(model) and not _clonable(model):
        raise ValueError(
            "tfmot's wrappers cannot be removed from a subclassed tf_keras model: copy the weights into a model "
            f"that was built without them. Received: model={model.name!r}"
        )
    shape = model.input_shape if _wrappers(model) else None
    for w in [*_pruned_by_wrappers(model), *(w for _, _, w, _ in find_followers(model))]:
        if isinstance(w.constraint, MaskConstraint):
            _constrain(w, w.constraint.constraint)
    with strategy_scope(model):
        stripped = tfmot.sparsity.keras.strip_pruning(model)
        if not stripped.built:
            stripped.build(shape)
    return stripped


@contextmanager
def plain(model: Any) -> Iterator[Any]:
    """Inside, a stripped clone, which shares the weights; afterwards the wrappers hold them at zero again."""
    held = [*_pruned_by_wrappers(model), *(w for _, _, w, _ in find_followers(model))]
    constraints = [(w, w.constraint) for w in held]
    try:
        yield _stripped(model) if _wrappers(model) else model
    finally:
        for w, constraint in constraints:
            _constrain(w, constraint)


def _adopt(model: Any) -> None:
    """Put kprune in charge of the wrappers: masks move only by `set_masks`, weights are exactly 0 after each step."""
    if any(wrapper.pruning_obj is None for wrapper in _wrappers(model)):
        raise ValueError(f"The model must be built first: its masks do not exist yet. Received: model={model.name!r}")
    ruled, changed = set(), False
    for wrapper in _wrappers(model):
        if type(wrapper) is pruning_wrapper.PruneLowMagnitude:
            wrapper.__class__ = PruneLowMagnitude
            wrapper.supports_masking = wrapper.layer.supports_masking
            changed = True
        if not _is_never(wrapper.pruning_schedule):
            ruled.add(type(wrapper.pruning_schedule).__name__)
            wrapper.pruning_schedule = _never()
            wrapper.pruning_obj._pruning_schedule = wrapper.pruning_schedule
        # Before step 1 tfmot's wrapper asserts that its UpdatePruningStep callback is there, should tfmot load a file.
        if int(wrapper.pruning_step.numpy()) < 1:
            wrapper.pruning_step.assign(1)
        for w, mask, _ in wrapper.pruning_vars:
            own = w.constraint.constraint if isinstance(w.constraint, MaskConstraint) else w.constraint
            if own is w.constraint or w.constraint.mask is not mask:
                _constrain(w, MaskConstraint(mask, own))
                changed = True
    if changed or ruled:
        _renew_functions(model, _pruned_by_wrappers(model))
    if ruled:
        logging.warning(
            "kprune: this model was wrapped by tfmot with its own schedule (%s). kprune takes over: tfmot's schedule "
            "is switched off, and only kprune's callbacks and functions change masks.",
            ", ".join(sorted(ruled)),
        )


def _warn_of_unfrozen(model: Any, ruled: set[int]) -> None:
    trained = {id(w) for w in model.trainable_weights}
    waiting = [w for w in _weights(model) if getattr(w, WAITS, False) and id(w) in trained - ruled]
    if waiting:
        logging.warning(
            "kprune: these weights were frozen when the model was masked and now train without masks: %s. tf_keras "
            "layers are wrapped only once: call kprune.strip, kprune.mask and `compile`, and set the masks again.",
            ", ".join(map(_path, waiting[:4])),
        )


def _renew_functions(model: Any, weights: list[Any]) -> None:
    """Drop what was compiled, with tfmot's schedule or other constraints, by any live model that has these weights."""
    changed = {id(w) for w in weights}
    for other in {id(one): one for one in [model, *live(tf_keras.Model)]}.values():
        if getattr(other, "built", False) and changed.intersection(map(id, other.weights)):
            renew(other, list(other._flatten_layers()))


def _report(model: Any, skipped: list[tuple[Any, str]]) -> MaskReport:
    paths = unique_paths([_path(w) for w, _ in skipped])
    reasons = dict(zip(paths, (reason for _, reason in skipped), strict=True))
    return finish_report(model, unique_paths([path for path, *_ in find_masked(model)]), reasons)


def _never() -> Any:
    return tfmot.sparsity.keras.ConstantSparsity(0.0, begin_step=_NEVER)


def _is_never(schedule: Any) -> bool:
    return getattr(schedule, "begin_step", None) == _NEVER


def _wrappers(model: Any) -> list[Any]:
    found = [layer for layer in model._flatten_layers() if isinstance(layer, pruning_wrapper.PruneLowMagnitude)]
    return list({id(wrapper): wrapper for wrapper in found}.values())


def _pruned_by_wrappers(model: Any) -> list[Any]:
    return [w for wrapper in _wrappers(model) for w, *_ in wrapper.pruning_vars]


def _constrain(w: Any, constraint: Any) -> None:
    w = getattr(w, "_variable", w)  # inside the variable that mixed precision casts
    for variable in getattr(w, "_values", [w]):  # and in each replica's
        variable._constraint = constraint


def _leaves(model: Any, reachable: bool) -> list[tuple[Any, bool]]:
    """The layers that the (nested) models hold, not what is inside a layer, and whether a clone reaches them."""
    if not isinstance(model, tf_keras.Model):
        return [(model, reachable)]
    found: dict[int, tuple[Any, bool]] = {}
    for layer in model.layers:
        inside = reachable and (_clonable(layer) or not isinstance(layer, tf_keras.Model))
        for leaf, within in _leaves(layer, inside):
            found[id(leaf)] = (leaf, within or found.get(id(leaf), (leaf, False))[1])
    return list(found.values())


def _weights(model: Any) -> list[Any]:
    masks = {id(v) for wrapper in _wrappers(model) for v in wrapper._non_trainable_weights}
    return [w for w in model.weights if id(w) not in masks]


def _prunable(layer: Any) -> list[Any]:
    if prune_registry.PruneRegistry.supports(layer):
        prune_registry.PruneRegistry.make_prunable(layer)
    return list(layer.get_prunable_weights()) if hasattr(layer, "get_prunable_weights") else []


def _clonable(model: Any) -> bool:
    return isinstance(model, tf_keras.Sequential) or (isinstance(model, tf_keras.Model) and model._is_graph_network)


def _path(w: Any, layer: Any = None) -> str:
    """The weight's path, the same whether it was made before or after its layer was wrapped, or by a file's loader."""
    path = re.sub(r"(^|/)prune_low_magnitude_", r"\1", str(w.name).partition(":")[0])
    return path if layer is None or layer.name in path.split("/") else f"{layer.name}/{path}"


def _name(w: Any) -> str:
    return _path(w).rpartition("/")[2]
