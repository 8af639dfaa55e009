"""Rewinding: a snapshot of a model and its optimizer, and going back to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..masks import Masks, current_masks, is_tf_keras, masked_weights, set_masks, unique_paths
from ..masks.keras3 import seed_states
from ..masks.masked_layers import plain_weights
from ..runtime.distribution import to_numpy
from ..runtime.files import joined, split
from ..runtime.optimizers import all_variables, build

Arrays = dict[str, np.ndarray]
REWINDS = ("weights", "learning_rate", "none")


@dataclass(frozen=True)
class RewindPoint:
    """A point of the first training: `step` optimizer steps after its begin, or a share of its epochs.

    Attributes:
        steps: number of optimizer steps, or None.
        epochs: number of epochs (whole or not), or None.
        share: fraction of the training, or None.
    """

    steps: int | None = None
    epochs: float | None = None
    share: float | None = None

    @classmethod
    def of(cls, rewind_to: Any) -> RewindPoint:
        """The point that a user's words mean.

        Args:
            rewind_to: "init"; an int or "step:100", a number of optimizer steps; a float in [0, 1) or "fraction:0.1",
                a share of the training of a level; "epoch:2".

        Raises:
            ValueError: it is none of these.

        >>> RewindPoint.of("epoch:2").in_batches(epochs=10, batches_per_epoch=50)
        100
        >>> RewindPoint.of(0.1).in_batches(epochs=10, batches_per_epoch=50)
        50
        """
        found = re.fullmatch(r"(step|epoch|fraction):([0-9.]+)", rewind_to) if isinstance(rewind_to, str) else None
        if rewind_to == "init":
            return cls(steps=0)
        try:
            if isinstance(rewind_to, int) and not isinstance(rewind_to, bool) and rewind_to >= 0:
                return cls(steps=rewind_to)
            if isinstance(rewind_to, float) and 0 <= rewind_to < 1:
                return cls(share=rewind_to)
            if found and found[1] == "step":
                return cls(steps=int(found[2]))
            if found and found[1] == "epoch":
                return cls(epochs=float(found[2]))
            if found and float(found[2]) < 1:
                return cls(share=float(found[2]))
        except ValueError:
            pass
        raise ValueError(
            '`rewind_to` is "init", a step (an int or "step:100"), "epoch:2", or a share of a level\'s training in '
            f'[0, 1) (a float or "fraction:0.1"). Received: rewind_to={rewind_to!r}'
        )

    def in_epochs(self, epochs: int, batches_per_epoch: float | None, batches_per_step: int = 1) -> int:
        """The number of whole epochs before the point.

        Args:
            epochs: of the training of level 0.
            batches_per_epoch: may be None where the point is not given in steps.
            batches_per_step: above 1 where the optimizer accumulates gradients.

        Raises:
            ValueError: `batches_per_epoch` is needed, or the point lies not before the end of the training.
        """
        if self.steps == 0:
            return 0
        if self.steps is None:
            found = math.floor(round(self._of_epochs(epochs), 6))
        else:
            found = int(self.in_batches(epochs, batches_per_epoch, batches_per_step) // (batches_per_epoch or 1))
        if found >= epochs:
            raise ValueError(f"The point to rewind to lies not within the {epochs} epochs of a level. Received: {self}")
        return found

    def in_batches(self, epochs: int, batches_per_epoch: float | None, batches_per_step: int = 1) -> int:
        """The number of batches before the point; as `in_epochs`."""
        if self.steps == 0:
            return 0
        if batches_per_epoch is None:
            raise ValueError(
                "How many steps an epoch has must be known for this rewind point: pass steps_per_epoch. "
                f"Received: {self}"
            )
        if self.steps is not None:
            found = self.steps * batches_per_step
        else:
            found = math.floor(round(self._of_epochs(epochs) * batches_per_epoch, 6))
        if found >= epochs * batches_per_epoch:
            raise ValueError(
                f"The point to rewind to, batch {found}, lies not within the {epochs * batches_per_epoch:g} batches of "
                f"a level. Received: {self}"
            )
        return found

    def _of_epochs(self, epochs: int) -> float:
        return self.epochs if self.epochs is not None else (self.share or 0.0) * epochs


@dataclass(frozen=True)
class Snapshot:
    """What a model and its optimizer were at one moment; made by `snapshot`.

    Attributes:
        weights: path -> array: all weights of the model but its masks, with normalisation statistics and the states
            of seed generators.
        optimizer: position and name -> array: all that the optimizer keeps: slots, iterations, learning rate,
            averages, loss scale.
    """

    weights: Arrays
    optimizer: Arrays

    def to_arrays(self) -> Arrays:
        """One dict of all arrays, for a file."""
        return joined(weights=self.weights, optimizer=self.optimizer)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Snapshot:
        """The snapshot of which `to_arrays` made this dict."""
        return cls(**split(arrays, "weights", "optimizer"))


def model_weights(model: Any) -> dict[str, Any]:
    """path -> variable of each weight of the model, in its order, masks left out; masked ones by their known path."""
    masked = {id(weight.variable): weight.path for weight in masked_weights(model)}
    if is_tf_keras(model):
        from ..masks.tf_keras import plain_variables

        variables = plain_variables(model)
    else:
        variables = plain_weights(model)
    names = unique_paths([getattr(v, "path", v.name) for v in variables])
    if not is_tf_keras(model):
        # Keras numbers the generators of a process, so their own names are others in each run.
        seeds = seed_states(model)
        variables, names = [*variables, *seeds], [*names, *(f"seed_generator/{i}" for i in range(len(seeds)))]
    return {masked.get(id(v), name): v for v, name in zip(variables, names, strict=True)}


def snapshot(model: Any, optimizer: Any = None) -> Snapshot:
    """All that training changes in a model and its optimizer, on the host.

    Args:
        model: a built model, masked or not.
        optimizer: of a custom training loop; the compiled one by default. It is built if it is not yet.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", "mse")
    >>> before = kprune.rewind.snapshot(model)
    >>> _ = model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)))
    >>> kprune.rewind.rewind(model, before)
    >>> int(model.optimizer.iterations)
    0
    """
    optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
    return Snapshot(
        {path: to_numpy(v) for path, v in model_weights(model).items()},
        {name: to_numpy(v) for name, v in _optimizer_variables(model, optimizer).items()},
    )


def rewind(model: Any, to: Snapshot, what: str = "weights", optimizer: Any = None) -> None:
    """Take the model back to a snapshot; masks stay, and pruned weights stay 0.

    - "weights": weights, normalisation statistics, seed generators and the whole optimizer (arXiv:1803.03635,
      1903.01611).
    - "learning_rate": the optimizer only (arXiv:2003.02389): its iterations, and with them the position of a learning
      rate schedule, the learning rate, and its slots, which belong to the iterations (Adam corrects their bias by
      them). Weights and statistics stay as trained.
    - "none": nothing, so training goes on (fine-tuning).

    Args:
        model: the model of which the snapshot was taken, or one that is built and compiled alike.
        to: from `snapshot`.
        what: "weights", "learning_rate" or "none".
        optimizer: of a custom training loop; the compiled one by default.

    A snapshot of a model that was not compiled, or one for a model that is not, says nothing of the optimizer.

    Raises:
        ValueError: `what` is another word, or the snapshot is of another model or optimizer, or of none where only that
            is to be rewound. Nothing has been changed then.
    """
    if what not in REWINDS:
        raise ValueError(f"Expected one of {', '.join(REWINDS)}. Received: rewind={what!r}")
    optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
    weights = model_weights(model)
    slots = _optimizer_variables(model, optimizer)
    known = what == "learning_rate" or (slots and to.optimizer)
    slots_then = matched(slots, to.optimizer, "optimizer") if known else {}
    weights_then = matched(weights, to.weights, "model")
    for variables, arrays, due in ((slots, slots_then, what != "none"), (weights, weights_then, what == "weights")):
        for name, value in arrays.items() if due else ():
            variables[name].assign(value)
    if what != "none":
        reapply_masks(model, optimizer)


def restore(model: Any, masks: Masks, to: Snapshot) -> None:
    """Bring back masks and a snapshot of one moment.

    Raises:
        ValueError: one of them is of another model or optimizer. Nothing has been changed then.
    """
    by_path = {weight.path: weight for weight in masked_weights(model)}
    masks = matched(by_path, masks, "model")
    before = current_masks(model)
    set_masks(model, masks)
    try:
        rewind(model, to)
    except ValueError:
        set_masks(model, before)
        raise


def reapply_masks(model: Any, optimizer: Any = None) -> None:
    """Zero what the masks prune, in the weights and in the optimizer's slots."""
    set_masks(model, current_masks(model), optimizer)


def matched(mine: dict[str, Any], theirs: Mapping[str, np.ndarray], of: str) -> Arrays:
    """path of mine -> array of theirs: by path, or where the names differ ("dense", "dense_1") by order.

    Raises:
        ValueError: there are more or fewer of them, or one has another shape, or by order another kind ("kernel",
            "bias" ...); the first that does is named.
    """
    if len(mine) != len(theirs):
        odd = next((path for path in [*mine, *theirs] if path not in mine or path not in theirs), "")
        raise ValueError(
            f"It is of another {of}: it has {len(theirs)} arrays for {len(mine)} variables; {odd!r} is only in one of "
            f"the two. Received: {len(theirs)} arrays"
        )
    by_path = all(path in theirs for path in mine)
    pairs = {path: theirs[path] for path in mine} if by_path else dict(zip(mine, theirs.values(), strict=True))
    for path, array in pairs.items():
        shape = tuple(mine[path].shape)
        if array.shape != shape:
            raise ValueError(f"It is of another {of}: {path} has shape {shape}. Received: shape={array.shape}")
    for path, other in () if by_path or of != "model" else zip(mine, theirs, strict=True):
        if _kind(path) != _kind(other):
            raise ValueError(f"It is of another {of}: {path} stands where it has {other}. Received: {other}")
    return pairs


def _kind(path: str) -> str:
    """The weight's own name in its layer, without what Keras appends to tell names apart."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", path.rsplit("/", 1)[-1])


def _optimizer_variables(model: Any, optimizer: Any) -> dict[str, Any]:
    if optimizer is None:
        return {}
    build(optimizer, model)
    return {f"{i}/{v.name}": v for i, v in enumerate(all_variables(optimizer))}


__all__ = ["RewindPoint", "Snapshot", "rewind", "snapshot"]
