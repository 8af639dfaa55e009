"""JSON configs of callbacks, which consist of their constructor arguments."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Self

from kprune import schedules
from kprune.config import PruningConfig
from kprune.criteria import CRITERIA
from kprune.growth import METHODS
from kprune.patterns import PATTERNS
from kprune.scopes import SCOPES
from kprune.util.checks import check_fields

OBJECTS = ("callback", "data", "optimizer", "restart")  # no configuration: they are given anew
_REGISTRIES = {"criterion": CRITERIA, "method": METHODS, "pattern": PATTERNS, "scope": SCOPES}
_MAYBE_SCHEDULES = ("schedule", "sparsity")


class Configured:
    """A class whose instances remember their constructor arguments."""

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        made._given = (args, kwargs)
        return made

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that were passed to this callback, as JSON-serializable values.

        Data and optimizers are no configuration, nor are callbacks (`restart`): `from_config` takes them anew.

        Raises:
            ValueError: an argument cannot be kept, such as a function of your own that is not registered.
        """
        args, kwargs = self._given
        given = inspect.signature(type(self)).bind(*args, **kwargs).arguments
        given |= given.pop("config_fields", {})
        return {name: _plain(name, value) for name, value in given.items() if name not in OBJECTS}

    @classmethod
    def from_config(cls, config: dict[str, Any], **objects: Any) -> Self:
        """Rebuild a callback from its config; data, optimizers and other callbacks must be passed again.

        Raises:
            ValueError: the config has other fields than this callback, or lacks one, or an object is none of these.
        """
        parameters = inspect.signature(cls).parameters
        known = [name for name in parameters if name != "config_fields"]
        known += [one.name for one in fields(PruningConfig)] if "config_fields" in parameters else []
        needed = [name for name, one in parameters.items() if one.default is one.empty and name != "config_fields"]
        check_fields(cls.__name__, config, [name for name in known if name not in OBJECTS])
        for name, value in objects.items():
            if name not in OBJECTS or name not in known:
                raise ValueError(
                    f"`{cls.__name__}.from_config` does not accept the argument `{name}`. Received: "
                    f"{name}={value!r:.100}"
                )
        check_fields(cls.__name__, {**config, **objects}, known, needed)
        return cls(**{name: _made(name, value) for name, value in config.items()}, **objects)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, PruningConfig):
        return value.get_config()
    if name in _REGISTRIES and callable(value):
        return _REGISTRIES[name].serialize(value)
    if name in _MAYBE_SCHEDULES and callable(value):
        return schedules.serialize(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = dict(value) if isinstance(value, Mapping) else value.item() if hasattr(value, "item") else value
    try:
        json.dumps(value)
    except TypeError:
        raise ValueError(
            f"A config can contain only numbers, strings, lists and dicts. Received: {name}={value!r:.200}"
        ) from None
    return value


def _made(name: str, value: Any) -> Any:
    if name == "criterion" and isinstance(value, dict) and "name" not in value:
        return PruningConfig.from_config(value)
    if name in _REGISTRIES and isinstance(value, dict):
        make: Callable[[Any], Any] = _REGISTRIES[name].deserialize
        return make(value)
    if name in _MAYBE_SCHEDULES and isinstance(value, dict) and "class_name" in value:
        return schedules.deserialize(value)
    return value
