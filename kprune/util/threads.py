"""Work on large arrays in parallel threads, which is possible because NumPy releases the interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
# Below so many entries in all, to start threads takes longer than the work.
SMALL = 1 << 17


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], entries: int = SMALL) -> list[Result]:
    """Return `[function(item) for item in items]`, run on one thread per core; the first exception is raised.

    Args:
        function, items: the work.
        entries: how many numbers it goes through, if that is known; where they are few, one thread does it all.

    >>> side_by_side(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    work = list(items)
    if len(work) < 2 or entries < SMALL:
        return [function(item) for item in work]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads:
        return list(threads.map(function, work))
