"""Mask a model in order to change it, and restore it if the change fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from absl import logging

from ..runtime.optimizers import all_variables
from ..runtime.values import Values
from .api import check_leaks, followers, mask, masked_weights, strip
from .keras3 import narrow
from .libraries import library_of
from .optimizers import check_like_optimizer, trainers


def mask_for_pruning(model: Any, store: str | None = None) -> bool:
    """Make sure that a model has masks, and return whether they are new; raise ValueError if it cannot be masked.

    Args:
        model: a built model of either Keras.
        store: as in `kprune.mask`, of masks that are made.
    """
    if weights := masked_weights(model):
        library_of(model).take_over(model)
        if frozen := [weight.path for weight in weights if not weight.trainable]:
            logging.warning(
                "kprune: these masked weights are frozen; they keep their masks but do not count toward the "
                "sparsity: %s",
                ", ".join(frozen[:4]) + (" ..." if len(frozen) > 4 else ""),
            )
        return False
    if not library_of(model).IN_PLACE:
        raise ValueError(
            "A tf_keras model cannot be masked in place: call `model = kprune.mask(model).model`, then compile it. "
            f"Received: model={model.name!r}"
        )
    report = mask(model, store=store)
    if not report.masked:
        raise ValueError(
            f"The model has no weights that can be masked, for these reasons: {report.skipped}. "
            f"Received: model={model.name!r}"
        )
    return True


class Undo:
    """A snapshot of a model before a change, to be restored if needed; creating the snapshot also masks the model.

    Args:
        model: a built model of either Keras.
        optimizer: of a custom training loop, beside the compiled one and those that the model holds.
        store: as in `kprune.mask`, of masks that are made.

    Attributes:
        fresh: whether the model had no masks before.

    Raises:
        ValueError: the model cannot be masked, or `optimizer` is none. Nothing has been changed then.
        RuntimeError: training has given pruned entries values.
    """

    def __init__(self, model: Any, optimizer: Any = None, store: str | None = None):
        check_like_optimizer(optimizer)
        self.model, self._optimizer, self._values = model, optimizer, Values()
        check_leaks(model, masked_weights(model))  # ValueError for what is no model
        self._values.add([*model.variables, *(weight.mask for weight in followers(model))])
        self._masked = [weight.variable for weight in (*masked_weights(model), *followers(model))]
        self.fresh = mask_for_pruning(model, store)

    def hold(self) -> None:
        """Record the state of the optimizers that train the model, and of all variables created since `__init__`.

        They are looked for here, not when the model is masked: that comes once per callback, and changes none of them.
        """
        optimizer = self._optimizer if self._optimizer is not None else getattr(self.model, "optimizer", None)
        optimizers = trainers(self.model, self.model.trainable_variables)
        optimizers += [] if optimizer is None else [optimizer]
        masks = (weight.mask for weight in followers(self.model))  # which tf_keras does not list
        self._values.add([*self.model.variables, *masks, *(v for one in optimizers for v in all_variables(one))])

    def unmask(self) -> None:
        """Remove the masks that the model did not have before."""
        if self.fresh:
            self.fresh = False
            strip(self.model)
        elif library_of(self.model).IN_PLACE and self._held_now() > len(self._masked):
            narrow(self.model, self._masked)

    def _held_now(self) -> int:
        return len(masked_weights(self.model)) + len(followers(self.model))

    def back(self) -> None:
        """Restore the model: masks, weights, statistics, seeds and the optimizer."""
        if self.fresh:
            self.fresh = False
            # Not by `strip`: what was interrupted may have set a mask and not yet the zeros, which it takes for a leak.
            library_of(self.model).strip_model(self.model)
        else:
            self._values.put_back()  # masks, too, before the last of them are made anew
            self.unmask()
        self._values.put_back()


@contextmanager
def masked(model: Any, optimizer: Any = None, keep: bool = True) -> Iterator[None]:
    """Mask a model; if the `with` block raises, restore the model's previous state bit for bit, masks included.

    Args:
        model, optimizer: as in `Undo`.
        keep: False takes masks that were made for this away again in any case.

    Raises:
        ValueError: the model cannot be masked. Nothing has been changed then.
    """
    undo = Undo(model, optimizer)
    try:
        undo.hold()
        yield
    except BaseException:
        undo.back()
        raise
    if not keep:
        undo.unmask()
