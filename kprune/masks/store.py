"""Storage for the masks of a Keras 3 layer, as layer state that does not count among its weights.

Keras keeps the states of seed generators in `layer.variables` and not in `layer.weights`; a mask goes the same way. So
`get_weights`, parameter counts, weight files and TensorBoard see the dense model, while trainers, distributions and
compiled steps see the masks. This rests on what Keras asks of a seed generator, its `state` alone (checked with Keras
3.13.2 and 3.15.1; tests/test_masks_as_state.py).
"""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from itertools import count
from typing import Any

import keras
import numpy as np
from absl import logging

from ..runtime.distribution import device_layout, to_numpy, whole_layout
from .behind import Behind
from .loading import forget_loaded
from .stores import read_bytes
from .types import FOLLOWS
from .variables import has_value, note_given

CARRIER = "_kprune_carrier"  # the attribute of a weight whose mask store saves the callbacks' states
_CARRIED = "callbacks"  # their key in the file
_FOLLOWER = "follower_"  # how the keys of followers' masks begin
_SOURCES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # token -> layer
_PROCESS = os.urandom(8).hex()
_without_masks: weakref.ref[Any] | None = None  # the last file that was said to hold no masks


class MaskState(keras.random.SeedGenerator):
    """A mask kept as the `state` of a seed generator, so that Keras treats it as layer state."""

    def __init__(self, mask: Any):  # not the seed generator's own, which makes a variable
        self.name, self.state, self._initial_seed = mask.name, mask, None


class MaskStore(keras.Operation):
    """The bool masks of one layer, in a Keras operation that is saved with the layer but is not a sublayer.

    On disk a mask is bit-packed: `ceil(size / 8)` bytes, uint8, C order; those of followers (see following.py) under
    names of their own, so that a model without them reads the others.

    Attributes:
        behind: what becomes of the values of pruned entries.
        masked: list of the masked `keras.Variable`s of the layer.
        masks: list of bool `keras.Variable`s, each of its weight's shape; True = kept.
        states: list of what the layer tracks, one per mask.
    """

    behind: Behind
    masked: list[Any]
    masks: list[Any]
    states: list[MaskState]

    def add(self, variables: list[Any], shared: dict[int, Any], behind: Behind, initial: dict[int, np.ndarray]) -> None:
        """Add a mask for each of `variables` (keras.Variable of any shape).

        It is `shared[id(v)]`, or else a new one, of the values `initial[id(v)]` or all True.
        """
        self.behind = behind
        self.masked = list(variables)
        self.masks = [shared[id(v)] if id(v) in shared else self._new(v, initial.get(id(v))) for v in variables]
        self.states = [MaskState(mask) for mask in self.masks]

    def _new(self, weight: Any, initial: np.ndarray | None) -> Any:
        # An initializer, not an assignment: a layer that is built in a symbolic call gets its values after it.
        ones_or = "ones" if initial is None else lambda shape, dtype: keras.ops.convert_to_tensor(initial, dtype)
        return beside(weight, "mask", ones_or, "bool")

    def enforce(self) -> None:
        """Set the pruned entries of the weights to 0, whatever was written to them."""
        for weight, mask in zip(self.masked, self.masks, strict=True):
            value, kept = to_numpy(weight), to_numpy(mask)
            if np.any(value[~kept] != 0):
                weight.assign(np.where(kept, value, np.zeros((), value.dtype)))

    def save_own_variables(self, store: Any) -> None:
        for key, mask in zip(self._keys(), self.masks, strict=True):
            store[key] = np.packbits(to_numpy(mask))
        for carrier in self._carriers():
            store[_CARRIED] = np.frombuffer(carrier.dump(), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        self._load(store)
        if not self.behind.latent:
            forget_loaded(self.masked, getattr(store, "h5_file", None))

    def _load(self, store: Any) -> None:
        keys = list(store.keys())
        if not keys:
            if any(not key.startswith(_FOLLOWER) for key in self._keys()):
                _warn_of_no_masks(getattr(store, "h5_file", None))
            self.settle()
            return
        stored = [key for key in keys if key != _CARRIED]
        kernels, own = ([key for key in some if not key.startswith(_FOLLOWER)] for some in (stored, self._keys()))
        if sorted(kernels) != sorted(own):
            raise ValueError(
                f"For one layer, the file contains {len(kernels)} masks, but this model has {len(own)}: before "
                "loading, call kprune.mask with the `filters` and `weights` of the saved model. Received: "
                f"masks={stored}"
            )
        read = {key: mask for key, mask in zip(self._keys(), self.masks, strict=True) if key in stored}
        sizes = [int(np.prod(mask.shape)) for mask in read.values()]
        bits = [read_bytes(store, key, f"mask {key}", (n + 7) // 8) for key, n in zip(read, sizes, strict=True)]
        for mask, size, packed in zip(read.values(), sizes, bits, strict=True):
            mask.assign(np.unpackbits(packed, count=size).reshape(mask.shape).astype(bool))
        self.settle()
        if _CARRIED in keys:
            for carrier in self._carriers():
                carrier.load(read_bytes(store, _CARRIED, "callback state").tobytes())

    def settle(self) -> None:
        """Set the pruned entries of the weights to 0, unless values stay behind the masks.

        Where weights get their values later, at the end of a symbolic call, it is noted that they will have some there.
        """
        if self.behind.latent:
            return
        if all(map(has_value, self.masked)):
            self.enforce()
        else:
            for weight in self.masked:
                note_given(weight)

    def _keys(self) -> list[str]:
        numbers = {"": count(), _FOLLOWER: count()}
        kinds = [_FOLLOWER if getattr(v, FOLLOWS, False) else "" for v in self.masked]
        return [f"{kind}{next(numbers[kind])}" for kind in kinds]

    def _carriers(self) -> list[Any]:
        return [getattr(v, CARRIER) for v in self.masked if hasattr(v, CARRIER)]


def beside(weight: Any, name: str, initializer: Any, dtype: str, scalar: bool = False) -> Any:
    """Create a non-trainable variable for a weight, either a scalar or with the weight's shape and layout."""
    # By its path, too, as paths must be unique. Keras's distribution would lay it out by that.
    with ExitStack() as scopes:
        for part in weight.path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(part))
        return keras.Variable(
            initializer,
            () if scalar else weight.shape,
            dtype,
            trainable=False,
            name=f"{weight.name}_{name}",
            layout=whole_layout(weight) if scalar else device_layout(weight),
        )


def token_of(layer: Any) -> str:
    """Return a token with which a clone in this process can find the original layer (see `source_of`)."""
    token = f"{_PROCESS}-{id(layer)}"
    _SOURCES[token] = layer
    return token


def source_of(token: str | None) -> Any:
    """Return the layer that a token belongs to, or None if that layer is gone or is in another process."""
    return _SOURCES.get(token) if isinstance(token, str) else None


def check_names(store: Any) -> None:
    """Raise ValueError for weight files of version 0.1.0, which used other names for masked layers."""
    file = getattr(store, "h5_file", None)
    if not list(store.keys()) and file is not None and _named_as_0_1_0(file):
        raise ValueError(
            "These weights were saved by kprune 0.1.0, which used other names for masked layers: load them into a "
            "masked model with kprune 0.1.0 and save it as a .keras file, which this version can read. Received: "
            f"file={getattr(file, 'filename', None)!r}"
        )


def _warn_of_no_masks(file: Any) -> None:
    """Log one warning per file that contains no masks, even though the store of every layer reads from the file."""
    global _without_masks
    if file is None or _without_masks is None or _without_masks() is not file:
        _without_masks = None if file is None else weakref.ref(file)
        logging.warning(
            "kprune: the weights being loaded come from a model without masks. This model keeps its masks; the "
            "loaded values of pruned weights are set to 0, or kept behind the masks with store='latent'."
        )


def _named_as_0_1_0(file: Any) -> bool:
    found: list[str] = []
    file.visit(lambda name: found.append(name) if name.rsplit("/", 1)[-1].startswith("masked_") else None)
    return bool(found)
