"""Locks that let only one process at a time own a file written throughout a run (a table, a state, a backup)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import zlib
from pathlib import Path

from absl import logging

from .distribution import is_chief

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# path -> the open lock file, the `Lock` that acquired it last, and the process, as one that it forks owns nothing.
_held: dict[Path, tuple[int | None, Lock, int]] = {}
_guard = threading.Lock()


class Lock:
    """Exclusive ownership of `path` by one process; the system releases it even if the process is killed.

    A POSIX record lock (`fcntl.lockf`) on a small file beside `path`. It holds between processes, and on NFS between
    machines; not between threads: within a process, the newest `Lock` of a path takes over from one that was never
    released, such as that of an interrupted fit. Where a file system has no locks, and on Windows, none is kept and a
    warning says so. Of several processes that train together only the chief, the one that writes, asks for it.

    Args:
        path: the file to own; it need not exist. Its folder is made.

    Raises:
        OSError: (by `acquire`, and `with`) another process owns it, which is named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Lock(f"{folder}/table.csv"):
    ...     len(os.listdir(folder))
    1
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._own = self.path.parent / self.path.name

    def acquire(self) -> None:
        """Take ownership of the path, or do nothing if this lock already has it."""
        if not is_chief():
            return
        self._own = self.path.parent.resolve() / self.path.name
        with _guard:
            file, _, pid = _held.get(self._own, (None, None, None))
            _held[self._own] = file if pid == os.getpid() else _lock(self._own), self, os.getpid()

    def release(self) -> None:
        """Give up ownership, or do nothing if this lock does not have it."""
        with _guard:
            file, lock, pid = _held.get(self._own, (None, None, None))
            if lock is not self or pid != os.getpid():
                return
            del _held[self._own]
            if file is not None:
                _lock_file(self._own).unlink(missing_ok=True)  # before it is free, or it might be the next owner's
                os.close(file)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _lock_file(path: Path) -> Path:
    # A name of its own for each path, and short enough for those of 255 bytes.
    return path.with_name(f".lock-{zlib.crc32(os.fsencode(path.name)):08x}-{path.name[-40:]}")


def _lock(path: Path) -> int | None:
    if fcntl is None:
        _warn(path, "Windows does not support POSIX locks")
        return None
    name = _lock_file(path)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A link could lead to any file, which would be emptied.
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if os.path.lexists(name):
                _warn(path, f"its lock file cannot be opened ({error.strerror})")
            return None  # where no file can be made, none can be written either, and whoever tries says so
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(file, 300, 0).decode(errors="replace") or "another process"
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise OSError(
                    f"{path} is in use by {owner}, and two processes would overwrite each other's work: wait for "
                    f"that process to end, stop it, or choose another path. Received: path={os.fspath(path)!r}"
                ) from None
            if error.errno not in _UNSUPPORTED:
                raise
            name.unlink(missing_ok=True)
            _warn(path, f"its file system does not support locks ({error.strerror})")
            return None
        # The owner before may have removed it between these two lines.
        if name.exists() and os.path.samestat(os.fstat(file), name.stat()):
            with contextlib.suppress(OSError):  # a full disk: the lock holds, it only does not say whose it is
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return file
        os.close(file)


def _warn(path: Path, why: str) -> None:
    logging.warning("kprune: %s is not locked, because %s. Make sure that no other process writes to it.", path, why)
