"""Lookup of criteria by name, and their JSON form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import CRITERIA


def get(criterion: str | Callable[..., Any]) -> Callable[..., Any]:
    """Look up a criterion by name, or return a function as is; raise ValueError for an unknown name.

    >>> import kprune
    >>> kprune.criteria.get("magnitude") is kprune.criteria.magnitude
    True
    """
    return CRITERIA.get(criterion)


def serialize(criterion: str | Callable[..., Any]) -> str | dict[str, Any]:
    """Describe a criterion in JSON by its name and any options; raise ValueError if it is not registered.

    >>> import functools, kprune
    >>> kprune.criteria.serialize(functools.partial(kprune.criteria.snip, training=True))
    {'name': 'snip', 'options': {'training': True}}
    """
    return CRITERIA.serialize(criterion)


def deserialize(config: str | dict[str, Any]) -> Callable[..., Any]:
    """Return the criterion that `serialize` described; raise ValueError if there is none.

    >>> import kprune
    >>> kprune.criteria.deserialize("lamp") is kprune.criteria.lamp
    True
    """
    return CRITERIA.deserialize(config)
