"""Registries, the only place where a string becomes a criterion, a scope, a pattern or a schedule."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from .checks import check_fields

Entry = TypeVar("Entry", bound=Callable[..., Any])
_MADE_BY = "_kprune_made_by"


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
    ValueError: Unknown shape: pass one of 'square', or a function. Received: shape='circle'
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Callable[..., Any]] = {}
        self._families: dict[str, tuple[str, Callable[..., Any]]] = {}
        self._makers: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, **traits: Any) -> Callable[[Entry], Entry]:
        """Return a decorator that makes a function available under `name`, with `traits` as attributes (see `trait`).

        A function that is defined again, as when the cell of a notebook runs again, takes its own place. Raises
        ValueError if the name is none, or taken by another function.
        """

        if not isinstance(name, str) or not name:
            raise ValueError(f"`name` must be a non-empty str. Received: name={name!r:.200}")

        def add(entry: Entry) -> Entry:
            known = self._entries.get(name)
            if known is not None and _home(known) != _home(entry):
                raise ValueError(
                    f"Another {self.kind} is already registered under this name: choose another name. "
                    f"Received: name={name!r}"
                )
            for trait_name, value in traits.items():
                setattr(entry, trait_name, value)
            self._entries[name] = entry
            return entry

        return add

    def family(self, expression: str, shown: str) -> Callable[[Entry], Entry]:
        r"""Return a decorator that registers a function that makes entries for names that match `expression`.

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

    def maker(self, make: Callable[..., Entry]) -> Callable[..., Entry]:
        """Make the results of the decorated function serializable as the function's name and arguments.

        >>> shapes = Registry("shape")
        >>> @shapes.maker
        ... def square(side): return lambda: side * side
        >>> shapes.serialize(square(3))
        {'name': 'square', 'options': {'side': 3}}
        >>> shapes.deserialize({'name': 'square', 'options': {'side': 3}})()
        9
        """
        signature = inspect.signature(make)

        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Entry:
            entry = make(*args, **kwargs)
            setattr(entry, _MADE_BY, (make.__name__, signature.bind(*args, **kwargs).arguments))
            return entry

        self._makers[make.__name__] = made
        return made

    def serialize(self, entry: str | Callable[..., Any]) -> str | dict[str, Any]:
        """Return an entry in JSON form, either a name or a dict with a name and options; `deserialize` reverses this.

        Args:
            entry: a name, what is registered here, a `functools.partial` of it, or what one of this registry's makers
                returned. Options must be numbers, strings, lists, dicts or entries of this registry.

        Raises:
            ValueError: the name is not known, the function is not registered, or an option cannot be kept.
        """
        if isinstance(entry, str):
            self.get(entry)
            return entry
        if hasattr(entry, _MADE_BY):
            name, options = getattr(entry, _MADE_BY)
            return {"name": name, "options": {key: self._plain(key, one) for key, one in options.items()}}
        name, plain = self.name_of(entry), _unwrapped(entry)
        if self._entries.get(name) is not plain and not self._of_a_family(name):
            raise ValueError(
                f"A custom {self.kind} can be saved only if it is registered: decorate it with "
                f"`register('name')` from its registry. Received: {self.kind}={entry!r:.200}"
            )
        if not isinstance(entry, functools.partial):
            return name
        options = inspect.signature(plain).bind_partial(*entry.args, **entry.keywords).arguments
        return {"name": name, "options": {key: self._plain(key, one) for key, one in options.items()}}

    def _plain(self, key: str, option: Any) -> Any:
        if callable(option):
            return self.serialize(option)
        try:
            json.dumps(option)
        except TypeError:
            raise ValueError(
                f"Only options that are numbers, strings, lists or dicts can be saved. Received: {key}={option!r:.200}"
            ) from None
        return option

    def deserialize(self, config: str | dict[str, Any]) -> Callable[..., Any]:
        """Return the entry that `serialize` described, or raise ValueError if there is none."""
        if isinstance(config, str):
            return self.get(config)
        if (
            not isinstance(config, dict)
            or set(config) != {"name", "options"}
            or not isinstance(config["name"], str)
            or not isinstance(config["options"], dict)
        ):
            raise ValueError(
                f"Expected a name, or a dict with a name and options. Received: {self.kind}={config!r:.200}"
            )
        options = {k: self.deserialize(v) if _is_config(v) else v for k, v in config["options"].items()}
        maker = self._makers.get(config["name"])
        function = maker or self.get(config["name"])
        parameters = inspect.signature(function).parameters
        needed = [name for name, one in parameters.items() if one.default is one.empty] if maker else []
        check_fields(str(config["name"]), options, parameters, needed)
        return maker(**options) if maker else functools.partial(function, **options)

    def _of_a_family(self, name: str) -> bool:
        return any(re.fullmatch(expression, name) for expression, _ in self._families.values())

    def get(self, entry: str | Callable[..., Any]) -> Callable[..., Any]:
        """Return the callable registered under a name, or `entry` itself if it is callable; reject anything else."""
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
                f"Unknown {self.kind}: pass one of {known}, or a function. Received: {self.kind}={entry!r}"
            )
        return self._entries[entry]

    def name_of(self, entry: Any) -> str:
        """Return an entry's name for messages: the registered name or, without one, the function name or the kind."""
        plain = _unwrapped(entry)
        names = [name for name, registered in self._entries.items() if registered is plain]
        return entry if isinstance(entry, str) else names[0] if names else getattr(plain, "__name__", self.kind)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def trait(entry: Callable[..., Any], name: str, default: Any) -> Any:
    """Return the trait `name` of a function or of the function in a `functools.partial`, or `default` if it is unset.

    >>> import functools
    >>> def draft(context, steps=1): ...
    >>> draft.default_rounds = 100
    >>> trait(functools.partial(draft, steps=2), "default_rounds", 1), trait(print, "default_rounds", 1)
    (100, 1)
    """
    return getattr(_unwrapped(entry), name, default)


def own_trait(entry: Callable[..., Any], name: str) -> Any:
    """Return a trait that the function defines itself, or None if it lacks the trait or wraps another function.

    `functools.wraps` copies all traits to a function that may do something else, so that one has none.

    >>> import functools
    >>> def double(x): ...
    >>> double.entrywise = "2 x"
    >>> triple = functools.wraps(double)(lambda x: 3 * x)
    >>> own_trait(double, "entrywise"), own_trait(triple, "entrywise")
    ('2 x', None)
    """
    return None if hasattr(entry, "__wrapped__") else getattr(entry, name, None)


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"name", "options"} and isinstance(value["options"], dict)


def _unwrapped(entry: Any) -> Any:
    return _unwrapped(entry.func) if isinstance(entry, functools.partial) else entry


def _home(entry: Callable[..., Any]) -> tuple[Any, Any]:
    """Return a key for a function; a module-level function keeps its key when it is defined again."""
    name = getattr(entry, "__qualname__", "<")
    return getattr(entry, "__module__", None), id(entry) if "<" in name else name
