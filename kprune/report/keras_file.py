"""Read the metadata and config of a `.keras` file, with size checks, before any library loads the file."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py

from ..masks.stores import check_chunks, unpacks_beyond

_METADATA, _CONFIG, _WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
# Keras writes some 100 bytes of metadata, and some 500 bytes of config per layer.
_LIMITS = {_METADATA: 2**16, _CONFIG: 2**23}
# Lists and dicts in a config, some 20 per layer: each takes far more memory than its two bytes in the file.
_MOST_PARTS = 2**18
_MOST_ITEMS = 2**19
# Neither Keras packs anything. What somebody has packed since may unpack to this many times its size, as weights of
# which 19 in 20 are 0 do, or to this many bytes, of which a variable takes up to four times as many at first.
_UNPACKED, _SMALL = 20, 2**25
# Keras writes three members, and one for each vocabulary.
_MOST_MEMBERS = 2**12
_MOST_NUMBERS = 2**10
# Keras writes some four groups and arrays per layer, and a few levels for each model within a model.
_MOST_ENTRIES, _DEEPEST = 2**16, 200
# What zipfile, json and h5py raise on damaged bytes.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,  # of addresses in HDF5
    struct.error,
)


class Description(NamedTuple):
    """The Keras version, the config and the total array size read from a `.keras` file.

    Attributes:
        version: of the Keras that wrote it, as "3.13.2".
        config: what JSON made of its config.json.
        array_bytes: what its arrays take once they are loaded.
    """

    version: str
    config: dict[str, Any]
    array_bytes: int


def describe(path: str | os.PathLike[str]) -> Description:
    """Read the Keras version and config from a `.keras` file without running or importing anything from the file.

    The sizes of all that is in it are looked at before it is read: the file may not unpack to more than 20 times its
    size (or 32 MiB), its config to no more than 8 MiB.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no `.keras` file, it is damaged, or it holds more than any model needs.

    >>> import keras, tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.keras")
    ...     describe(f"{folder}/model.keras").config["class_name"]
    'Sequential'
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive.infolist(), max(_SMALL, _UNPACKED * size))
                _check_packing(file, archive.infolist(), size)
                metadata, config = (_parsed(name, archive.read(name)) for name in (_METADATA, _CONFIG))
                array_bytes = _checked_weights(archive.read(_WEIGHTS), max(_SMALL, _UNPACKED * size))
        except RecursionError as error:
            raise ValueError("its JSON is nested too deeply") from error
        except _DAMAGED as error:
            raise ValueError(f"it is damaged: {error}" if not isinstance(error, _Unfit) else str(error)) from error
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or version[:2] not in ("2.", "3."):
        raise ValueError(f"{_METADATA} does not name a supported Keras version: keras_version={version!r:.40}")
    return Description(version, config, array_bytes)


class _Unfit(ValueError):
    """An error for a file that is intact but does not contain a valid model."""


def _parsed(name: str, text: bytes) -> Any:
    parts = text.count(b"[") + text.count(b"{")
    if parts > _MOST_PARTS:
        raise _Unfit(f"{name} contains {parts:,} lists and dicts, more than the limit of {_MOST_PARTS:,}")
    if text.count(b",") > _MOST_ITEMS:
        raise _Unfit(f"{name} contains {text.count(b','):,} items, more than the limit of {_MOST_ITEMS:,}")
    return json.loads(text)


def _check_members(members: list[zipfile.ZipInfo], limit: int) -> None:
    if len(members) > _MOST_MEMBERS:
        raise _Unfit(f"it contains {len(members):,} files, more than the limit of {_MOST_MEMBERS:,}")
    names = [member.filename for member in members]
    for name in (_METADATA, _CONFIG, _WEIGHTS):
        if names.count(name) != 1:
            found = f"{names.count(name)} files named {name}" if name in names else f"no {name}"
            raise _Unfit(f"it is a zip archive, but not a .keras file: it contains {found}")
    for member in members:
        most = _LIMITS.get(member.filename, limit)
        if member.file_size > most:
            raise _Unfit(_too_large(f"{member.filename} is", member.file_size, most))
    total = sum(member.file_size for member in members)
    if total > limit:
        raise _Unfit(_too_large("its contents are", total, limit))


def _check_packing(file: IO[bytes], members: list[zipfile.ZipInfo], size: int) -> None:
    """Reject zip members that are larger than their declared size, because `zipfile` would unpack all of their data."""
    if sum(member.compress_size for member in members) > size:
        raise _Unfit("the compressed sizes of its members add up to more than the file contains")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Unfit(f"{member.filename!r:.80} is compressed with a method other than deflate")
        packed = member.compress_type == zipfile.ZIP_DEFLATED
        if packed and unpacks_beyond(_pieces(file, member), -zlib.MAX_WBITS, member.file_size):
            raise _Unfit(
                f"{member.filename!r:.80} unpacks to more than the {member.file_size:,} bytes that the archive declares"
            )


def _pieces(file: IO[bytes], member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a member as stored in the file, after its header."""
    file.seek(member.header_offset)
    name, extra = struct.unpack("<HH", file.read(30)[26:])
    file.seek(name + extra, os.SEEK_CUR)
    left = member.compress_size
    while left > 0 and (piece := file.read(min(left, 2**16))):
        left -= len(piece)
        yield piece


def _checked_weights(data: bytes, limit: int) -> int:
    """Return the memory that the loaded arrays take; raise ValueError if any array is external or not numeric."""
    total = entries = 0

    def check(path: str, item: Any) -> None:
        nonlocal total, entries
        if path.count("/") > _DEEPEST:
            raise _Unfit(f"the groups in {_WEIGHTS} are nested more than {_DEEPEST} levels deep")
        _check_attributes(item)
        if isinstance(item, h5py.Dataset):
            total += _checked_array(item)
            return
        entries += len(item)
        if entries > _MOST_ENTRIES:
            raise _Unfit(f"{_WEIGHTS} contains more than {_MOST_ENTRIES:,} groups and arrays")
        for name in item:
            if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                raise _Unfit(f"{name!r:.80} in {_WEIGHTS} is a link")

    with h5py.File(io.BytesIO(data), "r") as file:
        check("", file)
        file.visititems(check)
    if total > limit:
        raise _Unfit(_too_large(f"the arrays of {_WEIGHTS} are", total, limit))
    return total


def _checked_array(item: h5py.Dataset) -> int:
    if item.external or item.is_virtual:
        raise _Unfit(f"the array {item.name!r:.80} in {_WEIGHTS} refers to another file")
    if item.dtype.hasobject:
        raise _Unfit(f"the array {item.name!r:.80} in {_WEIGHTS} is not numeric")
    check_chunks(item)
    # A chunk is read whole, for however few numbers, and a mask has a byte for each bit in the file.
    chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
    return max(chunk, int(item.nbytes) * (9 if item.dtype == "uint8" else 1))


def _check_attributes(item: Any) -> None:
    """Reject attributes larger than one string or a few numbers, because loading them could take too much memory."""
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        if math.prod(attribute.shape) > (1 if attribute.dtype.hasobject else _MOST_NUMBERS):
            raise _Unfit(
                f"the attribute {name!r:.80} of {item.name!r:.80} in {_WEIGHTS} is larger than any attribute that "
                "Keras writes"
            )


def _too_large(what: str, size: int, limit: int) -> str:
    return f"{what} {size:,} bytes unpacked, more than the limit of {limit:,} for a file of this size"
