"""Check a checkpoint's index before TensorFlow reads it, because a crafted index could crash the process.

TensorFlow takes the shapes in an index for valid, and aborts where they are not. The index is a table of LevelDB's:
blocks of sorted entries, each key behind what it shares with the one before, and a last block that says where the
others are. (Read in TensorFlow 2.20 and 2.21.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
# Some 500 bytes per variable; a message of two bytes takes about a hundred in memory.
_MOST_GRAPH = 2**22
_MOST_ENTRIES, _MOST_KEYS = 2**16, 2**24
_MOST_INDEX, _MOST_ENTRY = 2**26, 2**16  # bytes; an entry of TensorFlow's takes some 30
_MOST_AXES = 254  # of TensorFlow's shapes
_REFERENCES = 100  # DataTypes above it are references to variables, which no file holds


def check_index(path: Path) -> None:
    """Reject an index with contents that no TensorFlow checkpoint has.

    Args:
        path: the `.index` file.

    Raises:
        ValueError: it is no such table, or has more entries, or a larger graph of objects, than a model needs; or an
            entry's shape, slices or dtype cannot be.
    """
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

    if (size := path.stat().st_size) > _MOST_INDEX:
        raise ValueError(f"its index is {size:,} bytes, more than the limit of {_MOST_INDEX:,}")
    data = path.read_bytes()
    for key, value in _entries(data):
        if not key:  # the header
            continue
        entry = BundleEntryProto.FromString(value)
        sizes = [dim.size for dim in entry.shape.dim]
        slices = [tuple((e.start, e.length) for e in one.extent) for one in entry.slices]
        possible = len(sizes) <= _MOST_AXES and min([0, *sizes]) == 0 and len(set(slices)) == len(slices)
        possible &= all(_lies_within(one, sizes) for one in slices)
        if not possible or math.prod(max(size, 1) for size in sizes) >= 2**63 or entry.dtype > _REFERENCES:
            raise ValueError(f"its index lists {key!r:.80} with an impossible shape, slice or dtype")
        if key == _GRAPH and (sizes or entry.size > _MOST_GRAPH):
            raise ValueError(f"its object graph is {entry.size:,} bytes, more than the limit of {_MOST_GRAPH:,}")


def _lies_within(extents: tuple[tuple[int, int], ...], sizes: list[int]) -> bool:
    return len(extents) == len(sizes) and all(
        start >= 0 and length >= 0 and start + length <= size
        for (start, length), size in zip(extents, sizes, strict=True)
    )


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table in order."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("its index file is not a checkpoint index")
    position = len(data) - _FOOTER
    for _ in range(2):  # where a block lies that is not used
        _, position = _number(data, position)
    number = keys = spent = 0
    last = None
    for _, handle in _block(data, data[position:]):
        spent += _number(handle, _number(handle, 0)[1])[0]
        if spent > len(data):  # blocks that are read again and again
            raise ValueError("its index is damaged")
        for key, value in _block(data, handle):
            if len(value) > _MOST_ENTRY or (last is not None and key <= last):
                raise ValueError("its index is damaged")
            number, keys, last = number + 1, keys + len(key), key
            if number > _MOST_ENTRIES or keys > _MOST_KEYS:
                raise ValueError(f"its index has more than {_MOST_ENTRIES:,} entries, or names that are too long")
            yield key, value


def _block(data: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    start, at = _number(handle, 0)
    size, _ = _number(handle, at)
    block, kind = data[start : start + size], data[start + size : start + size + 1]
    if len(block) < 8 or kind != b"\0":
        raise ValueError("its index is damaged or compressed (TensorFlow never compresses it)")
    end = len(block) - 4 * (1 + struct.unpack("<I", block[-4:])[0])
    if not 0 <= end <= len(block) - 8:
        raise ValueError("its index is damaged")
    position, key, starts = 0, b"", {0}
    while position < end:
        at = position
        shared, position = _number(block, position)
        if not shared:
            starts.add(at)
        own, position = _number(block, position)
        length, position = _number(block, position)
        if shared > len(key) or position + own + length > end:
            raise ValueError("its index is damaged")
        key = key[:shared] + block[position : position + own]
        position += own
        yield key, block[position : position + length]
        position += length
    # A reader begins at any of the restarts: at others, it would see other entries than these.
    if not starts.issuperset(number for (number,) in struct.iter_unpack("<I", block[end:-4])):
        raise ValueError("its index is damaged")


def _number(data: bytes, position: int) -> tuple[int, int]:
    """Read a LevelDB varint, seven bits per byte; return it and the position after it."""
    found = 0
    for i, byte in enumerate(data[position : position + 10]):
        found |= (byte & 127) << (7 * i)
        if byte < 128:
            return found, position + i + 1
    raise ValueError("its index is damaged")
