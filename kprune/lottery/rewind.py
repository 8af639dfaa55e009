"""Snapshots of a model and its optimizer, and rewinding to them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from absl import logging

from ..masks import (
    Masks,
    check_like_optimizer,
    check_masks,
    current_masks,
    held_optimizers,
    library_of,
    masked_weights,
    set_masks,
    unique_paths,
)
from ..masks.matching import Arrays, check_numbers, matched
from ..runtime.distribution import to_numpy
from ..runtime.files import joined, split
from ..runtime.optimizers import all_variables, build, initial_value
from ..runtime.stand_in import StandIn
from ..runtime.writing import put
from ..util.checks import check_integer, check_number

REWINDS = ("weights", "learning_rate", "none")
RENAMED = {"rewind": "weights", "finetune": "none"}  # what kprune 0.1 called them in comparisons
_POINT = re.compile(r"(?:(step|epoch|fraction):)?(?=\.?[0-9])([0-9]{0,18}\.?[0-9]{0,18}(?:e-[0-9]{1,3})?)")
_OTHER = "other "  # before the names of what optimizers beside the compiled one keep


@dataclass(frozen=True)
class RewindPoint:
    """A point in the first training run, given as optimizer steps, as epochs, or as a fraction of the run.

    Attributes:
        steps: number of optimizer steps, or None.
        epochs: number of epochs (whole or not), or None.
        share: fraction of the training, or None.
    """

    steps: int | None = None
    epochs: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_integer("steps", self.steps, 0)
        if self.epochs is not None:
            check_number("epochs", self.epochs, ">= 0", lambda value: value >= 0)
        if self.share is not None:
            check_number("share", self.share, ">= 0 and < 1", lambda value: 0 <= value < 1)

    @classmethod
    def of(cls, rewind_to: Any) -> RewindPoint:
        """Return the point that the user's argument describes.

        Args:
            rewind_to: "init"; an int, "100" or "step:100", a number of optimizer steps; a float in [0, 1), "0.1" or
                "fraction:0.1", a share of the training of a level; "epoch:2"; or a `RewindPoint`.

        Raises:
            ValueError: it is none of these.

        >>> RewindPoint.of("epoch:2").in_batches(epochs=10, batches_per_epoch=50)
        100
        >>> RewindPoint.of(0.1).in_batches(epochs=10, batches_per_epoch=50)
        50
        """
        if isinstance(rewind_to, cls):
            return rewind_to
        kind, number = None, rewind_to
        if isinstance(rewind_to, str):
            found = _POINT.fullmatch("step:0" if rewind_to == "init" else rewind_to)
            kind, text = found.groups() if found else (None, "nan")
            number = int(text) if text.isdigit() else float(text)
        if isinstance(number, int | float) and not isinstance(number, bool) and number >= 0:
            kind = kind or ("step" if isinstance(number, int) else "fraction")
            if kind == "step" and isinstance(number, int):
                return cls(steps=number)
            if kind == "epoch":
                return cls(epochs=float(number))
            if kind == "fraction" and number < 1:
                return cls(share=float(number))
        raise ValueError(
            '`rewind_to` must be "init", a step (an int or "step:100"), an epoch ("epoch:2"), or a fraction in [0, 1) '
            f'of a level\'s training (a float or "fraction:0.1"). Received: rewind_to={rewind_to!r}'
        )

    def in_epochs(self, epochs: int, batches_per_epoch: float | None, batches_per_step: int = 1) -> int:
        """Return the number of whole epochs before the point.

        Args:
            epochs: of the training of level 0.
            batches_per_epoch: may be None where the point is not given in steps.
            batches_per_step: above 1 where the optimizer accumulates gradients.

        Raises:
            ValueError: `batches_per_epoch` is needed, or the point does not fall before the end of training.
        """
        _check_counts(epochs, batches_per_epoch, batches_per_step)
        if not self.steps:
            found = math.floor(round(self._of_epochs(epochs), 6))
        else:
            found = int(self.in_batches(epochs, batches_per_epoch, batches_per_step) // (batches_per_epoch or 1))
        if found >= epochs:
            raise ValueError(
                f"The rewind point must fall before the end of a level (epoch {epochs}). Received: point={self}"
            )
        return found

    def in_batches(self, epochs: int, batches_per_epoch: float | None, batches_per_step: int = 1) -> int:
        """Return the number of batches before the point; see `in_epochs`."""
        _check_counts(epochs, batches_per_epoch, batches_per_step)
        if self.steps == 0:
            return 0
        if batches_per_epoch is None:
            raise ValueError(
                "For this rewind point, kprune must know the number of steps per epoch: pass steps_per_epoch. "
                f"Received: point={self}"
            )
        if self.steps is not None:
            found = self.steps * batches_per_step
        else:
            found = math.floor(round(self._of_epochs(epochs) * batches_per_epoch, 6))
        if found >= epochs * batches_per_epoch:
            raise ValueError(
                f"The rewind point (batch {found}) must fall before the end of a level "
                f"(batch {epochs * batches_per_epoch:g}). Received: point={self}"
            )
        return found

    def _of_epochs(self, epochs: int) -> float:
        return self.epochs if self.epochs is not None else (self.share or 0.0) * epochs


@dataclass(frozen=True)
class Snapshot:
    """The state of a model and its optimizer at one moment, as returned by `snapshot`.

    Attributes:
        weights: path -> array: all weights of the model but its masks, with normalization statistics and the states
            of seed generators.
        optimizer: position and name -> array: all that the optimizer keeps: slots, iterations, learning rate,
            averages, loss scale; and those of other optimizers that the model holds.
    """

    weights: Arrays
    optimizer: Arrays

    def __post_init__(self) -> None:
        check_numbers("weights", self.weights)
        check_numbers("optimizer", self.optimizer)

    def to_arrays(self) -> Arrays:
        """Return all arrays in one dict that can be written to a file."""
        return joined(weights=self.weights, optimizer=self.optimizer)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Snapshot:
        """Rebuild the snapshot from a dict that `to_arrays` returned."""
        return cls(**split(arrays, "weights", "optimizer"))


def _check_counts(epochs: Any, batches_per_epoch: Any, batches_per_step: Any) -> None:
    check_integer("epochs", int(epochs) if isinstance(epochs, np.integer) else epochs, 0)
    check_integer("batches_per_step", batches_per_step, 1)
    number = isinstance(batches_per_epoch, Real) and not isinstance(batches_per_epoch, bool)
    if batches_per_epoch is not None and not (number and 0 < float(batches_per_epoch) < math.inf):
        raise ValueError(
            "`batches_per_epoch` must be a number above 0, or None. "
            f"Received: batches_per_epoch={batches_per_epoch!r:.200}"
        )


def check_rewind(name: str, word: Any, words: Sequence[str] = REWINDS) -> None:
    """Raise ValueError unless `word`, the value of the argument called `name`, is one of `words`."""
    if not isinstance(word, str) or word not in words:
        now = RENAMED.get(word) if isinstance(word, str) else None
        hint = f": {word!r} is now called {now!r}" if now else ""
        raise ValueError(f"`{name}` must be one of {', '.join(words)}{hint}. Received: {name}={word!r}")


def model_weights(model: Any) -> dict[str, Any]:
    """Map paths to the model's weights in order, excluding masks; masked weights have their `MaskedWeight.path`."""
    masked = {id(weight.variable): weight.path for weight in masked_weights(model)}
    library = library_of(model)
    variables, seeds = library.plain_variables(model), library.seed_states(model)
    names = unique_paths([getattr(v, "path", v.name) for v in variables])
    # Keras numbers the generators of a process, so their own names are others in each run.
    variables, names = [*variables, *seeds], [*names, *(f"seed_generator/{i}" for i in range(len(seeds)))]
    return {masked.get(id(v), name): v for v, name in zip(variables, names, strict=True)}


def snapshot(model: Any, optimizer: Any = None) -> Snapshot:
    """Copy to the host everything that training changes in a model and its optimizer.

    Args:
        model: a built model, masked or not.
        optimizer: of a custom training loop; the compiled one by default. It is built if it is not yet.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", "mse")
    >>> before = kprune.snapshot(model)
    >>> _ = model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)))
    >>> kprune.rewind(model, before)
    >>> int(model.optimizer.iterations)
    0
    """
    slots, others = _optimizer_variables(model, optimizer)
    return Snapshot(
        {path: to_numpy(v) for path, v in model_weights(model).items()},
        {name: to_numpy(v) for name, v in [*slots.items(), *((name, v) for name, (v, _) in others.items())]},
    )


def rewind(model: Any, to: Snapshot, what: str = "weights", optimizer: Any = None) -> None:
    """Restore the model to a snapshot; masks stay, and pruned weights stay 0.

    - "weights": weights, normalization statistics, seed generators and the whole optimizer (arXiv:1803.03635,
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
    if not isinstance(to, Snapshot):
        raise ValueError(f"`to` must be a kprune.Snapshot. Received: to={to!r:.200}")
    check_rewind("what", what)
    slots, weights = _due(model, to, what, optimizer)
    for variable, value in [*(slots if what != "none" else ()), *(weights if what == "weights" else ())]:
        put(variable, value)
    if what != "none":
        reapply_masks(model, optimizer)


def _due(model: Any, to: Snapshot, what: str, optimizer: Any) -> tuple[list[tuple[Any, np.ndarray]], ...]:
    """Pair optimizer and model variables with values from the snapshot; raise ValueError if they do not match."""
    weights = model_weights(model)
    slots, others = _optimizer_variables(model, optimizer)
    then = {name: value for name, value in to.optimizer.items() if not name.startswith(_OTHER)}
    known = what == "learning_rate" or (slots and then)
    slots_then = matched(slots, then, "optimizer") if known else {}
    weights_then = matched(weights, to.weights, "model")
    pairs = (slots, slots_then), (weights, weights_then)
    changes = [[(variables[name], value) for name, value in then.items()] for variables, then in pairs]
    changes[0] += _others_due(others, {name: value for name, value in to.optimizer.items() if name not in then})
    return tuple(changes)


def _others_due(others: dict[str, tuple[Any, float]], then: Arrays) -> list[tuple[Any, np.ndarray]]:
    """Pair the other optimizers' variables with their values in the snapshot; any missing there get initial values."""
    if not others or not then:
        return []
    if missing := sorted(set(then) - set(others)):
        raise ValueError(
            "The snapshot contains slots of a second optimizer, but the model has no such slots yet: keep that "
            "optimizer as an attribute of the model and call optimizer.build(variables) first. Received: "
            f"slot={missing[0]!r}"
        )
    return [(v, then.get(name, np.full(tuple(v.shape), initial))) for name, (v, initial) in others.items()]


def check_restore(model: Any, masks: Masks, to: Snapshot) -> Masks:
    """Map the model's paths to the masks; raise ValueError if the masks or the snapshot do not match the model."""
    masks = matched({weight.path: weight for weight in masked_weights(model)}, masks, "model")
    check_masks(model, masks)
    _due(model, to, "weights", getattr(model, "optimizer", None))
    return masks


def restore(model: Any, masks: Masks, to: Snapshot) -> None:
    """Restore masks and a snapshot taken at the same moment.

    Raises:
        ValueError: one of them is of another model or optimizer. Nothing has been changed then.
    """
    set_masks(model, check_restore(model, masks, to))
    rewind(model, to)


def warn_of_nan(name: str, weights: Mapping[str, np.ndarray]) -> None:
    """Log a warning that names the weights that contain NaN."""
    diverged = [path for path, value in weights.items() if value.dtype.kind != "b" and np.isnan(np.sum(value))]
    if diverged:
        logging.warning(
            "kprune: %s contains NaN in %s, because training diverged. Start again with a lower learning rate.",
            name,
            ", ".join(diverged[:4]) + (" ..." if len(diverged) > 4 else ""),
        )


def reapply_masks(model: Any, optimizer: Any = None) -> None:
    """Set pruned entries to zero, in the weights and in the optimizer's slots."""
    set_masks(model, current_masks(model), optimizer)


def _optimizer_variables(model: Any, optimizer: Any) -> tuple[dict[str, Any], dict[str, tuple[Any, float]]]:
    """Return two dicts by name: the optimizer's variables, and other optimizers' variables with initial values.

    The others are built by the user, since only the user knows what each trains.
    """
    check_like_optimizer(optimizer)
    optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
    if isinstance(optimizer, StandIn):  # in a callback's fit, or left by one that was interrupted
        optimizer = optimizer.own()
    if optimizer is not None:
        build(optimizer, model)
    listed = [one for one in held_optimizers(model, optimizer) if not (one is optimizer or isinstance(one, StandIn))]
    own = {} if optimizer is None else {f"{i}/{v.name}": v for i, v in enumerate(all_variables(optimizer))}
    others = {
        f"{_OTHER}{n}/{i}/{v.name}": (v, initial_value(one, v))
        for n, one in enumerate(listed)
        for i, v in enumerate(all_variables(one))
    }
    return own, others


__all__ = ["RewindPoint", "Snapshot", "rewind", "snapshot"]
