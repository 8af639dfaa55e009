"""tfmot's wrapper without its side effects on predictions, and the constraint that keeps pruned weights at 0.

tfmot multiplies weight and mask before each forward pass, so after each optimizer step its weights leak. Here the
forward pass sees the masked weight, so that a pruned one gets no gradient, and the weight's constraint holds it at
exactly 0 after the step; the wrapper's own schedule never prunes.

tf_keras has no public setter for a variable's constraint: `_constraint` is used here only, and what a layer does in its
own `__call__` around `call` has no public name either (checked with tf_keras 2.21, tfmot 0.8.1).
"""

from __future__ import annotations

import inspect
import re
from contextlib import nullcontext
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry, pruning_wrapper

# tfmot's own ConstantSparsity, beginning at a step that no training reaches: a saved model loads without kprune.
_NEVER = 2**62


class PruneLowMagnitude(pruning_wrapper.PruneLowMagnitude):
    """tfmot's wrapper without its effect on predictions or losses; saved models load with or without kprune.

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
        """Whether the layer is a MultiHeadAttention whose first call has yet to create the weights that tfmot needs."""
        dense = getattr(self.layer, "_output_dense", None)
        return hasattr(self.layer, "_build_from_signature") and not getattr(dense, "built", False)

    def add_weight(self, name: Any = None, *args: Any, **kwargs: Any) -> Any:
        # The masks of one wrapper all get the same name from tfmot, which HDF5 files cannot hold: "1/mask", "2/mask".
        taken = sum(own_name(w) == name for w in self._non_trainable_weights)
        with tf.name_scope(str(taken)) if taken else nullcontext():
            return super().add_weight(name, *args, **kwargs)

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        if not is_never(self.pruning_schedule):  # loaded from a file, and kprune has not taken over
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


class MaskConstraint:
    """A constraint that maps w to where(mask, c(w), 0), where c is the weight's previous constraint."""

    def __init__(self, mask: Any, constraint: Any):
        self.mask, self.constraint = mask, constraint

    def __call__(self, weight: Any) -> Any:
        weight = weight if self.constraint is None else self.constraint(weight)
        return tf.where(tf.cast(self.mask, tf.bool), weight, tf.zeros_like(weight))


class FollowerConstraint(MaskConstraint):
    """The constraint of a weight that is pruned only with its channel; the mask is derived and not saved in files."""


def constrain(w: Any, constraint: Any) -> None:
    """Replace a weight's constraint."""
    w = getattr(w, "_variable", w)  # inside the variable that mixed precision casts
    for variable in getattr(w, "_values", [w]):  # and in each replica's
        variable._constraint = constraint


def never() -> Any:
    """Return a tfmot schedule that prunes nothing."""
    return tfmot.sparsity.keras.ConstantSparsity(0.0, begin_step=_NEVER)


def is_never(schedule: Any) -> bool:
    """Whether kprune controls a wrapper with this schedule."""
    return getattr(schedule, "begin_step", None) == _NEVER


def weight_path(w: Any, layer: Any = None) -> str:
    """Return the weight's path, which does not depend on how the layer was wrapped or loaded."""
    path = re.sub(r"(^|/)prune_low_magnitude_", r"\1", str(w.name).partition(":")[0])
    return path if layer is None or layer.name in path.split("/") else f"{layer.name}/{path}"


def own_name(w: Any) -> str:
    """Return the weight's name in its layer."""
    return weight_path(w).rpartition("/")[2]


def layers_held(model: Any, reachable: bool) -> list[tuple[Any, bool]]:
    """Return (layer, whether cloning reaches it) for each layer of nested models, except layers inside other layers."""
    if not isinstance(model, tf_keras.Model):
        return [(model, reachable)]
    found: dict[int, tuple[Any, bool]] = {}
    for layer in model.layers:
        inside = reachable and (clonable(layer) or not isinstance(layer, tf_keras.Model))
        for leaf, within in layers_held(layer, inside):
            found[id(leaf)] = (leaf, within or found.get(id(leaf), (leaf, False))[1])
    return list(found.values())


def prunable_weights(layer: Any) -> list[Any]:
    """Return the weights of a layer that tfmot can prune."""
    if prune_registry.PruneRegistry.supports(layer):
        prune_registry.PruneRegistry.make_prunable(layer)
    return list(layer.get_prunable_weights()) if hasattr(layer, "get_prunable_weights") else []


def clonable(model: Any) -> bool:
    """Whether the model can be cloned layer by layer."""
    return isinstance(model, tf_keras.Sequential) or (isinstance(model, tf_keras.Model) and model._is_graph_network)
