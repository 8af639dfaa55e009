"""Array files in npz format without pickle, with a checksum, written atomically."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..util.checks import check_arrays, received_with
from ..util.whole import write_whole
from .distribution import from_chief, is_chief

_ABOUT = "about.json"
# A JSON of this many bytes takes up to 200 MB once it is read; 100,000 arrays take about as many.
_MOST_ABOUT = 2**23
# How NumPy begins the only two kinds of array that `pack` writes: bytes, and the checksum.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(\|u1|<U64)', 'fortran_order': False, 'shape': \((\d{0,19}),?\), \} *\n",
    re.DOTALL,
)
# What zipfile, json and NumPy raise on bytes that are no archive of arrays, or a damaged one.
_UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def pack(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Pack arrays and their description into the bytes of an npz file.

    A bool array takes a bit per entry. The file holds a SHA-256 of all that is in it.

    Args:
        arrays: name -> array of any shape and dtype, those of ml_dtypes (bfloat16) included.
        about: what JSON can hold.

    Raises:
        ValueError: `about` is larger than `unpack` takes, or an array holds no numbers.

    >>> arrays, about = unpack(pack({"mask": np.array([True, False])}, {"level": 3}), "here")
    >>> arrays["mask"].tolist(), about
    ([True, False], {'level': 3})
    """
    stored, kinds = {}, {}
    for position, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        if array.dtype.hasobject or array.dtype.kind in "USMm":
            raise ValueError(f"Only numeric arrays can be saved. Received: array={name!r:.100}, dtype={array.dtype}")
        kinds[name] = [array.dtype.name, list(array.shape)]
        # Raw bytes: npz knows neither bfloat16 nor bits.
        plain = np.packbits(array) if array.dtype == np.bool_ else np.frombuffer(array.tobytes(), np.uint8)
        stored[f"array{position}"] = plain
    description = json.dumps({"about": dict(about), "arrays": kinds}).encode()
    if len(description) > _MOST_ABOUT:
        raise ValueError(
            f"The description of the arrays must be at most {_MOST_ABOUT:,} bytes of JSON. Received: "
            f"bytes={len(description):,}"
        )
    checksum = _checksum(description, stored)
    buffer = io.BytesIO()
    stored |= {_ABOUT: np.frombuffer(description, np.uint8), "sha256": np.array(checksum)}
    np.savez(buffer, **stored)  # type: ignore[arg-type]  # its stub takes them for flags
    return buffer.getvalue()


def unpack(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Unpack the result of `pack`, or raise ValueError if the file is truncated, damaged or of another kind.

    Sizes are compared before anything is read. `pack` compresses nothing, so no file takes more memory than a few
    times its own size: what is compressed, or larger than the file, is refused.
    """
    try:
        if not data.startswith(b"PK"):
            raise ValueError("it is not a zip archive")
        stored = _members(data)
        description, checksum = stored.pop(_ABOUT).tobytes(), stored.pop("sha256").tobytes()
        if checksum != np.array(_checksum(description, stored)).tobytes():
            raise ValueError("its checksum is wrong")
        if len(description) > _MOST_ABOUT:
            raise ValueError(
                f"the description of its arrays is {len(description):,} bytes, more than the limit of {_MOST_ABOUT:,}"
            )
        known = json.loads(description)
        about, kinds = known["about"], known["arrays"]
        if not isinstance(about, dict) or len(kinds) != len(stored):
            raise ValueError("the array descriptions do not match the file's contents")
        arrays = {
            key: _restore(stored[f"array{position}"], *kind) for position, (key, kind) in enumerate(kinds.items())
        }
    except _UNREADABLE as error:
        raise ValueError(
            f"This is not a kprune file, or it is truncated or damaged: {error!s:.300}. Received: file={name!r}"
        ) from error
    return arrays, about


@contextmanager
def understanding(name: str) -> Iterator[None]:
    """Turn errors about missing or malformed contents of an intact file into a ValueError that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        malformed = f"its contents are missing or malformed ({type(error).__name__}: {error})"
        reason = str(error) if isinstance(error, ValueError) else malformed
        cause = received_with(f"{reason:.1000}", f"file={name!r}")
        raise ValueError(f"This file cannot be used. Cause: {cause}") from error


def joined(**parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Merge several dicts into one, prefixing each name with its dict's name and a slash (see `split`)."""
    return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def split(arrays: Mapping[str, np.ndarray], *parts: str) -> dict[str, dict[str, np.ndarray]]:
    """Split a dict that `joined` merged, or raise ValueError if it is not a dict or has other parts.

    >>> split(joined(a={"x": np.array(1)}), "a", "b")
    {'a': {'x': array(1)}, 'b': {}}
    """
    check_arrays("arrays", arrays)
    found: dict[str, dict[str, np.ndarray]] = {part: {} for part in parts}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        if part not in found:
            raise ValueError(
                f"The name of an array must begin with one of {', '.join(parts)}. Received: array={name!r}"
            )
        found[part][rest] = array
    return found


def read(path: str | os.PathLike[str]) -> bytes | None:
    """Read a file in the chief process; return its bytes, or None if it does not exist (see `from_chief` for others).

    Raises:
        OSError: as `contents`.
    """
    return from_chief(contents(path) if is_chief() and Path(path).exists() else None)


def contents(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: there is none, it is a pipe or a device, or it cannot be read, for lack of memory, too.
    """
    check_regular(path)
    try:
        return Path(path).read_bytes()
    except MemoryError:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), os.fspath(path)) from None


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError if the path is a pipe or a device, from which reading may never end.

    >>> check_regular(os.devnull)
    Traceback (most recent call last):
    ...
    OSError: Only a file can be read, not a pipe or a device. Received: path='/dev/null'
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(f"Only a file can be read, not a pipe or a device. Received: path={os.fspath(path)!r}")


def write(path: str | os.PathLike[str], fill: bytes | Callable[[str], object]) -> None:
    """Call `write_whole`, but only in the chief when several processes train together."""
    if is_chief():
        write_whole(path, fill)


def _checksum(description: bytes, stored: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(description)
    for position in range(len(stored)):
        digest.update(stored[f"array{position}"].data)
    return digest.hexdigest()


def _members(data: bytes) -> dict[str, np.ndarray]:
    """Return the members of an npz that `pack` wrote: uint8 vectors by name, and the checksum as a str."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"its member {member.filename!r} is compressed (kprune never compresses)")
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("the sizes of its members add up to more than the file contains")
        found = {member.filename.removesuffix(".npy"): _vector(archive.read(member)) for member in members}
    if len(found) != len(members):
        raise ValueError("two of its members have the same name")
    return found


def _vector(raw: bytes) -> np.ndarray:
    # Not NumPy's own reader: it evaluates the header as Python, and allocates what the header says.
    header = _HEADER.match(raw)
    if not header:
        raise ValueError("one of its members is not an array in kprune's format")
    array = np.frombuffer(raw, header[1].decode().lstrip("|"), offset=header.end())
    if array.size != int(header[2] or 1):
        raise ValueError("one of its members does not have the size it declares")
    return array


def _restore(raw: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    if not isinstance(shape, list) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise ValueError(f"{shape!r:.100} is not a valid shape")
    if not isinstance(dtype, str) or not re.fullmatch("[a-z][a-z0-9_]*", dtype):
        raise ValueError(f"{dtype!r:.100} is not a valid dtype")
    size = math.prod(shape)
    # NumPy knows bfloat16 by name as soon as Keras has imported ml_dtypes.
    kind = np.dtype(dtype)
    if raw.size != ((size + 7) // 8 if kind == np.bool_ else size * kind.itemsize):
        raise ValueError(f"{raw.size:,} bytes do not match an array of dtype {dtype} and shape {shape}")
    if kind == np.bool_:
        return np.unpackbits(raw, count=size).view(np.bool_).reshape(shape)
    return np.frombuffer(raw, kind).reshape(shape).copy()
