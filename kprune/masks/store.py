"""Where the masks of a Keras 3 layer are stored: in state of the layer that is not among its weights.

Keras keeps the states of seed generators in `layer.variables` and not in `layer.weights`; a mask goes the same way. So
`get_weights`, parameter counts, weight files and TensorBoard see the dense model, while trainers, distributions and
compiled steps see the masks. This rests on what Keras asks of a seed generator, its `state` alone (checked with Keras
3.13.2 and 3.15.1; tests/test_masks_as_state.py).
"""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
from absl import logging

from ..runtime.distribution import device_layout, to_numpy
from .behind import Behind
from .stores import read_bytes

CARRIER = "_kprune_carrier"  # the attribute of a weight whose mask store saves the callbacks' states
_CARRIED = "callbacks"  # their key in the file
_STORES: weakref.WeakValueDictionary[str, MaskStore] = weakref.WeakValueDictionary()
_PROCESS = os.urandom(8).hex()
_without_masks: weakref.ref[Any] | None = None  # the last file that was said to hold no masks


class MaskState(keras.random.SeedGenerator):
    """What Keras takes for a seed generator, and so for state of the layer: its `state` is a mask."""

    def __init__(self, mask: Any):  # not the seed generator's own, which makes a variable
        self.name, self.state, self._initial_seed = mask.name, mask, None


class MaskStore(keras.Operation):
    """The bool masks of one layer, which Keras saves with it: an operation, so that the layer stays a leaf.

    On disk a mask is bit-packed: `ceil(size / 8)` bytes, uint8, C order.

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

    def add(self, variables: list[Any], shared: dict[int, Any], behind: Behind) -> None:
        """Add a mask for each of `variables` (keras.Variable of any shape): `shared[id(v)]`, or a new one, all True."""
        self.behind = behind
        self.masked = list(variables)
        self.masks = [shared[id(v)] if id(v) in shared else self._new(v) for v in variables]
        self.states = [MaskState(mask) for mask in self.masks]

    def _new(self, weight: Any) -> Any:
        # Beside its weight, as paths must be unique. Laid out as the weight is, not as Keras's distribution would say.
        with ExitStack() as scopes:
            for part in weight.path.split("/")[:-1]:
                scopes.enter_context(keras.name_scope(part))
            return keras.Variable(
                "ones", weight.shape, "bool", trainable=False, name=f"{weight.name}_mask", layout=device_layout(weight)
            )

    def take(self, other: MaskStore) -> None:
        """Copy the masks from the store of a layer of the same kind."""
        for mask, original in zip(self.masks, other.masks, strict=True):
            mask.assign(to_numpy(original))

    def enforce(self) -> None:
        """Set the pruned entries of the weights to 0, regardless of what was written into them."""
        for weight, mask in zip(self.masked, self.masks, strict=True):
            value, kept = to_numpy(weight), to_numpy(mask)
            if np.any(value[~kept] != 0):
                weight.assign(np.where(kept, value, np.zeros((), value.dtype)))

    def save_own_variables(self, store: Any) -> None:
        for i, mask in enumerate(self.masks):
            store[str(i)] = np.packbits(to_numpy(mask))
        for carrier in self._carriers():
            store[_CARRIED] = np.frombuffer(carrier.dump(), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        keys = list(store.keys())
        if not keys:
            _warn_of_no_masks(getattr(store, "h5_file", None))
            self._settle()
            return
        stored = [key for key in keys if key != _CARRIED]
        if sorted(stored) != sorted(map(str, range(len(self.masks)))):
            raise ValueError(
                f"The file holds masks for {len(stored)} weights of a layer, but the model has {len(self.masks)}: mask "
                f"it with the same filters and weights before loading. Received: masks={stored}"
            )
        sizes = [int(np.prod(mask.shape)) for mask in self.masks]
        bits = [read_bytes(store, str(i), f"mask {i}", (size + 7) // 8) for i, size in enumerate(sizes)]
        for mask, size, packed in zip(self.masks, sizes, bits, strict=True):
            mask.assign(np.unpackbits(packed, count=size).reshape(mask.shape).astype(bool))
        self._settle()
        if _CARRIED in keys:
            for carrier in self._carriers():
                carrier.load(read_bytes(store, _CARRIED, "state of the callbacks").tobytes())

    def _settle(self) -> None:
        if not self.behind.latent:
            self.enforce()

    def _carriers(self) -> list[Any]:
        return [getattr(v, CARRIER) for v in self.masked if hasattr(v, CARRIER)]


def token_of(store: MaskStore | None) -> str | None:
    """What a clone of the layer, in this process, finds the store by (`source_of`); None of a layer without masks."""
    if store is None:
        return None
    token = f"{_PROCESS}-{id(store)}"
    _STORES[token] = store
    return token


def source_of(token: str | None) -> MaskStore | None:
    """The store whose token it is; None if it is gone, or lives in another process."""
    return _STORES.get(token) if isinstance(token, str) else None


def check_names(store: Any) -> None:
    """Raises ValueError where a weight file of version 0.1.0 is loaded, which named masked layers otherwise."""
    file = getattr(store, "h5_file", None)
    if not list(store.keys()) and file is not None and _named_as_0_1_0(file):
        raise ValueError(
            "The weights were saved by kprune 0.1.0, which saved masked layers under other names: load them with 0.1.0 "
            "into a masked model, and save that as a .keras file, which this version reads. "
            f"Received: file={getattr(file, 'filename', None)!r}"
        )


def _warn_of_no_masks(file: Any) -> None:
    """Once per file, which each of its layers' stores is read from."""
    global _without_masks
    if file is None or _without_masks is None or _without_masks() is not file:
        _without_masks = None if file is None else weakref.ref(file)
        logging.warning(
            "kprune: the weights being loaded come from a model without masks. This model keeps its masks; the loaded "
            "values of pruned weights are set to 0, or stay behind the masks where these have store='latent'."
        )


def _named_as_0_1_0(file: Any) -> bool:
    found: list[str] = []
    file.visit(lambda name: found.append(name) if name.rsplit("/", 1)[-1].startswith("masked_") else None)
    return bool(found)
