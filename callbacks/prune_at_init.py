"""PruneAtInit: prune once, before the first training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import logging

from kprune.config import PruningConfig
from kprune.masks import masked_weights, set_masks
from kprune.pruning import Pruner
from kprune.schedules import check_sparsity
from kprune.sparsities import check_one_goal
from kprune.util.progress import check_verbose
from kprune.util.ranking import zeros_for

from .base import MaskingCallback


class PruneAtInit(MaskingCallback):
    """Prune the model to `sparsity` before training starts; then train the remaining weights.

    A model that has that many zeros already is left alone, so a second fit, or one that is resumed, goes on with the
    masks it has.

    Args:
        criterion: a name or function, as in `kprune.PruningConfig`; or a `PruningConfig`.
        sparsity: fraction of zeros over all masked weights, in [0, 1); 0.9 by default. None beside a budget.
        data, batches: as in `kprune.prune`.
        verbose: 0 silent, 1 or "auto" a progress bar over the rounds, 2 a line at the end.
        config_fields: scope, pattern, groups, budget, rounds and seed, as in `kprune.PruningConfig`.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: the model has nothing to mask, its optimizer cannot
            keep weights at zero (Muon), the budget cannot be kept, or a score is not finite. Nothing has been changed
            then.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = kprune.callbacks.PruneAtInit("magnitude", sparsity=0.9)
    >>> _ = model.fit(np.ones((32, 8)), np.ones((32, 1)), verbose=0, callbacks=[callback])
    >>> round(kprune.summary(model).sparsity, 2)
    0.9
    """

    prunes = "before"

    def __init__(
        self,
        criterion: str | Callable[..., Any] | PruningConfig = "synflow",
        sparsity: float | None = None,
        *,
        data: Any = None,
        batches: int | None = 1,
        verbose: Any = "auto",
        **config_fields: Any,
    ):
        super().__init__()
        check_verbose(verbose)
        self.pruner = Pruner(PruningConfig.of(criterion, **config_fields), data, batches)
        if self.pruner.config.budget is None and sparsity is None:
            sparsity = 0.9
        if sparsity is not None:
            check_sparsity("sparsity", sparsity)
        check_one_goal(sparsity, self.pruner.config.budget)
        self.sparsity = sparsity
        self.verbose = verbose

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            weights = [weight for weight in masked_weights(self.model) if weight.trainable]
            zeros = sum(int((~weight.kept()).sum()) for weight in weights)
            size = sum(weight.size for weight in weights)
            if self.sparsity is not None and zeros >= zeros_for(size, self.sparsity):
                said = "%s: nothing more was pruned, because %d of the model's %d weights are already pruned."
                logging.info(said, type(self).__name__, zeros, size)
            else:
                self.pruner.forget()
                self.pruner.begin(self.model)
                set_masks(self.model, self.pruner.masks(self.model, self.sparsity, verbose=self.verbose))


class SynFlow(PruneAtInit):
    """Synaptic flow at initialization (arXiv:2006.05467): shorthand for `PruneAtInit("synflow", ...)`.

    Args:
        sparsity: fraction of zeros over all masked weights, in [0, 1); 0.9 by default.
        verbose: as in `PruneAtInit`.
        config_fields: as in `PruneAtInit`: rounds are 100 in the paper (fewer are faster and collapse layers sooner),
            the scope "global".

    Raises:
        ValueError: as `PruneAtInit`; at the start of `fit` also when a layer cannot be linearized (it is named).

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> _ = model.fit(np.ones((32, 8)), np.ones((32, 1)), verbose=0, callbacks=[kprune.callbacks.SynFlow(0.9)])
    >>> kprune.summary(model).zeros  # floor(0.9 * 144)
    129
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        verbose: Any = "auto",
        **config_fields: Any,
    ):
        super().__init__("synflow", sparsity, verbose=verbose, **config_fields)
