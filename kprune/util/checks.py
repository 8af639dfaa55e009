"""Checks of arguments that many functions take: each raises a ValueError that says what is right and what was given."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises ValueError unless what a user gave as `name` is an integer of at least `least`; a bool is none.

    >>> check_integer("rounds", 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: `rounds` must be an integer >= 1. Received: rounds=0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}. Received: {name}={value!r}")


def check_number(name: str, value: Any, says: str, holds: Any) -> None:
    """Raises ValueError unless what a user gave as `name` is a finite number of which `holds(value)` is true.

    >>> check_number("rate", 1.5, "above 0 and below 1", lambda rate: 0 < rate < 1)
    Traceback (most recent call last):
    ...
    ValueError: `rate` must be a number above 0 and below 1. Received: rate=1.5
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not holds(value):
        raise ValueError(f"`{name}` must be a number {says}. Received: {name}={value!r}")


def check_path(name: str, path: Any) -> None:
    """Raises ValueError unless what a user gave as `name` can be the path of a file or folder.

    >>> check_path("folder", "out/lottery")
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise ValueError(
            f"`{name}` must be a path: a str or os.PathLike, not empty, without NUL characters. "
            f"Received: {name}={path!r}"
        )


def check_npz(name: str, path: Any) -> None:
    """Raises ValueError unless a path that a user gave as `name` is that of an .npz file.

    >>> check_npz("path", "ticket.npz")
    """
    if not isinstance(path, str | os.PathLike) or Path(path).suffix != ".npz":
        raise ValueError(f'`{name}` must end in ".npz". Received: {name}={path!r}')
    check_path(name, path)


def check_expression(expression: Any, name: str = "expression") -> None:
    """Raises ValueError unless what a user gave as `name` is a regular expression, as text.

    >>> check_expression("conv|dense")
    """
    try:
        if not isinstance(expression, str):
            raise TypeError
        re.compile(expression)
    except (re.error, TypeError):
        raise ValueError(
            f"Expected a regular expression, to be searched in paths of weights. Received: {name}={expression!r}"
        ) from None
