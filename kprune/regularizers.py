"""Penalties that shrink weights or whole units during training, for any model after it is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from .masks import library_of
from .masks.keras3 import renew_functions
from .masks.layout import layout_in
from .masks.masked_layers import MaskedRegularizer, is_masked
from .masks.types import DEFAULT_WEIGHTS, Filters, matches
from .util.checks import check_expression, check_number, check_strings


@keras.saving.register_keras_serializable("kprune")
class GroupLasso(keras.regularizers.Regularizer):
    """Group lasso: strength * sum over the units of sqrt(n) * ||w||_2, where w holds the n weights that lead to a unit.

    It drives all weights of a unit to zero together, which `pattern="channel"` then prunes (arXiv:1608.03665). A unit
    that is exactly 0 has gradient 0.

    Args:
        strength: at least 0.
        axes: the axes of the weight that tell units apart; by default the last one, and under `regularize` those of the
            outputs of each layer.

    Raises:
        ValueError: an argument is wrong.

    >>> import keras, kprune
    >>> round(float(GroupLasso(0.5)(keras.ops.array([[3.0, 0.0], [4.0, 0.0]]))), 4)  # 0.5 * sqrt(2) * (5 + 0)
    3.5355
    """

    def __init__(self, strength: float, axes: Sequence[int] | None = None):
        check_number("strength", strength, ">= 0", lambda value: value >= 0)
        if axes is not None and not (isinstance(axes, list | tuple) and axes and all(type(a) is int for a in axes)):
            raise ValueError(f"`axes` must be a sequence of one or more integers. Received: axes={axes!r:.200}")
        self.strength, self.axes = float(strength), None if axes is None else tuple(axes)

    def __call__(self, weight: Any) -> Any:
        weight = ops.convert_to_tensor(weight)
        units = {axis % len(weight.shape) for axis in self.axes or (-1,)}
        others = [axis for axis in range(len(weight.shape)) if axis not in units]
        squares = ops.sum(ops.square(weight), axis=others)
        # The gradient of a square root at 0 is infinite.
        norms = ops.where(squares > 0, ops.sqrt(ops.where(squares > 0, squares, 1)), 0)
        return self.strength * math.sqrt(math.prod(weight.shape[axis] for axis in others)) * ops.sum(norms)

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "axes": self.axes}


@keras.saving.register_keras_serializable("kprune")
class WeightElimination(keras.regularizers.Regularizer):
    """Weight elimination: strength * sum of (w / scale)^2 / (1 + (w / scale)^2).

    About how many weights are larger than `scale`: it decays small weights, and leaves large ones nearly alone
    (Weigend, Rumelhart, Huberman: Generalization by Weight-Elimination with Application to Forecasting, NIPS 1990).

    Args:
        strength: at least 0.
        scale: what a large weight is; above 0.

    Raises:
        ValueError: an argument is wrong.

    >>> import keras, kprune
    >>> round(float(WeightElimination(2.0, scale=0.5)(keras.ops.array([0.0, 0.5, 1.5]))), 4)  # 2 * (0 + 1/2 + 9/10)
    2.8
    """

    def __init__(self, strength: float, scale: float = 1.0):
        check_number("strength", strength, ">= 0", lambda value: value >= 0)
        check_number("scale", scale, "> 0", lambda value: value > 0)
        self.strength, self.scale = float(strength), float(scale)

    def __call__(self, weight: Any) -> Any:
        squares = ops.square(ops.convert_to_tensor(weight) / self.scale)
        return self.strength * ops.sum(squares / (1 + squares))

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "scale": self.scale}


def regularize(
    model: Any,
    regularizer: Any,
    filters: Filters = None,
    weights: Sequence[str] = DEFAULT_WEIGHTS,
) -> tuple[str, ...]:
    """Give weights of a built model, masked or not, a regularizer that takes effect from the next step on.

    What was compiled is traced anew, nothing is compiled again by hand. A layer with the attribute for it, such as
    `kernel_regularizer`, saves it with its config.

    Args:
        model: a built Keras 3 model.
        regularizer: a `GroupLasso`, a `WeightElimination` or any other of Keras; None takes away what weights have.
        filters, weights: which weights, as in `kprune.mask`.

    Returns:
        The paths of these weights.

    Raises:
        ValueError: an argument is wrong, no weight is chosen, or one has a regularizer of its own. Nothing has been
            changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
    >>> [path.split("/", 1)[1] for path in kprune.regularize(model, GroupLasso(0.01), filters="a/")]
    ['a/kernel']
    >>> len(model.losses)
    1
    """
    library = library_of(model)
    if library.package is not keras:
        raise ValueError(
            "`regularize` supports Keras 3 models only. In tf_keras, pass `kernel_regularizer` to a layer when you "
            f"create it. Received: model={model.name!r}, library='tf_keras'"
        )
    if regularizer is not None and not callable(regularizer):
        raise ValueError(
            f"`regularizer` must be a Keras regularizer or None. Received: regularizer={regularizer!r:.100}"
        )
    names = check_strings("weights", weights)
    for expression in () if filters is None or callable(filters) else check_strings("filters", filters):
        check_expression(expression, "filters")
    found = [
        (layer, v)
        for layer, v in library.owned_weights(model)
        if library.weight_name(layer, v) in names and matches(filters, layer, v.path)
    ]
    if not found:
        raise ValueError(
            f"`filters` and `weights` select none of the model's weights. Received: filters={filters!r}, "
            f"weights={tuple(names)}"
        )
    own = [v.path for _, v in found if v.regularizer is not None]
    if regularizer is not None and own:
        raise ValueError(
            f"{own[0]} already has a regularizer: remove it with `kprune.regularize(model, None)`. Received: "
            f"regularizer={type(regularizer).__name__}"
        )
    for layer, v in found:
        one = regularizer
        if isinstance(one, GroupLasso) and one.axes is None:
            one = GroupLasso(one.strength, _output_axes(layer, v))
        holder = getattr(layer, "cell", layer)
        if hasattr(holder, f"{v.name}_regularizer"):
            setattr(holder, f"{v.name}_regularizer", one)
        v.regularizer = _under_mask(layer, v, one)
    renew_functions(model, [layer for layer, _ in found])
    return tuple(v.path for _, v in found)


def _output_axes(layer: Any, v: Any) -> tuple[int, ...]:
    """Return the axes of a weight's own shape that its layout treats as outputs."""
    layout, count = layout_in(layer, v), 1
    while math.prod(layout.given[axis] for axis in layout.axes[-count:]) < layout.shape[-1]:
        count += 1
    return layout.axes[-count:]


def _under_mask(layer: Any, v: Any, regularizer: Any) -> Any:
    """Return the regularizer for the value that a layer reads: the masked value, if the weight is masked."""
    if regularizer is not None and is_masked(layer):
        store = layer.mask_store
        for weight, mask in zip(store.masked, store.masks, strict=True):
            if weight is v:
                return MaskedRegularizer(regularizer, mask, store.behind)
    return regularizer


__all__ = ["GroupLasso", "WeightElimination", "regularize"]
