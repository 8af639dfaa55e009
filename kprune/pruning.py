"""Pruning of a model outside `fit`, and the pruner that callbacks use inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from .channels import ChannelCut, add_followers
from .config import PruningConfig
from .criteria import Compiled, Tracker
from .growth import splice
from .masks import Masks, masked, set_masks
from .runtime.jax_state import last_step
from .sparsities import check_one_goal
from .updates import update_on_device
from .util.progress import check_verbose


def prune(
    model: Any,
    criterion: str | Callable[..., Any] | PruningConfig,
    sparsity: float | dict[str, float] | None = None,
    *,
    data: Any = None,
    batches: int | None = 1,
    trackers: Any = None,
    optimizer: Any = None,
    verbose: Any = "auto",
    **config_fields: Any,
) -> Masks:
    """Prune a model to a sparsity by setting its masks; pruned weights become exactly 0.

    Round r = 1 .. rounds prunes the survivors of the round before to density (1 - sparsity) ** (r / rounds). A weight
    that is pruned does not return: on a model that is sparser than asked already, nothing happens.

    Args:
        model: a built Keras 3 model, masked first by `kprune.mask(model)` if it has no masks; or a tf_keras model
            that `kprune.mask` returned.
        criterion: a name or function, as in `PruningConfig`; or a `PruningConfig`.
        sparsity: fraction of zeros over all masked weights, in [0, 1). Exactly floor(sparsity * size) zeros. Or a
            dict of regular expression, searched in the weights' paths (the first that is found counts) -> sparsity:
            each group is pruned to its own, the scope shares it within the group, other weights are left alone. None
            beside a budget.
        data: for criteria that ask the loss ("snip", "force", "grasp", "taylor", "fisher" ...): arrays (x, y) or
            (x, y, sample_weight), cut into batches of 256; or what yields batches, such as a tf.data.Dataset. The
            model must be compiled with its loss.
        batches: how many batches of `data` to use; None for all.
        trackers: for criteria that go by how training went: the `kprune.criteria.Tracker` that has watched it, or a
            list of some. "large_init", "magnitude_increase" and "init_final_sign" go by an `InitialWeights`,
            "movement" by a `Movement`.
        optimizer: the only one whose slots are reset where masks change; by default every one that trains the weights.
        verbose: 0 silent, 1 or "auto" a progress bar over the rounds, 2 a line at the end.
        config_fields: scope, pattern, groups, budget, rounds and seed, as in `PruningConfig`: with groups="channels",
            budget={"flops": 0.5} in place of a sparsity prunes until half of the multiply-adds are left.

    Returns:
        path -> bool array of the weight's shape, True = kept: the masks that the model has now.

    Raises:
        ValueError: an argument is wrong, the model has nothing to mask, a score is NaN or infinite, or the budget
            cannot be kept. The model is as it was then.

    >>> import keras, kprune
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> masks = kprune.prune(model, "magnitude", sparsity=0.9)
    >>> sum(int((~mask).sum()) for mask in masks.values())  # floor(0.9 * (8 * 16 + 16 * 4))
    172
    """
    config = PruningConfig.of(criterion, **config_fields)
    check_one_goal(sparsity, config.budget)
    check_verbose(verbose)
    taken = config.take(data, batches) or None
    with masked(model, optimizer):
        if config.channels:
            add_followers(model)
        check_reachable(model, config)
        masks = config.masks(model, sparsity, data=taken, batches=None, trackers=trackers, verbose=verbose)
        set_masks(model, masks, optimizer)
    _warn_of_collapse(_emptied(masks), len(masks))
    return masks


def check_reachable(model: Any, config: PruningConfig) -> None:
    """Raise ValueError if the config has a budget that the masked model cannot meet."""
    if config.budget is not None:
        ChannelCut(model, config.groups, config.budget).check()


class Pruner:
    """A config in use during training, along with its data and its criterion's tracker.

    Args:
        config: what to prune by.
        data, batches: as in `kprune.prune`. They are taken once: a generator gives each batch only once, and all
            updates of a fit are to see the same data.
        margin: of `kprune.growth.splice`, where pruned weights may return; None where they do not.
    """

    def __init__(self, config: PruningConfig, data: Any = None, batches: int | None = 1, margin: float | None = None):
        self.config, self.margin = config, margin
        self.data = config.take(data, batches) or None
        self.tracker: Tracker | None = None
        self._compiled, self._warned = Compiled(), False
        self._untold: tuple[Any, Any] | None = None  # the model and its last step, as the one that is untold began

    def forget(self) -> None:
        """Forget everything that was recorded or compiled in an earlier training run."""
        self.tracker, self._compiled, self._warned = None, Compiled(), False

    def end(self) -> None:
        """Drop what only the finished training run needed: compiled programs and tensors on its devices."""
        self.catch_up()
        self._compiled, self._untold = Compiled(), None
        if self.tracker is not None:
            self.tracker.end()

    def begin(self, model: Any) -> None:
        """Check that the budget can be met, and start tracking training from the current weights."""
        check_reachable(model, self.config)
        self.tracker = self.config.tracker()
        self.resume(model)

    def resume(self, model: Any) -> None:
        """Continue tracking training from the current weights, which other code may have set."""
        self._untold = None
        if self.tracker is not None:
            self.tracker.begin(model)

    def after_step(self, model: Any) -> None:
        """Report a training step to the tracker, if there is one."""
        self._untold = None
        if self.tracker is not None:
            self.tracker.after_step(model)

    def follows(self, model: Any) -> bool:
        """Return whether there is a tracker that `follows`."""
        return self.tracker is not None and self.tracker.follows(model)

    def before_step(self, model: Any) -> None:
        """Have `catch_up` report the step that begins, for a tracker that `follows`."""
        self._untold = model, last_step(model)

    def catch_up(self) -> None:
        """Report the step that `before_step` was told of, once it has run, unless `after_step` did."""
        if self._untold is not None:
            model, before = self._untold
            last = last_step(model)
            if last is not None and last is not before:
                self.after_step(model)

    @property
    def watches(self) -> bool:
        """Whether each step must be reported."""
        return self.tracker is not None and type(self.tracker).after_step is not Tracker.after_step

    def masks(self, model: Any, sparsity: float | dict[str, float] | None, **options: Any) -> Masks:
        """Return the masks of `PruningConfig.masks`; once per training run, warn if weights are pruned completely."""
        self.catch_up()
        options = {"data": self.data, "batches": None, "trackers": self.tracker, "compiled": self._compiled, **options}
        if self.margin is None:
            masks = self.config.masks(model, sparsity, **options)
        else:
            masks = splice(self.config, model, sparsity, self.margin, **options)
        self._warned = self._warned or _warn_of_collapse(_emptied(masks), len(masks))
        return masks

    def update(self, model: Any, sparsity: float | dict[str, float], optimizer: Any = None) -> None:
        """Prune the model during training, on its training device if possible."""
        self.catch_up()
        kept = update_on_device(model, self.config, sparsity, optimizer, self.tracker)
        if kept is None:
            set_masks(model, self.masks(model, sparsity), optimizer)
        else:
            self._warned = self._warned or _warn_of_collapse([path for path, n in kept.items() if n == 0], len(kept))

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the tracker's state for a backup."""
        self.catch_up()
        return {} if self.tracker is None else self.tracker.get_state()

    def set_state(self, model: Any, state: dict[str, np.ndarray]) -> None:
        """Restore what `get_state` returned for a backup."""
        self.tracker = self.config.tracker()
        if self.tracker is not None and state:
            self.tracker.set_state(state)
            self.resume(model)


def _emptied(masks: Masks) -> list[str]:
    return [path for path, mask in masks.items() if not mask.any()]


def _warn_of_collapse(empty: list[str], of: int) -> bool:
    """Warn if any weights were pruned completely, and return whether any were."""
    if empty:
        logging.warning(
            "kprune: %d of %d weights were pruned completely (%s): unless a skip connection bypasses them, no signal "
            "gets through. Set a floor with scope=kprune.scopes.with_floor('global', 0.01).",
            len(empty),
            of,
            ", ".join(empty[:4]) + (" ..." if len(empty) > 4 else ""),
        )
    return bool(empty)
