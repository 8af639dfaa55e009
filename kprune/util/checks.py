"""Argument checks shared by many functions, with errors that state what is expected and what was received."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is an integer >= `least`; a bool is not accepted.

    >>> check_integer("rounds", 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: `rounds` must be an integer >= 1. Received: rounds=0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}. Received: {name}={value!r}")


def check_number(name: str, value: Any, says: str, holds: Any) -> None:
    """Raise ValueError unless `value` is a finite number for which `holds(value)` is true.

    >>> check_number("rate", 1.5, "above 0 and below 1", lambda rate: 0 < rate < 1)
    Traceback (most recent call last):
    ...
    ValueError: `rate` must be a number above 0 and below 1. Received: rate=1.5
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if not number or not holds(value):
        raise ValueError(f"`{name}` must be a number {says}. Received: {name}={value!r:.200}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the strings in `choices`.

    >>> check_choice("store", "disk", ("zero", "latent"))
    Traceback (most recent call last):
    ...
    ValueError: `store` must be one of 'zero', 'latent'. Received: store='disk'
    """
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r:.200}")


def check_fields(of: str, config: Any, known: Iterable[str], needed: Iterable[str] = ()) -> None:
    """Raise ValueError unless a config is a dict with only known fields and all required ones.

    >>> check_fields("Linear", {"end": 3}, ("begin_step", "end_step"))
    Traceback (most recent call last):
    ...
    ValueError: Linear has no field 'end'. Its fields are begin_step, end_step. Received: end=3
    """
    known = list(known)
    if not isinstance(config, Mapping):
        raise ValueError(f"The config of {of} must be a dict. Received: config={config!r:.200}")
    for name, value in config.items():
        if name not in known:
            raise ValueError(
                f"{of} has no field {name!r}. Its fields are {', '.join(known)}. Received: {name}={value!r:.100}"
            )
    for name in needed:
        if name not in config:
            raise ValueError(f"{of} requires the field {name!r}. Received: fields={list(config)}")


def check_function(name: str, value: Any, of: str) -> None:
    """Raise ValueError unless `value` is callable; `of` describes the expected arguments in the error.

    >>> check_function("train", None, "a model and a seed")
    Traceback (most recent call last):
    ...
    ValueError: `train` must be a function of a model and a seed. Received: train=None
    """
    if not callable(value):
        raise ValueError(f"`{name}` must be a function of {of}. Received: {name}={value!r:.200}")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False.

    >>> check_flag("first", False)
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r:.200}")


def check_arrays(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a dict that maps names to NumPy arrays.

    >>> check_arrays("initial", {"dense/kernel": np.zeros((1, 1))})
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"`{name}` must be a dict that maps paths to arrays. Received: {name}={value!r:.200}")
    for key, array in value.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"Each value of `{name}` must be a NumPy array. Received: {name}[{key!r}]={array!r:.200}")


def check_strings(name: str, value: Any) -> tuple[str, ...]:
    """Return a str, or a list or tuple of str, as a tuple; raise ValueError, naming the argument, for anything else.

    >>> check_strings("weights", "kernel")
    ('kernel',)
    """
    listed = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else (None,)
    if not all(isinstance(one, str) for one in listed):
        raise ValueError(f"`{name}` must be a str, or a list or tuple of str. Received: {name}={value!r:.200}")
    return listed


def check_path(name: str, path: Any) -> None:
    """Raise ValueError unless `path` can be the path of a file or folder.

    >>> check_path("folder", "out/lottery")
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise ValueError(
            f"`{name}` must be a path: a non-empty str or os.PathLike without NUL characters. Received: {name}={path!r}"
        )


def check_npz(name: str, path: Any) -> None:
    """Raise ValueError unless `path` is the path of an .npz file.

    >>> check_npz("path", "ticket.npz")
    """
    if not isinstance(path, str | os.PathLike) or Path(path).suffix != ".npz":
        raise ValueError(f'`{name}` must end in ".npz". Received: {name}={path!r}')
    check_path(name, path)


def check_expression(expression: Any, name: str = "expression") -> None:
    """Raise ValueError unless `expression` is a str that is a valid regular expression.

    >>> check_expression("conv|dense")
    """
    try:
        if not isinstance(expression, str):
            raise TypeError
        re.compile(expression)
    except (re.error, TypeError):
        raise ValueError(
            f"`{name}` must be a valid regular expression to search for in weight paths. Received: "
            f"{name}={expression!r}"
        ) from None


def received_with(reason: str, received: str) -> str:
    """Return the text of another error, ending in a single `Received:` that also names these values.

    >>> received_with("its checksum is wrong", "file='a.npz'")
    "its checksum is wrong. Received: file='a.npz'"
    >>> received_with("Not a bool. Received: x=3", "file='a.npz'")
    "Not a bool. Received: x=3, file='a.npz'"
    """
    return f"{reason}, {received}" if "Received: " in reason else f"{reason.rstrip('.')}. Received: {received}"


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """Return an ending for errors that list known words: "; did you mean 'vgg-11'?", or "." if none is similar.

    >>> did_you_mean("vgg11", ["vgg-11", "lenet-5"]), did_you_mean("xyz", ["vgg-11"])
    ("; did you mean 'vgg-11'?", '.')
    """
    near = difflib.get_close_matches(str(word).lower(), list(known), 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else "."
