"""PruneAtInit: prune once, before the first training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import logging

from kprune.masks import masked_weights, set_masks
from kprune.pruning import Plan
from kprune.schedules import check_sparsity
from kprune.scopes import zeros_for

from .base import MaskingCallback


class PruneAtInit(MaskingCallback):
    """Prune the model to `sparsity` before training starts; then train what is left.

    A model that has that many zeros already is left alone, so a second fit, or one that is resumed, goes on with the
    masks it has.

    Args:
        criterion: name or function, as in `kprune.prune`; "synflow" by default.
        sparsity: fraction of zeros over all masked weights, in [0, 1).
        rounds: rounds of scoring and cutting; the criterion's own number by default (100 for "synflow", else 1).
        scope, pattern, seed, data, batches: as in `kprune.prune`.
        verbose: show a progress bar over the rounds.

    Raises:
        ValueError: an argument is wrong; at the start of `fit`: the model has nothing to mask, its optimizer cannot
            keep weights at zero (Muon), or a score is not finite. Nothing has been changed then.

    >>> import keras, kprune, numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = kprune.callbacks.PruneAtInit("magnitude", sparsity=0.9)
    >>> _ = model.fit(np.ones((32, 8)), np.ones((32, 1)), verbose=0, callbacks=[callback])
    >>> round(kprune.summary(model).sparsity, 2)
    0.9
    """

    def __init__(
        self,
        criterion: str | Callable[..., Any] = "synflow",
        sparsity: float = 0.9,
        rounds: int | None = None,
        scope: str | Callable[..., Any] | None = None,
        pattern: str | Callable[..., Any] = "unstructured",
        seed: int = 0,
        verbose: bool = True,
        data: Any = None,
        batches: int | None = 1,
    ):
        super().__init__()
        check_sparsity("sparsity", sparsity)
        self.plan = Plan(criterion, scope, pattern, rounds, seed, data, batches)
        self.sparsity = sparsity
        self.verbose = verbose

    def check_fit(self) -> None:
        self.plan.warned = False

    def on_train_begin(self, logs: Any = None) -> None:
        with self.undone():
            weights = masked_weights(self.model)
            zeros = sum(int((~weight.kept()).sum()) for weight in weights)
            size = sum(weight.size for weight in weights)
            if zeros >= zeros_for(size, self.sparsity):
                logging.info("%s: the model has %d of %d weights pruned already.", type(self).__name__, zeros, size)
            else:
                set_masks(self.model, self.plan.masks(self.model, self.sparsity, self.verbose))


class SynFlow(PruneAtInit):
    """Synaptic flow at initialization (arXiv:2006.05467): `PruneAtInit("synflow", ...)` by its own name.

    Args:
        sparsity: fraction of zeros over all masked weights, in [0, 1).
        rounds: 100 in the paper; fewer are faster and collapse layers sooner.
        scope: "global" in the paper.
        verbose: show a progress bar over the rounds.

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
        sparsity: float = 0.9,
        rounds: int = 100,
        scope: str | Callable[..., Any] = "global",
        verbose: bool = True,
    ):
        super().__init__("synflow", sparsity, rounds, scope, verbose=verbose)
