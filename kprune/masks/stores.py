"""Byte vectors in Keras weight files, checked before they are read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import numpy as np

_DEFLATE = 1
# With shuffled bytes and checksums; others may unpack to any size, and cannot be looked into from here.
_FILTERS = {_DEFLATE, 2, 3}
_CHECKSUM = 4  # bytes
_STEP = 2**16
# Of the 8 KiB or more that h5py makes a chunk of, these are an array of 1 GiB.
_MOST_CHUNKS = 2**17


def check_chunks(dataset: h5py.Dataset) -> None:
    """Reject chunks that unpack to more than the chunk size, because HDF5 would allocate memory for the whole result.

    Raises:
        ValueError: there are such, or they are packed in another way than by gzip, once.
    """
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if not set(filters) <= _FILTERS or filters.count(_DEFLATE) > 1:
        raise ValueError(f"the array {dataset.name!r:.80} is compressed by something other than a single gzip filter")
    if _DEFLATE not in filters:
        return
    if (count := dataset.id.get_num_chunks()) > _MOST_CHUNKS:
        raise ValueError(
            f"the array {dataset.name!r:.80} is split into {count:,} chunks, more than the limit of {_MOST_CHUNKS:,}"
        )
    most = math.prod(dataset.chunks) * dataset.dtype.itemsize + _CHECKSUM
    found: list[tuple[int, Any]] = []
    dataset.id.chunk_iter(lambda chunk: found.append((chunk.size, chunk.chunk_offset)))
    if sum(size for size, _ in found) > dataset.file.id.get_filesize():
        raise ValueError(f"the chunks of the array {dataset.name!r:.80} are larger than the file")
    for _, offset in found:
        _, raw = dataset.id.read_direct_chunk(offset)
        if unpacks_beyond([raw], zlib.MAX_WBITS, most):
            raise ValueError(f"a chunk of the array {dataset.name!r:.80} unpacks to more than {most:,} bytes")


def unpacks_beyond(pieces: Iterable[bytes], window: int, most: int) -> bool:
    """Whether zlib-compressed data unpacks to more than `most` bytes, without keeping the unpacked data.

    >>> packed = zlib.compress(bytes(10**6))
    >>> unpacks_beyond([packed], zlib.MAX_WBITS, 10**6), unpacks_beyond([packed], zlib.MAX_WBITS, 10**6 - 1)
    (False, True)
    """
    stream, total = zlib.decompressobj(window), 0
    for piece in pieces:
        while piece and not stream.eof and total <= most:
            total += len(stream.decompress(piece, _STEP))
            piece = stream.unconsumed_tail
    return total > most


def read_bytes(store: Any, key: str, name: str, size: int | None = None) -> np.ndarray:
    """Return the uint8 vector stored under a key (in the store passed to `load_own_variables`).

    HDF5 compresses, fills and chunks, so that a file of a few kB can ask for any amount of memory. Here it cannot ask
    for more than it should.

    Args:
        store, key: where it is.
        name: what it is, for the error.
        size: the number of bytes that it must have; None takes at most as many as the file itself has.

    Raises:
        ValueError: it is something else, or is laid out in chunks that are larger than it may be, or unpack to more.
    """
    for dataset in _datasets(store, key):
        _check(dataset, name, dataset.file.id.get_filesize() if size is None else size, size)
        try:
            check_chunks(dataset)
        except (ValueError, zlib.error) as error:
            raise ValueError(
                f"The file's {name} cannot be read: {error}. Received: array={dataset.name!r:.80}"
            ) from None
    vector = np.asarray(store[key])
    _check(vector, name, vector.size if size is None else size, size)
    return vector


def _check(found: Any, name: str, most: int, size: int | None) -> None:
    shape, dtype = tuple(found.shape), str(found.dtype)
    chunk = math.prod(getattr(found, "chunks", None) or ())  # is read whole, for however few bytes
    if dtype != "uint8" or len(shape) != 1 or shape[0] > most or shape[0] != (size or shape[0]) or chunk > max(most, 1):
        expected = f"at most {most:,}" if size is None else f"{size:,}"
        raise ValueError(
            f"The file is damaged or belongs to another model: its {name} must contain {expected} bytes. Received: "
            f"shape={shape}, dtype={dtype}, chunk={chunk}"
        )


def _datasets(store: Any, key: str) -> Iterator[h5py.Dataset]:
    """Yield the HDF5 datasets that the store reads for a key; other kinds of store have none.

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
