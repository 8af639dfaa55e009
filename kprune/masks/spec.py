"""Validation of the masks in a masked layer's config, which may come from a damaged or hand-made file."""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

from .behind import Behind

SPEC = "kprune"  # the key of a masked layer's config that holds the plain class and the masked weights' positions
FORMAT = 2  # of the config; without one it is version 0.1.0's
LATENT = 3  # the same with what becomes of pruned values, if that is not what FORMAT stands for
_CLASS = ("module", "class_name", "registered_name")
_saved: weakref.WeakKeyDictionary[type, set[int]] = weakref.WeakKeyDictionary()  # masked class -> ids of its layers


def spec_of(positions: list[int], weights: int, followers: list[int], behind: Behind) -> dict[str, Any]:
    """Return the part of a masked layer's config that describes the masks but not the plain class."""
    known: dict[str, Any] = {"masked": positions, "weights": weights, "format": FORMAT}
    if followers:
        known["followers"] = followers
    return known if behind == Behind() else {**known, "format": LATENT, **asdict(behind)}


@dataclass
class Pending:
    """Masks to add to a layer once all of its weights exist.

    Attributes:
        positions: of the masked weights among `layer.weights`.
        expected: the number of weights that it will have.
        followers: those of the positions that are masked only with a channel: see following.py.
        behind: what becomes of the values of pruned entries.
        source: the token of the layer that the masks come from, in this process.
        initial: position -> the mask that the layer has there.
        build: the layer's own method, which stands aside until then.
    """

    positions: list[int]
    expected: int
    followers: list[int]
    behind: Behind
    source: str | None
    initial: dict[int, Any] = field(default_factory=dict)
    build: Any = None


def plain_layer(config: dict[str, Any]) -> tuple[Any, Pending]:
    """Return the layer without masks, and the masks to add to it.

    Raises:
        ValueError: the config does not say so, or what it says cannot be.

    >>> plain_layer({"units": 3, "kprune": {"class_name": "Dense", "masked": [2], "weights": 2}})
    Traceback (most recent call last):
    ...
    ValueError: The config of a masked layer must list valid positions of its weights. Received: masked=[2], weights=2
    """
    config = dict(config)
    spec = config.pop(SPEC, None)
    if not isinstance(spec, dict):
        raise ValueError(f"The config of a masked layer must list its masked weights. Received: {SPEC}={spec!r:.80}")
    if spec.get("format", 1) not in (1, FORMAT, LATENT):
        raise ValueError(
            "The config of this masked layer has a format that this version of kprune cannot read: install a newer "
            f"version. Received: format={spec['format']!r:.80}"
        )
    masked, weights, followers = spec.get("masked"), spec.get("weights"), spec.get("followers", [])
    if not (
        isinstance(masked, list)
        and isinstance(weights, int)
        and isinstance(followers, list)
        and _are_positions(masked, weights)
        and all(i in masked for i in followers)
    ):
        raise ValueError(
            f"The config of a masked layer must list valid positions of its weights. "
            f"Received: masked={masked!r:.80}, weights={weights!r:.80}"
            + (f", followers={followers!r:.80}" if followers else "")
        )
    layer = keras.saving.deserialize_keras_object({**{key: spec.get(key) for key in _CLASS}, "config": config})
    if not isinstance(layer, keras.layers.Layer):
        raise ValueError(
            f"The config of a masked layer must name a layer class. Received: class_name={spec.get('class_name')!r:.80}"
        )
    behind = Behind() if spec.get("format") != LATENT else Behind.of(spec.get("store"), spec.get("gradient"), None)
    return layer, Pending(masked, weights, followers, behind, spec.get("source"))


def _are_positions(masked: list[Any], weights: int) -> bool:
    return all(type(i) is int and 0 <= i < weights for i in masked) and len({*masked}) == len(masked)


def registered_while_alive(layer: Any, base: type) -> None:
    """Make Keras save the layer's class under the registered name of `base`, so that loading calls `base.from_config`.

    Keras never forgets a class that is registered, nor, with it, the user's own class that it is made of. It asks for
    the name right after `get_config`, which calls this, in a dict that it shows nowhere (`GLOBAL_CUSTOM_NAMES`, checked
    with Keras 3.13.2 and 3.15.1; tests/test_layers.py); the name goes when the last layer of the class does.
    """
    cls = type(layer)
    ids = _saved.setdefault(cls, set())
    GLOBAL_CUSTOM_NAMES[cls] = keras.saving.get_registered_name(base)
    if id(layer) not in ids:
        ids.add(id(layer))
        weakref.finalize(layer, _forget, cls, id(layer)).atexit = False


def _forget(cls: type, layer: int) -> None:
    ids = _saved[cls]
    ids.discard(layer)
    if not ids:
        GLOBAL_CUSTOM_NAMES.pop(cls, None)
