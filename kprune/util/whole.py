"""Atomic files, which are complete or absent even if the process that writes them is killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from .temporary import temporary_beside


def write_whole(path: str | os.PathLike[str], fill: bytes | Callable[[str], object]) -> None:
    """Write a file atomically: write a temporary file beside it, sync that file, then rename it.

    A link stays one: what it points to is written. What is no file but a pipe or a terminal is written as it is.

    Args:
        path: the file; its folder is made.
        fill: the bytes, or a function that writes the file whose name it is given (it ends as `path` does).

    Raises:
        OSError: it cannot be written (no space left ...), and is named. What was at `path` is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/new/table.csv", b"a,b")
    ...     Path(folder, "new", "table.csv").read_text()
    'a,b'
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        return _pour(path, fill)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # It ends as the file's name does, as `Model.save_weights` asks.
    temporary = temporary_beside(target)
    try:
        if callable(fill):
            fill(str(temporary))
        else:
            temporary.write_bytes(fill)
        sync(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # which names no file, or the temporary one
            raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
        raise
    sync(target.parent)


def _pour(path: str | os.PathLike[str], fill: bytes | Callable[[str], object]) -> None:
    with tempfile.TemporaryDirectory() as folder, open(path, "wb") as target:
        filled = Path(folder, "filled").with_suffix(Path(path).suffix)
        if callable(fill):
            fill(str(filled))
        else:
            filled.write_bytes(fill)
        target.write(filled.read_bytes())


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or a folder's list of names, is on disk.

    >>> sync(".")
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
