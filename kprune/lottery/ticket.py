"""Ticket: a sparse network before training, stored as masks, initial weights, and provenance."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..masks import Masks, current_masks, masked, masked_weights, set_masks
from ..masks.matching import check_numbers
from ..runtime.distribution import to_numpy
from ..runtime.files import contents, joined, pack, split, understanding, unpack, write
from ..util.checks import check_expression, check_npz, received_with
from .rewind import Arrays, matched, model_weights, reapply_masks, warn_of_nan

_KIND = "kprune ticket 1"


@dataclass(frozen=True)
class Ticket:
    """A lottery ticket: masks, the weights at the rewind point, and provenance (arXiv:1803.03635).

    Attributes:
        masks: path -> bool array of the weight's shape, True = kept, in the model's order.
        weights: path -> array: all weights of the model (normalization statistics and seed generators too) at the
            point that was rewound to.
        about: provenance; what JSON can hold.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> masks = kprune.prune(model, "magnitude", sparsity=0.5)
    >>> ticket = kprune.Ticket.of(model)
    >>> ticket.sparsity
    0.5
    """

    masks: Masks
    weights: Arrays
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers("masks", self.masks)
        check_numbers("weights", self.weights)
        if not isinstance(self.about, Mapping):
            raise ValueError(f"`about` must be a dict. Received: about={self.about!r:.200}")

    @classmethod
    def of(cls, model: Any, **about: Any) -> Ticket:
        """Make a ticket from a model's current state; raise ValueError if it has no masks or `about` is not JSON."""
        if not masked_weights(model):
            raise ValueError(f"The model has no masks: call kprune.mask first. Received: model={model.name!r}")
        try:
            json.dumps(about)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`about` must be JSON-serializable: {error}. Received: about={about!r}") from error
        weights = {path: to_numpy(v) for path, v in model_weights(model).items()}
        return cls(current_masks(model), weights, about)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all masks."""
        return 1 - sum(int(m.sum()) for m in self.masks.values()) / max(1, sum(m.size for m in self.masks.values()))

    @property
    def checksum(self) -> str:
        """Hexadecimal SHA-256 of the masks and weights, in order; equal tickets have equal checksums on any machine.

        Paths do not count, as Keras numbers the layers of a process ("dense_1").
        """
        digest = hashlib.sha256()
        for arrays in (self.masks, self.weights):
            for array in arrays.values():
                digest.update(f"{array.dtype.name} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ticket atomically to an .npz file, without pickle.

        Raises:
            ValueError: the name does not end in .npz.
            OSError: it cannot be written; what was there is as it was.
        """
        check_npz("path", path)
        arrays = joined(mask=self.masks, weight=self.weights)
        write(path, pack(arrays, {"kind": _KIND, "provenance": dict(self.about)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read a ticket that `save` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: the name does not end in .npz, or it is truncated, damaged, or another kind of file.
        """
        check_npz("path", path)
        arrays, about = unpack(contents(path), os.fspath(path))
        if about.get("kind") != _KIND:
            raise ValueError(f"The file is not a kprune ticket. Received: path={os.fspath(path)!r}")
        with understanding(os.fspath(path)):
            parts = split(arrays, "mask", "weight")
            wrong = [name for name, mask in parts["mask"].items() if mask.dtype != np.bool_]
            if wrong or not isinstance(about["provenance"], dict):
                raise ValueError(
                    f"masks must be bool, but {wrong[0]!r} is not" if wrong else "its provenance is not a dict"
                )
        return cls(parts["mask"], parts["weight"], about["provenance"])

    def apply(self, model: Any, skip: str | None = None, weights: bool = True, optimizer: Any = None) -> None:
        """Give a model the ticket's masks and initial weights.

        Weights are found by their path; where the names differ (Keras numbers them: "dense", "dense_1") but kinds and
        shapes agree one by one, by their order.

        Args:
            model: a built Keras 3 model, masked first if it has no masks; or a tf_keras model that `kprune.mask`
                returned.
            skip: regular expression: weights of the model in whose path it is found stay as they are, dense. So a
                ticket is transferred to another head: `skip="logits"`.
            weights: False gives masks only; the model keeps its own values.
            optimizer: of a custom training loop; its slots are reset where masks change.

        Raises:
            ValueError: the model does not match (the first weight that does not is named), or `skip` is no regular
                expression, or one that leaves nothing. Nothing has been changed then.
        """
        if skip is not None:
            check_expression(skip, "skip")
            if all(re.search(skip, path) for path in self.masks):
                raise ValueError(f"`skip` must leave at least one mask to apply. Received: skip={skip!r}")
        with masked(model, optimizer):
            mine = model_weights(model)
            values = _match(mine, self.weights, skip) if weights else {}
            warn_of_nan("The ticket", values)
            set_masks(model, _match({w.path: w for w in masked_weights(model)}, self.masks, skip), optimizer)
            for path, value in values.items():
                mine[path].assign(value)
            reapply_masks(model, optimizer)


def _match(mine: dict[str, Any], theirs: Arrays, skip: str | None) -> Arrays:
    """Map the paths of the model's weights to the ticket's arrays, leaving out the weights to skip."""

    def wanted(items: dict[str, Any]) -> dict[str, Any]:
        return {path: item for path, item in items.items() if skip is None or not re.search(skip, path)}

    try:
        return matched(wanted(mine), wanted(theirs), "model")
    except ValueError as error:
        raise ValueError(
            "The ticket does not match the model. To leave out weights, such as those of the head, pass `skip`. Cause: "
            + received_with(str(error), f"skip={skip!r}")
        ) from error
