"""Delay the handling of Ctrl-C until steps that belong together are complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the end of a `with` block; a second Ctrl-C interrupts the block at once.

    Other threads than the main one are never interrupted, and what handles the signal instead of Python stays.

    >>> before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it
    >>> done = []
    >>> try:
    ...     with uninterrupted():
    ...         signal.raise_signal(signal.SIGINT)
    ...         done.append("both steps")
    ... except KeyboardInterrupt:
    ...     done.append("interrupted")
    >>> done
    ['both steps', 'interrupted']

    An error in its midst does not hide it:

    >>> try:
    ...     with uninterrupted():
    ...         signal.raise_signal(signal.SIGINT)
    ...         raise ValueError("the second step")
    ... except KeyboardInterrupt:
    ...     "interrupted"
    'interrupted'
    >>> _ = signal.signal(signal.SIGINT, before)
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught: list[Any] = []

    def later(*signaled: Any) -> None:
        if caught:
            handler(*signaled)
        caught.append(signaled)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])
