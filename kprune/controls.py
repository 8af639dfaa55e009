"""Controls: baselines with which to compare a pruning result before making claims about a method.

Does the ranking matter? `inverted` keeps the least salient weights. Does it matter which weights of a layer are kept,
or only how many? `shuffle_masks`. Do their initial values matter, or only their signs? `reinitialize`. Does the method
only train for longer? `matched_epochs`. See arXiv:2009.08576, 2009.11094, 1905.01067 and 1810.05270; one more control,
random masks with the densities of a method, is criterion "random" with `kprune.scopes.per_layer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .criteria import CRITERIA, Context, Scores
from .experiments.fresh import draw, owners, statistics
from .lottery.rewind import Arrays, matched, model_weights
from .masks import Masks, masked, masked_weights, set_masks
from .report.summary import summary
from .runtime.distribution import to_numpy
from .runtime.optimizers import reset_slots
from .util.checks import received_with


@CRITERIA.maker
def inverted(criterion: str | Callable[..., Any]) -> Callable[[Context], Scores]:
    """Return the negation of a criterion, which keeps the entries that the criterion prunes first (arXiv:2009.08576).

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
        raise ValueError(f"`criterion` must be a name or a function. Received: criterion={criterion!r}")
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
    """Shuffle each mask, so that every weight keeps as many entries as before but at random places (arXiv:2009.08576).

    The shape of the zeros is lost: shuffled 2:4, block or channel masks have none. The control of a pattern is
    `kprune.prune(model, "random", sparsity, pattern=...)`.

    Args:
        masks: path -> bool array, True = kept, in the model's order.
        seed: the same seed gives the same masks, on every run and machine.

    Returns:
        path -> bool array of the same shape, with as many True.

    Raises:
        ValueError: the seed is not an integer >= 0.

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
    """Shuffle each mask of a model, as `shuffled` does, and set the weights to the given values, if any.

    w <- where(shuffled mask, values, 0). What was pruned has lost its value: without `values`, an entry that the new
    mask keeps and the old one did not starts from 0, so most of a sparse weight does. To compare the masks and not
    the starts, give the weights' initial values. Biases, normalization and the optimizer's step count are left as they
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
        ValueError: the model has no masks, the seed is not an integer >= 0, a weight is missing in `values`, or a
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
        if not isinstance(values, Mapping) or set(values) != set(masks):
            raise ValueError(
                f"`values` must contain exactly one array per masked weight ({', '.join(masks)}). "
                f"Received: values={sorted(values) if isinstance(values, Mapping) else values!r}"
            )
        arrays = {path: np.asarray(value) for path, value in values.items()}
        starts = matched({weight.path: weight.variable for weight in weights}, arrays, "model")
    with masked(model, optimizer):
        set_masks(model, masks, optimizer)
        for weight in weights if values is not None else ():
            _begin(model, optimizer, weight.variable, np.where(masks[weight.path], starts[weight.path], 0))
    return masks


def reinitialize(
    model: Any,
    seed: int = 0,
    weights: str = "masked",
    optimizer: Any = None,
    signs: Mapping[str, np.ndarray] | None = None,
    constant: bool = False,
    entries: str = "kept",
) -> None:
    """Redraw the weights from each layer's own initializer and keep the masks (arXiv:1803.03635, 2009.08576).

    w <- where(mask, fresh draw, 0); with entries="pruned" the other way round: w <- where(mask, w, fresh draw), and
    the masks are lifted, as what is pruned is 0. So a dense network begins with the ticket's values, and all others
    anew. With `signs` and `constant` the variants of arXiv:1905.01067:

    - signs: w <- where(mask, sign(signs) * |fresh draw|, 0): other magnitudes, the signs of before.
    - signs and constant: w <- where(mask, sign(signs) * alpha, 0), the "signed constant": alpha is the standard
      deviation of the layer's initialization, here that of the fresh draw of the whole weight.
    - constant alone: w <- where(mask, sign(fresh draw) * alpha, 0): its control, with random signs.

    The seeds of the initializers do not matter, only the one given here. The optimizer's slots of these weights are
    reset; its step count, and so its learning rate, is not: compile again for that.

    Args:
        model: a masked model.
        seed: the same seed gives the same values, a seed that the model was not made with gives others.
        weights: "masked" for the masked weights only; "all" for every trainable weight, biases and normalization
            included, and for the moving statistics of normalization layers.
        optimizer: of a custom training loop; by default the compiled one.
        signs: path -> array of the weight's shape, for every masked weight: its sign is kept, where it is 0 the weight
            becomes 0. `ticket.weights` is one: a `kprune.Ticket` rewound to "init" holds the initial weights.
        constant: whether all entries of a masked weight that are drawn get the same magnitude.
        entries: "kept" or "pruned": which entries of the masked weights are drawn. With "pruned", `weights` must be
            "masked".

    Raises:
        ValueError: the model has no masks, `seed` or `weights` is wrong, `signs` are of another model, a layer has no
            initializer for its weight that can be seeded, or, with `constant`, one that draws the same value for all
            entries. Nothing has been changed then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> _ = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> before = kprune.masked_weights(model)[0].value()
    >>> reinitialize(model, seed=1)
    >>> after = kprune.masked_weights(model)[0].value()
    >>> bool(((before == 0) == (after == 0)).all()), bool((before == after)[before != 0].any())
    (True, False)
    >>> reinitialize(model, signs=kprune.Ticket.of(model).weights, constant=True)
    >>> signed = kprune.masked_weights(model)[0].value()
    >>> bool((np.sign(signed) == np.sign(after)).all()), np.unique(np.abs(signed)).size  # 0 and alpha
    (True, 2)
    >>> reinitialize(model, seed=2, entries="pruned")
    >>> dense = kprune.masked_weights(model)[0].value()
    >>> bool((dense != 0).all()), bool((dense == signed)[signed != 0].all())
    (True, True)
    """
    _check_seed(seed)
    if weights not in ("masked", "all"):
        raise ValueError(f"`weights` must be 'masked' or 'all'. Received: weights={weights!r}")
    if entries not in ("kept", "pruned") or (entries == "pruned" and weights == "all"):
        raise ValueError(
            "`entries` must be 'kept' or 'pruned', and 'pruned' requires weights='masked'. Received: "
            f"entries={entries!r}, weights={weights!r}"
        )
    owned = _masked(model)
    signs = None if signs is None else _signs(model, signs)
    kept = {id(weight.variable): weight.kept() for weight in owned}
    chosen = [(weight.path, weight.variable) for weight in owned]
    if weights == "all":
        others = [*model.trainable_weights, *statistics(model)]
        chosen += [(getattr(v, "path", v.name), v) for v in others if id(v) not in kept]
    made_by = owners(model)
    fresh = []
    for position, (path, variable) in enumerate(chosen):
        value = draw(path, variable, made_by.get(id(variable)), [seed, position])
        if id(variable) in kept and (constant or signs is not None):
            sign = np.sign(value if signs is None else signs[path])
            value = sign * (_deviation(path, value) if constant else np.abs(value))
        old = 0 if entries == "kept" else to_numpy(variable)
        fresh.append((variable, np.where(kept.get(id(variable), True) == (entries == "kept"), value, old)))
    with masked(model, optimizer):
        if entries == "pruned":
            set_masks(model, {weight.path: np.ones(weight.shape, bool) for weight in owned}, optimizer)
        for variable, value in fresh:
            _begin(model, optimizer, variable, value)


def matched_epochs(model: Any, epochs: int) -> int:
    """Return how many epochs of the pruned network cost as much as `epochs` of the dense network (arXiv:1810.05270).

    B = floor(epochs * multiply-adds of the dense network / multiply-adds that the masks leave), for one example

    Trained from scratch for as many epochs as the dense network ("Scratch-E"), a pruned one has had less computation;
    for B epochs ("Scratch-B"), as much. Both are fits under the masks of a ticket, from fresh values.

    Args:
        model: a masked model; multiply-adds of kernels without a mask count on both sides, see `kprune.summary`.
        epochs: of the dense training.

    Returns:
        B, at least `epochs`.

    Raises:
        ValueError: `epochs` is not an integer >= 1; the model has no masks, its multiply-adds are not known,
            or the masks leave none.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.ones((32, 8)), np.ones((32, 1))
    >>> def train(model, level):
    ...     return model.fit(x, y, epochs=2, callbacks=level.callbacks, verbose=0)
    >>> ticket = kprune.find_ticket(model, train, levels=1, rate=0.75, verbose=0)
    >>> matched_epochs(model, 2)  # 8 * 16 + 16 multiply-adds, of which a quarter is left
    8
    >>> for epochs in (2, matched_epochs(model, 2)):  # scratch-E, scratch-B
    ...     ticket.apply(model)
    ...     reinitialize(model, seed=1, weights="all")
    ...     model.compile("adam", "mse")
    ...     _ = model.fit(x, y, epochs=epochs, verbose=0)
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"`epochs` must be an integer >= 1. Received: epochs={epochs!r}")
    _masked(model)
    report = summary(model)
    dense, left, other = report.flops, report.effective_flops, report.other_flops
    if dense is None or left is None or other is None:
        raise ValueError(
            f"The model's multiply-adds are unknown. Cause: {received_with(report.note, f'epochs={epochs}')}"
        )
    if left + other == 0:
        raise ValueError(
            f"The model is pruned completely: no multiply-adds remain. Received: model={model.name!r}, "
            f"effective_flops={left}, other_flops={other}"
        )
    return epochs * (dense + other) // (left + other)


def _begin(model: Any, optimizer: Any, variable: Any, value: np.ndarray) -> None:
    """Give a weight a starting value, and reset its state in the optimizer."""
    variable.assign(value.astype(to_numpy(variable).dtype))
    optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
    if optimizer is not None:
        reset_slots(optimizer, variable)


def _masked(model: Any) -> list[Any]:
    weights = masked_weights(model)
    if not weights:
        raise ValueError(f"The model has no masks: call kprune.mask first. Received: model={model.name!r}")
    return weights


def _signs(model: Any, signs: Mapping[str, np.ndarray]) -> Arrays:
    """Map each masked weight's path to its array in `signs`, a dict of the masked weights or of all weights."""
    masked = {weight.path: weight for weight in _masked(model)}
    wrong = "`signs` must contain an array for every masked weight, as ticket.weights does."
    if not isinstance(signs, Mapping):
        raise ValueError(f"{wrong} Received: signs={signs!r}")
    arrays = {path: np.asarray(array) for path, array in signs.items()}
    try:
        if masked.keys() <= arrays.keys():
            return matched(masked, {path: arrays[path] for path in masked}, "model")
        found = matched(model_weights(model), arrays, "model")
    except ValueError as error:
        raise ValueError(f"{wrong} {received_with(str(error), f'signs={sorted(signs)}')}") from error
    return {path: found[path] for path in masked}


def _deviation(path: str, drawn: np.ndarray) -> float:
    deviation = float(np.std(drawn.astype(np.float64)))
    if deviation == 0:
        raise ValueError(
            f"The initializer of {path} draws the same value for all entries, so its standard deviation is 0 and "
            "cannot be used as the constant: pass constant=False. Received: constant=True"
        )
    return deviation


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"`seed` must be an integer >= 0. Received: seed={seed!r}")


__all__ = ["inverted", "matched_epochs", "reinitialize", "shuffle_masks", "shuffled"]
