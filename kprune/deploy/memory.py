"""Measure the peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_Result = TypeVar("_Result")
_SELF = Path("/proc/self")


def peak_of(work: Callable[[], _Result]) -> tuple[_Result, int | None]:
    """Run `work()`; return its result and the peak growth of the process's memory in bytes.

    Memory that the process has and does not use is given back first, as far as the C library can. None for the bytes
    where the system does not count them by process and moment: Linux does.
    """
    start = _resident("VmRSS") if _reset() else None
    result = work()
    return result, None if start is None else max(_resident("VmHWM") - start, 0)


def _reset() -> bool:
    """Start a new peak measurement; return False if the system does not support it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_SELF / "clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s*([0-9]+) kB", (_SELF / "status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
