"""Controls: what a pruning result is to be compared with before anything is claimed for the method.

Does the ranking matter? `inverted` keeps the least salient weights. Does it matter which weights of a layer are kept,
or only how many? `shuffle_masks`. Do their initial values matter? `reinitialize`. See arXiv:2009.08576 and 2009.11094;
the fourth control, random masks with the densities of a method, is criterion "random" with `kprune.scopes.per_layer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .criteria import CRITERIA, Context, Scores
from .layers import all_layers
from .masks import Masks, is_tf_keras, masked_weights, set_masks
from .optimizers import reset_slots


def inverted(criterion: str | Callable[..., Any]) -> Callable[[Context], Scores]:
    """A criterion that keeps what another would prune first: score = -(its score) (arXiv:2009.08576).

    Args:
        criterion: a name from `kprune.criteria.CRITERIA`, or a function of a `kprune.criteria.Context`.

    Returns:
        A criterion with the traits of the other, such as its number of rounds.

    Raises:
        ValueError: the name is not known.

    >>> import keras, kprune
    >>> dense = keras.layers.Dense(2, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> dense.set_weights([np.array([[1.0, -4.0], [-3.0, 2.0]])])
    >>> _ = kprune.prune(model, inverted("magnitude"), sparsity=0.5)
    >>> dense.kernel.numpy().tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    if not isinstance(criterion, str) and not callable(criterion):
        raise ValueError(f"Expected a name or a function. Received: criterion={criterion!r}")
    score = CRITERIA.get(criterion)
    plain = score
    while isinstance(plain, functools.partial):  # which shows nothing of its function's traits
        plain = plain.func

    @functools.wraps(plain)
    def negative(context: Context) -> Scores:
        return {path: np.multiply(values, -1.0) for path, values in score(context).items()}

    negative.__name__ = f"inverted {CRITERIA.name_of(criterion)}"
    return negative


def shuffled(masks: Masks, seed: int = 0) -> Masks:
    """Each mask's entries in a random order: as many are kept of each weight, but others (arXiv:2009.08576).

    The shape of the zeros is lost: shuffled 2:4, block or channel masks have none. The control of a pattern is
    `kprune.prune(model, "random", sparsity, pattern=...)`.

    Args:
        masks: path -> bool array, True = kept, in the model's order.
        seed: the same seed gives the same masks, on every run and machine.

    Returns:
        path -> bool array of the same shape, with as many True.

    Raises:
        ValueError: the seed is not a whole number, at least 0.

    >>> masks = shuffled({"kernel": np.arange(10) < 4}, seed=1)
    >>> int(masks["kernel"].sum())
    4
    """
    _check_seed(seed)
    return {
        path: np.random.default_rng([seed, position]).permutation(np.ravel(mask)).reshape(np.shape(mask))
        for position, (path, mask) in enumerate(masks.items())
    }


def shuffle_masks(
    model: Any, seed: int = 0, values: dict[str, np.ndarray] | None = None, optimizer: Any = None
) -> Masks:
    """Shuffle each mask of a model within its own weight, as `shuffled` does, and start from given values.

    w <- where(shuffled mask, values, 0). What was pruned has lost its value: without `values`, an entry that the new
    mask keeps and the old one did not starts from 0, so most of a sparse weight does. To compare the masks and not
    the starts, give the weights' initial values. Biases, normalisation and the optimizer's step count are left as they
    are; to begin from scratch, restore them too (`model.set_weights`, `model.compile`).

    Args:
        model: a masked model.
        seed: of the shuffle.
        values: path -> array of the weight's shape, for every masked weight, such as the initial ones of the example.
        optimizer: of a custom training loop; by default the compiled one. Its slots are reset where the masks change,
            of all that is kept too if `values` are given.

    Returns:
        path -> bool array of the weight's shape, True = kept: the masks that the model has now.

    Raises:
        ValueError: the model has no masks, the seed is not a whole number >= 0, a weight is missing in `values`, or a
            path or shape there is wrong. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> _ = kprune.mask(model)
    >>> initial = {weight.path: weight.value() for weight in kprune.masked_weights(model)}
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.9)  # here in reality the model is trained, then pruned
    >>> masks = shuffle_masks(model, seed=1, values=initial)
    >>> weight = kprune.masked_weights(model)[0]
    >>> bool((weight.value() == np.where(masks[weight.path], initial[weight.path], 0)).all())
    True
    """
    weights = _masked(model)
    masks = shuffled({weight.path: weight.kept() for weight in weights}, seed)
    if values is not None:
        if set(values) != set(masks):
            raise ValueError(
                f"`values` has an array for each masked weight, {', '.join(masks)}, and no other. "
                f"Received: values={sorted(values)}"
            )
        for weight in weights:
            if np.shape(values[weight.path]) != weight.shape:
                raise ValueError(
                    f"The values of {weight.path} must be of shape {weight.shape}. "
                    f"Received: shape={np.shape(values[weight.path])}"
                )
    set_masks(model, masks, optimizer)
    if values is not None:
        for weight in weights:
            _begin(model, optimizer, weight.variable, np.where(masks[weight.path], values[weight.path], 0))
    return masks


def reinitialize(model: Any, seed: int = 0, weights: str = "masked", optimizer: Any = None) -> None:
    """Draw the weights anew from each layer's own initializer; the masks stay (arXiv:1803.03635, 2009.08576).

    w <- where(mask, fresh draw, 0). The seeds of the initializers do not matter, only the one given here. The
    optimizer's slots of these weights are reset; its step count, and so its learning rate, is not: compile again for
    that.

    Args:
        model: a masked model.
        seed: the same seed gives the same values, a seed that the model was not made with gives others.
        weights: "masked" for the masked weights only; "all" for every trainable weight, biases and normalisation
            included, and for the moving statistics of normalisation layers.
        optimizer: of a custom training loop; by default the compiled one.

    Raises:
        ValueError: the model has no masks, `seed` or `weights` is wrong, or a layer has no initializer for its weight
            that can be seeded. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> before = kprune.masked_weights(model)[0].value()
    >>> reinitialize(model, seed=1)
    >>> after = kprune.masked_weights(model)[0].value()
    >>> bool(((before == 0) == (after == 0)).all()), bool((before == after)[before != 0].any())
    (True, False)
    """
    _check_seed(seed)
    if weights not in ("masked", "all"):
        raise ValueError(f"`weights` is 'masked' or 'all'. Received: weights={weights!r}")
    masked = _masked(model)
    kept = {id(weight.variable): weight.kept() for weight in masked}
    chosen = [(weight.path, weight.variable) for weight in masked]
    if weights == "all":
        others = [*model.trainable_weights, *_statistics(model)]
        chosen += [(getattr(v, "path", v.name), v) for v in others if id(v) not in kept]
    owners = _owners(model)
    fresh = []
    for position, (path, variable) in enumerate(chosen):
        value = _draw(path, variable, owners.get(id(variable)), [seed, position])
        fresh.append((variable, np.where(kept.get(id(variable), True), value, 0)))
    for variable, value in fresh:
        _begin(model, optimizer, variable, value)


def _begin(model: Any, optimizer: Any, variable: Any, value: np.ndarray) -> None:
    """Give a weight a value to start from, with no trace of the old one in the optimizer."""
    variable.assign(value.astype(np.asarray(variable.numpy()).dtype))
    optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
    if optimizer is not None:
        reset_slots(optimizer, variable, np.ones(tuple(variable.shape), bool))


def _masked(model: Any) -> list[Any]:
    weights = masked_weights(model)
    if not weights:
        raise ValueError(f"The model has no masks: call kprune.mask first. Received: model={model.name!r}")
    return weights


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"`seed` is a whole number, at least 0. Received: seed={seed!r}")


def _attributes(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """(layer, attribute without leading underscores, value) of all layers; those of Keras name their weights so."""
    below = model.submodules if is_tf_keras(model) else all_layers(model)
    for layer in [model, *below]:
        for name, value in vars(layer).items():
            yield layer, name.lstrip("_"), value


def _owners(model: Any) -> dict[int, tuple[Any, str]]:
    """id of a weight -> the layer that made it, and the name by which the layer knows it."""
    return {id(value): (layer, name) for layer, name, value in _attributes(model) if hasattr(value, "assign")}


def _statistics(model: Any) -> list[Any]:
    """The moving means and variances of normalisation layers that train."""
    found = {id(v): v for layer, name, v in _attributes(model) if name.startswith("moving_") and layer.trainable}
    return [v for v in found.values() if hasattr(v, "assign")]


def _draw(path: str, variable: Any, owner: tuple[Any, str] | None, seed: list[int]) -> np.ndarray:
    """A fresh value of a weight from its layer's initializer, cloned with a seed of its own."""
    layer, name = owner or (None, "")
    # A separable layer's "pointwise_kernel" is drawn by its `pointwise_initializer`, a depthwise layer's "kernel" by
    # its `depthwise_initializer`.
    names = [f"{name}_initializer", f"{name.removesuffix('_kernel')}_initializer"]
    names += ["depthwise_initializer"] if name == "kernel" else []
    initializer: Any = next((getattr(layer, n) for n in names if getattr(layer, n, None) is not None), None)
    if not hasattr(initializer, "get_config") or not hasattr(initializer, "from_config"):
        raise ValueError(
            f"{path} cannot be drawn anew: its layer has no initializer for it that can be seeded. "
            f"Received: layer={getattr(layer, 'name', None)!r}, initializer={initializer!r}"
        )
    config = initializer.get_config()
    if "seed" in config:
        config["seed"] = int(np.random.default_rng(seed).integers(2**31 - 1))
    drawn = type(initializer).from_config(config)(tuple(variable.shape), dtype=variable.dtype)
    value = np.array(drawn)
    if name == "bias" and getattr(layer, "unit_forget_bias", False):  # an LSTM opens its forget gates itself
        value[value.size // 4 : value.size // 2] = 1
    return value
