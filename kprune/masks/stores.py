"""Byte vectors in Keras weight files, checked before they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np


def read_bytes(store: Any, key: str, name: str, size: int | None = None) -> np.ndarray:
    """The uint8 vector stored under a key (in the store that `load_own_variables` is given).

    HDF5 compresses, fills and chunks, so that a file of a few kB can ask for any amount of memory. Here it cannot ask
    for more than it should.

    Args:
        store, key: where it is.
        name: what it is, for the error.
        size: the number of bytes that it must have; None takes at most as many as the file itself has.

    Raises:
        ValueError: it is something else, or is laid out in chunks that are larger than it may be.
    """
    for dataset in _datasets(store, key):
        _check(dataset, name, dataset.file.id.get_filesize() if size is None else size, size)
    vector = np.asarray(store[key])
    _check(vector, name, vector.size if size is None else size, size)
    return vector


def _check(found: Any, name: str, most: int, size: int | None) -> None:
    shape, dtype = tuple(found.shape), str(found.dtype)
    chunk = math.prod(getattr(found, "chunks", None) or ())  # is read whole, for however few bytes
    if dtype != "uint8" or len(shape) != 1 or shape[0] > most or shape[0] != (size or shape[0]) or chunk > max(most, 1):
        expected = f"at most {most:,}" if size is None else f"{size:,}"
        raise ValueError(
            f"The file's {name} must be {expected} bytes long. Received: shape={shape}, dtype={dtype}, chunk={chunk}"
        )


def _datasets(store: Any, key: str) -> Iterator[h5py.Dataset]:
    """The HDF5 datasets that the store reads for a key; none for other kinds of store.

    It reads them whole, and has no public way to look at one first: `_h5_entry_group`, and where it is spread over
    several files `_switch_h5_file`, are used here and nowhere else (checked with Keras 3.13.2 and 3.15.1;
    tests/test_fuzz.py).
    """
    group = getattr(store, "_h5_entry_group", {})
    others = () if key in group else getattr(store, "current_shard_filenames", ())
    if key in group:
        yield from _dataset(group, key)
    for file in others:
        store._switch_h5_file(file, mode="r")
        yield from _dataset(store._h5_entry_group, key)
    if others:
        store._restore_h5_file()


def _dataset(group: Any, key: str) -> Iterator[h5py.Dataset]:
    # Keras refuses links, to other files too; to look where one leads is to follow it.
    linked = key in group and not isinstance(group.get(key, getlink=True), h5py.HardLink)
    if key in group and not linked and isinstance(group[key], h5py.Dataset):
        yield group[key]
