"""Find the sparsest network that is nearly as good as the dense one, by bisection with several seeds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from absl import logging

from ..callbacks import GradualPruning
from ..config import PruningConfig
from ..lottery.rewind import Snapshot, restore, snapshot
from ..masks import Masks, library_of, mask_for_pruning, masked_weights
from ..patterns import PATTERNS
from ..scopes import SCOPES
from ..util.checks import check_function, check_integer, check_number, check_path
from ..util.progress import check_verbose, progress
from .evaluation import measure_by
from .runs import RunTable, check_seeds
from .search_report import SearchResult, SearchRow, said_of_rises

_TABLE = "search.csv"


@dataclass(frozen=True)
class Trial:
    """One training run of a search, as `kprune.search` passes it to the user's function.

    Attributes:
        sparsity: fraction of zeros to reach; 0 for the dense network.
        seed: of this training; Keras's random seed is set to it already.
        callbacks: must be among those of `fit`.
    """

    sparsity: float
    seed: int
    callbacks: list[Any]


@dataclass(frozen=True)
class SearchRun:
    """One finished training run, with requested and reached sparsity, seed, value and duration in seconds."""

    sparsity: float
    seed: int
    value: float
    reached: float
    seconds: float

    @property
    def key(self) -> tuple[float, int]:
        """The fields that distinguish this run from all other runs."""
        return self.sparsity, self.seed


def search(
    model: Any,
    train: Callable[[Any, Trial], Any],
    evaluate: Any,
    *,
    within: float = 0.01,
    low: float = 0.5,
    high: float = 0.99,
    steps: int = 6,
    seeds: Sequence[int] = (0,),
    data: Any = None,
    batches: int | None = 1,
    folder: str | os.PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    verbose: Any = "auto",
    **config_fields: Any,
) -> SearchResult:
    """Find the sparsest network whose value is at most `within` below that of the dense network.

    Each trial begins from the same state, prunes by `GradualPruning` while `train` trains, and is evaluated; the dense
    network is trained alike. A sparsity is accepted if the mean over the seeds is at least the dense mean - `within`.
    Tried are `high`, `low`, then, where `low` holds and `high` does not, up to two sparsities between them, and from
    there on the middle between the sparsest one accepted and the next one, with the densities' geometric mean as the
    middle. What is chosen among noisy values is chosen for its luck, too. So it and the dense network are trained and
    measured again with as many fresh seeds; if it does not hold, the accepted sparsities below it are tried in turn.

    Args:
        model: a built, compiled model, from whose state each trial begins: a Keras 3 model, masked first if it has no
            masks, or a tf_keras one that `kprune.mask` returned. Or a function of a seed that returns such a model,
            new each time; each is kept to the end, so that it is compiled once.
        train: a function of model and `Trial`, which trains the model with `trial.callbacks`.
        evaluate: a function of the model that returns a number, higher is better; or data, of which the first
            compiled metric is taken, as in `kprune.sensitivity`.
        within: how far below the dense network's value is near enough, a number >= 0 in the value's own unit.
        low, high: the sparsities between which to search, 0 < low < high < 1.
        steps: how many sparsities to try between them.
        seeds: integers >= 0, for each sparsity. Fresh ones are those after the highest.
        data, batches: for criteria that need some, as in `kprune.prune`.
        folder: where to keep the finished trainings, in search.csv. A search that was stopped resumes from there, and
            one with another `within`, `low`, `high`, `steps` or more seeds trains only what is new.
        settings: what else decides the outcome, as name -> value: columns of the file.
        verbose: 0 silent, 1 or "auto" a progress bar over the trainings, 2 a line at the end.
        config_fields: criterion, scope, pattern and the like, as in `kprune.PruningConfig`.

    Returns:
        `SearchResult`: `sparsity`, `value`, `dense`, `rows`, `model`, `rises`, `to_dict()`, `plot(path)`; its str is a
        table. `model` is trained at the sparsity that was found, or, if there is none, as it was.

    Raises:
        ValueError: an argument is wrong, the model has masks that prune already, `train` left out `trial.callbacks`,
            `evaluate` returns no finite number, or the file in `folder` was made with different settings.
        OSError: the file cannot be read or written, or another process is at it.

    >>> import keras, kprune, numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 256, 8))
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> def train(model, trial):
    ...     model.fit(x, x[:, 0], epochs=2, callbacks=trial.callbacks, verbose=0)
    >>> def quality(model): return 1 - kprune.summary(model).sparsity ** 4
    >>> result = kprune.search(model, train, quality, within=0.5, verbose=0)
    >>> 0.8 < result.sparsity < 0.5**0.25
    True
    """
    check_verbose(verbose)
    check_seeds(seeds)
    check_function("train", train, "a model and a trial")
    check_number("within", within, ">= 0", lambda value: value >= 0)
    for name, value in (("low", low), ("high", high)):
        check_number(name, value, "above 0 and below 1", lambda value: 0 < value < 1)
    if not low < high:
        raise ValueError(f"`low` must be below `high`. Received: low={low!r}, high={high!r}")
    check_integer("steps", steps, 0)
    config = PruningConfig.of(config_fields.pop("criterion", "magnitude"), **config_fields)
    path = None
    if folder is not None:
        check_path("folder", folder)
        path = Path(folder, _TABLE)
        path.parent.mkdir(parents=True, exist_ok=True)
    own = {
        "criterion": config.name,
        "scope": SCOPES.name_of(config.scope),
        "pattern": PATTERNS.name_of(config.pattern),
        "groups": config.groups,
        "rounds": config.rounds,
        "pruning_seed": config.seed,
    }
    table = RunTable(path, SearchRun, own, settings)
    fresh = tuple(range(max(seeds) + 1, max(seeds) + 1 + len(seeds)))

    def callbacks(sparsity: float) -> list[Any]:
        return [GradualPruning(sparsity, config, data=data, batches=batches)] if sparsity else []

    callbacks(high)  # wrong arguments are known before the first training
    trainings = _Trainings(model, train, evaluate, callbacks, table)
    with table, progress("search", len(seeds) * (steps + 5), verbose, unit="runs") as bar:
        trainings.bar = bar
        return _search(trainings, tuple(seeds), fresh, float(within), float(low), float(high), steps)


def _search(
    trainings: _Trainings,
    seeds: tuple[int, ...],
    fresh: tuple[int, ...],
    within: float,
    low: float,
    high: float,
    steps: int,
) -> SearchResult:
    def row(sparsity: float, seeds: tuple[int, ...], anew: bool = False) -> SearchRow:
        dense = fmean(trainings.value(0.0, seed) for seed in seeds)
        values = tuple(trainings.value(sparsity, seed) for seed in seeds)
        # Sums of floats may miss a tie by their last bit.
        return SearchRow(sparsity, values, dense, fmean(values) >= dense - within - 1e-9, anew)

    tried = {sparsity: row(sparsity, seeds) for sparsity in (0.0, high)}
    again: dict[float, SearchRow] = {}

    def holds(sparsity: float) -> bool:
        return tried[sparsity].accepted and (sparsity not in again or again[sparsity].accepted)

    def sparsest_that_holds_anew() -> SearchRow | None:
        for sparsity in sorted((s for s in tried if s and holds(s)), reverse=True):
            again[sparsity] = row(sparsity, fresh, anew=True)
            if again[sparsity].accepted:
                return again[sparsity]
        return None

    chosen = sparsest_that_holds_anew()
    if chosen is None:
        tried[low] = row(low, seeds)
        for number in range(steps if holds(low) else 0):
            held = max(sparsity for sparsity in tried if holds(sparsity))
            above = min(sparsity for sparsity in tried if sparsity > held)
            at_third = number < min(2, steps - 1)
            sparsity = _between(low, high, (number + 1) / 3) if at_third else _between(held, above)
            if sparsity not in tried:
                tried[sparsity] = row(sparsity, seeds)
        chosen = sparsest_that_holds_anew()
    rows = [*tried.values(), *again.values()]
    rows.sort(key=lambda row: (row.sparsity, row.anew))
    last = chosen or row(0.0, fresh if again else seeds)
    model = None
    if chosen:
        model = trainings.network(chosen.sparsity, fresh[-1])
    else:
        trainings.as_it_was()
    found = SearchResult(last.sparsity, last.value, last.dense, tuple(rows), within, trainings.metric, model)
    for line in () if chosen else (found.found,):
        logging.warning("kprune: %s", line)
    for line in said_of_rises(found):
        logging.warning("kprune: %s", line)
    return found


def _between(low: float, high: float, share: float = 0.5) -> float:
    """Return the sparsity at this fraction of the way from `low` to `high`, on a logarithmic scale of density."""
    return round(1 - (1 - low) ** (1 - share) * (1 - high) ** share, 6)


class _Trainings:
    """The training runs of a search, one per sparsity and seed, which all start from the same state."""

    def __init__(self, model: Any, train: Any, evaluate: Any, callbacks: Any, table: RunTable[SearchRun]):
        self.model, self.train, self.evaluate, self.callbacks, self.table = model, train, evaluate, callbacks, table
        self.metric = "value"
        self.bar: Any = None
        self._is_function = not hasattr(model, "layers") and callable(model)
        self._begun: dict[int, tuple[Any, Masks, Snapshot]] = {}
        self._last: tuple[float, int] | None = None

    def value(self, sparsity: float, seed: int) -> float:
        if (sparsity, seed) not in self.table.cells:
            self.bar.set_description(f"search: sparsity {sparsity:.6g}, seed {seed}")
            self._run(sparsity, seed)
        return self.table.cells[sparsity, seed].value

    def network(self, sparsity: float, seed: int) -> Any:
        """Return the network of this run, training it again if another run has taken place since."""
        if self._last != (sparsity, seed):
            self._run(sparsity, seed)
        return self._begin(seed)[0]

    def as_it_was(self) -> None:
        for model, masks, start in self._begun.values():
            restore(model, masks, start)

    def _begin(self, seed: int) -> tuple[Any, Masks, Snapshot]:
        """Return the network of a seed and its initial state."""
        at = seed if self._is_function else 0
        if at not in self._begun:
            model = self.model(seed) if self._is_function else self.model
            if getattr(model, "optimizer", None) is None:
                raise ValueError(f"The model must be compiled. Received: model={getattr(model, 'name', model)!r}")
            mask_for_pruning(model)
            masks = {weight.path: weight.kept() for weight in masked_weights(model)}
            if not all(mask.all() for mask in masks.values()):
                raise ValueError(
                    "The search needs a dense network to compare with, but this model is already pruned: pass the "
                    f"unpruned model. Received: model={model.name!r}"
                )
            self._begun[at] = model, masks, snapshot(model)
        return self._begun[at]

    def _run(self, sparsity: float, seed: int) -> None:
        start = time.perf_counter()
        model, masks, begin = self._begin(seed)
        restore(model, masks, begin)
        library_of(model).package.utils.set_random_seed(seed)
        self.train(model, Trial(sparsity, seed, self.callbacks(sparsity)))
        kept = [weight.kept() for weight in masked_weights(model)]
        reached = 1 - sum(int(mask.sum()) for mask in kept) / sum(mask.size for mask in kept)
        if bool(reached) != bool(sparsity):
            raise ValueError(
                f"The trained network has sparsity {reached:.6g}, but the trial requires sparsity {sparsity:.6g}: "
                f"`train` must pass `trial.callbacks` to fit(). Received: train={self.train!r:.200}"
            )
        self.metric, value = measure_by(model, self.evaluate)()
        if not math.isfinite(value):
            raise ValueError(f"`evaluate` must return a finite number. Received: value={value!r}, {sparsity=}, {seed=}")
        self._last = sparsity, seed
        if self._last not in self.table.cells:
            self.table.add(SearchRun(sparsity, seed, value, reached, round(time.perf_counter() - start, 2)))
            self.bar.update()


__all__ = ["SearchRun", "Trial", "search"]
