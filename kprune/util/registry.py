"""Registries: the one place where a string becomes a criterion, a scope, a pattern or a schedule."""

from __future__ import annotations

import functools
import re
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
        self._families: dict[str, tuple[str, Callable[..., Any]]] = {}

    def register(self, name: str, **traits: Any) -> Callable[[Entry], Entry]:
        """Decorator: makes a function available under `name`, with `traits` as its attributes (see `trait`).

        Raises ValueError if the name is taken.
        """

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"This {self.kind} is already registered. Received: name={name!r}")
            for trait_name, value in traits.items():
                setattr(entry, trait_name, value)
            self._entries[name] = entry
            return entry

        return add

    def family(self, expression: str, shown: str) -> Callable[[Entry], Entry]:
        r"""Decorator: a name that the regular expression matches stands for what the function makes of its numbers.

        >>> shapes = Registry("shape")
        >>> @shapes.family(r"(\d+)x(\d+)", "hxw")
        ... def rectangle(h, w): return lambda: h * w
        >>> shapes.get("2x3")()
        6
        """

        def add(make: Entry) -> Entry:
            self._families[shown] = expression, make
            return make

        return add

    def get(self, entry: str | Callable[..., Any]) -> Callable[..., Any]:
        """The callable registered under a name; a callable is returned as it is. Raises ValueError otherwise."""
        if callable(entry):
            return entry
        if not isinstance(entry, str):
            raise ValueError(f"Expected a name or a function. Received: {self.kind}={entry!r:.200}")
        if entry not in self._entries:
            for expression, make in self._families.values():
                if found := re.fullmatch(expression, entry):
                    return make(*map(int, found.groups()))
            known = ", ".join(repr(name) for name in [*self, *self._families])
            raise ValueError(
                f"Unknown {self.kind}; the known ones are {known}, or pass a function. Received: {self.kind}={entry!r}"
            )
        return self._entries[entry]

    def name_of(self, entry: Any) -> str:
        """What to call an entry in messages: its name here, else the function's own, else the kind."""
        plain = _unwrapped(entry)
        names = [name for name, registered in self._entries.items() if registered is plain]
        return entry if isinstance(entry, str) else names[0] if names else getattr(plain, "__name__", self.kind)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def trait(entry: Callable[..., Any], name: str, default: Any) -> Any:
    """A trait of a registered function, also of a `functools.partial` of it; `default` if it has none.

    >>> import functools
    >>> def draft(context, steps=1): ...
    >>> draft.default_rounds = 100
    >>> trait(functools.partial(draft, steps=2), "default_rounds", 1), trait(print, "default_rounds", 1)
    (100, 1)
    """
    return getattr(_unwrapped(entry), name, default)


def _unwrapped(entry: Any) -> Any:
    return _unwrapped(entry.func) if isinstance(entry, functools.partial) else entry
