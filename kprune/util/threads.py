"""Work on large arrays in parallel: NumPy releases the interpreter while it processes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`[function(item) for item in items]` on as many threads as there are cores; the first exception is raised.

    >>> side_by_side(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    work = list(items)
    if len(work) < 2:
        return [function(item) for item in work]
    with ThreadPoolExecutor() as threads:
        return list(threads.map(function, work))
