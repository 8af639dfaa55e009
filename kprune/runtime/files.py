"""Files of arrays: npz without pickle, with a checksum, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .distribution import from_chief, is_chief

_ABOUT = "about.json"
# What NumPy and zipfile raise on bytes that are no archive of arrays, or a damaged one.
_UNREADABLE = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def pack(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Arrays and what is to be known of them, as the bytes of an npz file.

    A bool array takes a bit per entry. The file holds a SHA-256 of all that is in it.

    Args:
        arrays: name -> array of any shape and dtype, those of ml_dtypes (bfloat16) included.
        about: what JSON can hold.

    >>> arrays, about = unpack(pack({"mask": np.array([True, False])}, {"level": 3}), "here")
    >>> arrays["mask"].tolist(), about
    ([True, False], {'level': 3})
    """
    stored, kinds = {}, {}
    for position, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        kinds[name] = [array.dtype.name, list(array.shape)]
        # Raw bytes: npz knows neither bfloat16 nor bits.
        plain = np.packbits(array) if array.dtype == np.bool_ else np.frombuffer(array.tobytes(), np.uint8)
        stored[f"array{position}"] = plain
    description = json.dumps({"about": dict(about), "arrays": kinds}).encode()
    checksum = _checksum(description, stored)
    buffer = io.BytesIO()
    stored |= {_ABOUT: np.frombuffer(description, np.uint8), "sha256": np.array(checksum)}
    np.savez(buffer, **stored)  # type: ignore[arg-type]  # its stub takes them for flags
    return buffer.getvalue()


def unpack(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `pack` was given; ValueError that names the file if it is truncated, damaged, or of another kind."""
    try:
        if not data.startswith(b"PK"):
            raise ValueError("it is no zip archive")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            stored = {key: archive[key] for key in archive.files}
        description, checksum = stored.pop(_ABOUT).tobytes(), str(stored.pop("sha256"))
        if checksum != _checksum(description, stored):
            raise ValueError("its checksum is wrong")
        known = json.loads(description)
        arrays = {
            key: _restore(stored[f"array{position}"], *kind)
            for position, (key, kind) in enumerate(known["arrays"].items())
        }
    except (*_UNREADABLE, KeyError, AttributeError) as error:
        raise ValueError(
            f"This is no file of kprune's, or it is truncated or damaged: {error}. Received: file={name!r}"
        ) from error
    return arrays, known["about"]


def joined(**parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One dict of several, each one's names behind its own and a slash; `split` takes it apart."""
    return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def split(arrays: Mapping[str, np.ndarray], *parts: str) -> dict[str, dict[str, np.ndarray]]:
    """The dicts of which `joined` made one; KeyError if it has a part beside these.

    >>> split(joined(a={"x": np.array(1)}), "a", "b")
    {'a': {'x': array(1)}, 'b': {}}
    """
    found: dict[str, dict[str, np.ndarray]] = {part: {} for part in parts}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        found[part][rest] = array
    return found


def read(path: str | os.PathLike[str]) -> bytes | None:
    """The bytes of a file, None if there is none; of several processes that train together, those the chief finds."""
    file = Path(path)
    return from_chief(file.read_bytes() if is_chief() and file.exists() else None)


def write(path: str | os.PathLike[str], fill: bytes | Callable[[str], None]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, synced, then renamed.

    Of several processes that train together, only the chief writes; the others go on.

    Args:
        path: the file; its folder is made.
        fill: the bytes, or a function that writes the file whose name it is given (it ends as `path` does).

    Raises:
        OSError: it cannot be written (no space left ...). What was at `path` is as it was.
    """
    if not is_chief():
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name ends as the file's does, as `Model.save_weights` asks; and is the same each time, so that a process that
    # was killed leaves no more than one behind.
    temporary = target.with_name(f".new-{target.name}")
    try:
        if callable(fill):
            fill(str(temporary))
        else:
            temporary.write_bytes(fill)
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def check_npz(name: str, path: Any) -> None:
    """Raises ValueError unless a path that a user gave as `name` is that of an .npz file.

    >>> check_npz("path", "ticket.npz")
    """
    if not isinstance(path, str | os.PathLike) or Path(path).suffix != ".npz":
        raise ValueError(f"It is the name of an .npz file. Received: {name}={path!r}")


def _sync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(description: bytes, stored: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(description)
    for position in range(len(stored)):
        digest.update(stored[f"array{position}"].tobytes())
    return digest.hexdigest()


def _restore(raw: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype == "bool":
        return np.unpackbits(raw, count=int(np.prod(shape))).astype(bool).reshape(shape)
    # NumPy knows bfloat16 by name as soon as Keras has imported ml_dtypes.
    return np.frombuffer(raw.tobytes(), np.dtype(dtype)).reshape(shape).copy()
