"""Assign one model's arrays to another model's weights by path, or by order if the names differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ..util.checks import check_arrays
from .types import Masks

Arrays = dict[str, np.ndarray]


def matched(mine: dict[str, Any], theirs: Mapping[str, np.ndarray], of: str) -> Arrays:
    """Map each path of `mine` to an array of `theirs`: by path, or by order if names differ ("dense", "dense_1").

    Raises:
        ValueError: they are no dict of arrays, there are more or fewer of them, or one has another shape or kind of
            dtype, or by order another name in its layer ("kernel", "bias" ...); the first that does is named.
    """
    check_numbers("arrays", theirs)
    if len(mine) != len(theirs):
        odd = next(
            f"the {of} has no variable {path!r}" if path in theirs else f"there is no array for {path!r}"
            for path in (theirs if len(theirs) > len(mine) else mine)
            if path not in mine or path not in theirs
        )
        raise ValueError(
            f"The arrays do not match this {of}: {len(theirs)} array{'s' * (len(theirs) != 1)} for {len(mine)} "
            f"variable{'s' * (len(mine) != 1)}; {odd}. Received: arrays={len(theirs)}"
        )
    by_path = all(path in theirs for path in mine)
    pairs = {path: theirs[path] for path in mine} if by_path else dict(zip(mine, theirs.values(), strict=True))
    for path, array in pairs.items():
        shape = tuple(mine[path].shape)
        if array.shape != shape:
            raise ValueError(
                f"The arrays do not match this {of}: {path} has shape {shape}. Received: shape={array.shape}"
            )
        dtype = getattr(mine[path], "dtype", None)
        if dtype is not None and _family(array.dtype) != _family(dtype):
            raise ValueError(
                f"The arrays do not match this {of}: {path} has dtype {keras.backend.standardize_dtype(dtype)}. "
                f"Received: dtype={array.dtype}"
            )
    for path, other in () if by_path or of != "model" else zip(mine, theirs, strict=True):
        if _kind(path) != _kind(other):
            raise ValueError(
                f"The arrays do not match this {of}: expected {path}, got {other}. Received: array={other!r}"
            )
    return pairs


def check_numbers(name: str, arrays: Any) -> None:
    """Raise ValueError unless `arrays` is a dict that maps names to numeric NumPy arrays.

    >>> check_numbers("masks", {"dense/kernel": np.ones((4, 3), bool)})
    """
    check_arrays(name, arrays)
    for path, array in arrays.items():
        if array.dtype.kind not in "biufcV":  # "V": bfloat16
            raise ValueError(
                f"Each value of `{name}` must be a NumPy array of numbers. Received: {name}[{path!r}]={array!r:.200}"
            )


def _family(dtype: Any) -> str:
    """Return the family of a dtype ("float", "int", "bool" ...); arrays fit variables of the same family."""
    name = getattr(dtype, "name", str(dtype))
    return "float" if "float" in name else re.sub(r"^u|\d", "", name)


def _kind(path: str) -> str:
    """Return a weight's name within its layer, without the suffix that Keras appends to make names unique."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", path.rsplit("/", 1)[-1])


def mask_distance(one: Masks, other: Masks) -> float:
    """Return the fraction of entries that differ, the normalized Hamming distance of two masks (arXiv:1909.11957).

    distance = number of entries kept by one mask alone / number of entries, over all weights

    Args:
        one, other: path -> bool array, True = kept; of the same weights, matched by path or, where the names differ,
            by order.

    Returns:
        0 for equal masks; at most 2 * min(sparsity, 1 - sparsity) for two of one sparsity.

    Raises:
        ValueError: they are of other weights.

    >>> one, other = np.array([True, True, False, False]), np.array([True, False, True, False])
    >>> mask_distance({"kernel": one}, {"kernel": other})
    0.5
    """
    for name, masks in (("one", one), ("other", other)):
        check_numbers(name, masks)
    others = matched(one, other, "model")
    return sum(int((mask != others[path]).sum()) for path, mask in one.items()) / max(
        1, sum(m.size for m in one.values())
    )
