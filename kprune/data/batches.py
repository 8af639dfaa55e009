"""Batches of data for criteria that need them, and class-balanced samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Set
from itertools import islice
from typing import Any

import keras
import numpy as np

from ..util.checks import check_integer

# One batch: inputs, targets and sample weights (None if there are none), each an array or a structure of arrays.
Batch = tuple[Any, Any, Any]

BATCH_SIZE = 256
_NO_BATCHES = (str, bytes, Set, np.generic)  # though one can go through them
# What `batches=None` takes at most of data that do not say how many batches they hold, and may never end.
MOST_BATCHES, MOST_BYTES = 10_000, 2**32


def check_batches(batches: int | None) -> None:
    """Raise ValueError unless `batches` is an integer >= 1 or None."""
    if batches is not None and (not isinstance(batches, int) or isinstance(batches, bool) or batches < 1):
        raise ValueError(f"`batches` must be an integer >= 1, or None for all. Received: batches={batches!r}")


def take_batches(data: Any, batches: int | None = 1) -> list[Batch]:
    """Return the first batches of any kind of data, as NumPy arrays.

    Args:
        data: a tuple of arrays `(x,)`, `(x, y)` or `(x, y, sample_weight)`, cut into batches of 256 in their order;
            an array or a dict of arrays, which is x alone; or anything that yields such batches itself: a
            `tf.data.Dataset`, a generator, a list of tuples, a `keras.utils.PyDataset`. `x` and `y` may be lists or
            dicts of arrays.
        batches: how many to take, fewer if there are fewer; None for all.

    Returns:
        A list of (x, y or None, sample_weight or None).

    Raises:
        ValueError: `batches` is not an integer >= 1, the data hold no batch, or what is no array or differs in length,
            or all batches are asked for of data without end: those that say so, or that do not end within 10,000
            batches and 4 GiB.

    >>> x, y = np.zeros((300, 8)), np.zeros(300)
    >>> [len(batch[0]) for batch in take_batches((x, y), batches=None)]
    [256, 44]
    """
    check_batches(batches)
    if isinstance(data, np.ndarray | dict):
        data = (data,)
    if isinstance(data, tuple):
        source = _slices(data)
    elif not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")) or isinstance(data, _NO_BATCHES):
        raise ValueError(
            "`data` must be a tuple (x, y), or an iterable of such tuples, for example a tf.data.Dataset, a "
            f"generator or a list of batches. Received: data={type(data).__name__}"
        )
    else:
        source = _finite(data) if batches is None else iter(data)
    taken = []
    for batch in islice(source, None if batches is None else min(batches, sys.maxsize)):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        taken.append((_arrays(x), _arrays(y), _arrays(weight)))
        _shapes((taken[-1][0],))  # whose parts, of a graph say, may differ in length
    if not taken or not len(keras.tree.flatten(taken[0][0])[0]):
        raise ValueError(f"`data` must contain at least one example. Received: data={type(data).__name__}")
    return taken


def balanced_sample(x: Any, y: Any, per_class: int = 10, seed: int = 0) -> tuple[Any, Any]:
    """Draw the same number of examples per class, without replacement: the recommended data for SNIP and GraSP.

    Args:
        x: array, or structure of arrays, whose first axis is the example.
        y: class ids (n,) or (n, 1), or one-hot (n, classes).
        per_class: examples of each class; all of those of a class that has fewer.
        seed: of the draw.

    Returns:
        (x, y) of the examples drawn, in the order of the classes' ids: of more than 256 the first batch lacks the last
        classes, so score with batches=None.

    Raises:
        ValueError: `per_class` is below 1, `seed` below 0, or x and y differ in length.

    >>> x, y = balanced_sample(np.arange(6), np.array([0, 0, 0, 0, 1, 1]), per_class=2)
    >>> y.tolist()
    [0, 0, 1, 1]
    """
    y = np.asarray(y)
    shapes = [np.shape(part) for part in (*keras.tree.flatten(x), y)]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"`x` and `y` must be arrays with the same number of examples. Received: shapes={shapes[:4]}")
    check_integer("per_class", per_class, 1)
    check_integer("seed", int(seed) if isinstance(seed, np.integer) else seed, 0)
    ids = y.argmax(-1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)
    draw = np.random.default_rng(seed)
    chosen = np.concatenate([draw.permutation(np.flatnonzero(ids == c))[:per_class] for c in np.unique(ids)])
    return keras.tree.map_structure(lambda part: np.asarray(part)[chosen], x), y[chosen]


def examples(batch: Batch) -> Iterator[Batch]:
    """Yield each example of a batch as a batch of one."""
    for i in range(len(keras.tree.flatten(batch[0])[0])):
        yield tuple(  # type: ignore[misc]
            part if part is None else keras.tree.map_structure(lambda array, i=i: array[i : i + 1], part)
            for part in batch
        )


def _finite(data: Any) -> Iterator[Any]:
    """Yield all batches of an iterable; raise ValueError if it never ends or, without a length, exceeds a limit."""
    endless = "`data` never ends: pass `batches`, the number of batches to use. Received: batches=None"
    if hasattr(data, "cardinality") and int(data.cardinality()) == -1:  # of a tf.data.Dataset: infinite
        raise ValueError(endless)
    if isinstance(data, keras.utils.PyDataset) and data.num_batches is None:
        raise ValueError(endless)
    size = 0
    known = hasattr(data, "__len__")
    for n, batch in enumerate(data):
        size += 0 if known else sum(getattr(part, "nbytes", 0) or np.asarray(part).nbytes for part in _leaves(batch))
        if not known and (n >= MOST_BATCHES or size > MOST_BYTES):
            raise ValueError(
                f"`data` exceeds {MOST_BATCHES} batches or {MOST_BYTES / 2**30:.3g} GiB: pass `batches`, "
                "the number of batches to use. Received: batches=None"
            )
        yield batch


def _slices(data: tuple[Any, ...]) -> Iterator[Batch]:
    if len(data) not in (1, 2, 3):
        raise ValueError(
            f"A tuple passed as `data` must be (x,), (x, y) or (x, y, sample_weight). Received: length={len(data)}"
        )
    arrays = _arrays(tuple(data))
    for start in range(0, _lengths(arrays), BATCH_SIZE):
        yield keras.tree.map_structure(
            lambda array, start=start: array[start : start + BATCH_SIZE], arrays, none_is_leaf=False
        )


def _leaves(structure: Any) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


def _arrays(structure: Any) -> Any:
    try:
        return keras.tree.map_structure(np.asarray, structure, none_is_leaf=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`data` must contain arrays: {error}. Received: data={structure!r:.200}") from error


def _lengths(arrays: Any) -> int:
    """Return the number of examples in these arrays; raise ValueError if lengths differ or there are no arrays."""
    lengths = {shape[0] for shape in _shapes(arrays)}
    if len(lengths) != 1:
        raise ValueError(f"`x` and `y` must have the same number of examples. Received: lengths={sorted(lengths)}")
    return lengths.pop()


def _shapes(arrays: Any) -> list[tuple[int, ...]]:
    """Return the shape of each array; raise ValueError if any is a scalar or if x contains no arrays."""
    shapes = [np.shape(array) for array in _leaves(arrays)]
    if not _leaves(arrays[0]) or not all(shapes):
        raise ValueError(
            f"`data` must contain arrays, x first, with examples along the first axis. Received: shapes={shapes[:4]}"
        )
    return shapes
