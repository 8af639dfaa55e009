"""Registries: the one place where a string becomes a criterion, a scope, a pattern or a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry:
    """Named callables of one kind.

    >>> shapes = Registry("shape")
    >>> @shapes.register("square")
    ... def square(side): return side * side
    >>> shapes.get("square")(3)
    9
    >>> shapes.get("circle")
    Traceback (most recent call last):
    ...
    ValueError: Unknown shape; the known ones are 'square', or pass a function. Received: shape='circle'
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator: makes a function available under `name`. Raises ValueError if the name is taken."""

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"The {self.kind} is registered already. Received: name={name!r}")
            self._entries[name] = entry
            return entry

        return add

    def get(self, entry: str | Callable[..., Any]) -> Callable[..., Any]:
        """The callable registered under a name; a callable is returned as it is. Raises ValueError otherwise."""
        if callable(entry):
            return entry
        if entry not in self._entries:
            known = ", ".join(repr(name) for name in self)
            raise ValueError(
                f"Unknown {self.kind}; the known ones are {known}, or pass a function. Received: {self.kind}={entry!r}"
            )
        return self._entries[entry]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
