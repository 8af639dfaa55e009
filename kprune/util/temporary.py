"""Names of temporary files beside a file being written, and removal of those that dead processes left behind."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

_NAME = re.compile(r"\.new-(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}-.*", re.DOTALL)
_DAY = 24 * 60 * 60.0


def temporary_beside(target: Path) -> Path:
    """Return a path in the folder of `target`, with the same ending, that no other process or call uses.

    It removes what killed processes have left in the folder: what is named for a process of this machine that no longer
    runs, and whatever a day has not touched, as nothing can be known of another machine's processes (a shared file
    system, a container).

    >>> temporary_beside(Path("out/model.weights.h5")).name[-17:]
    '-model.weights.h5'
    """
    _remove_stale(target)
    # Only the end of the name, as the file system allows 255 bytes; and an end suffices to tell of what kind it is.
    return target.with_name(f".new-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}-{target.name[-40:]}")


def _remove_stale(target: Path) -> None:
    for path in target.parent.glob(".new-*"):
        match = _NAME.fullmatch(path.name)
        old = path.name == f".new-{target.name}"  # how kprune 0.1.0 named it
        # Another process may remove it at the same time, or it may be another user's: either way it harms nobody.
        with contextlib.suppress(OSError):
            if old or (match and (_is_dead(match) or time.time() - path.lstat().st_mtime > _DAY)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _is_dead(match: re.Match[str]) -> bool:
    # On Windows, signal 0 is Ctrl-C.
    if match["machine"] != _machine() or os.name != "posix":
        return False
    try:
        os.kill(int(match["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


@functools.cache
def _machine() -> str:
    """Return an id of the machine, or of the container on it, within which process ids are unique."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]
