"""Storage of the values of pruned entries, which either become 0 or are kept behind the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from ..util.checks import check_choice

STORES = ("zero", "latent")
GRADIENTS = ("masked", "straight_through")


@dataclass(frozen=True)
class Behind:
    """The way in which a masked layer reads and stores a weight w under a mask m.

    It reads where(m, w, 0) in any case.

    Attributes:
        store: "zero": pruned entries of w are 0; "latent": they keep their values, and return with them.
        gradient: of the loss by pruned entries. "masked": 0; "straight_through": that by what is read, as if the entry
            were kept.
    """

    store: str = "zero"
    gradient: str = "masked"

    @classmethod
    def of(cls, store: str | None, gradient: str | None, known: Behind | None) -> Behind:
        """Return the requested `Behind`, or raise ValueError if it is invalid or existing masks differ (`known`)."""
        if store is not None:
            check_choice("store", store, STORES)
        if gradient is not None:
            check_choice("gradient", gradient, GRADIENTS)
        store = store or (known.store if known else "zero")
        default = known.gradient if known and known.store == store else {"latent": GRADIENTS[1]}.get(store, "masked")
        asked = cls(store, gradient or default)
        if asked == cls("zero", "straight_through"):
            raise ValueError(
                "gradient='straight_through' requires store='latent', because pruned entries that get gradients do "
                f"not stay 0. Received: store={store!r}, gradient={gradient!r}"
            )
        if known is not None and asked != known:
            raise ValueError(
                f"The model already has masks with store={known.store!r} and gradient={known.gradient!r}: call "
                f"kprune.strip(model) first. Received: store={asked.store!r}, gradient={asked.gradient!r}"
            )
        return asked

    @property
    def latent(self) -> bool:
        """Whether pruned entries keep their values."""
        return self.store == "latent"

    def read(self, weight: Any, mask: Any) -> Any:
        """Return the value that the layer computes with: where(mask, weight, 0), a tensor of the weight's shape."""
        if self.gradient == "masked":
            return _kept(mask.value, weight)
        # Exactly 0 where pruned, but with the gradient of the weight.
        return ops.where(mask.value, weight, weight - ops.stop_gradient(weight))


def _kept(mask: Any, weight: Any) -> Any:
    if keras.backend.backend() != "tensorflow":
        return ops.where(mask, weight, ops.zeros((), weight.dtype))
    import tensorflow as tf

    # A third of the time of `ops.where` on a CPU, whose op broadcasts.
    mask, weight = ops.convert_to_tensor(mask), ops.convert_to_tensor(weight)
    return tf.raw_ops.Select(condition=mask, x=weight, y=tf.zeros_like(weight))
