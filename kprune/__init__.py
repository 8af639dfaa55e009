"""Tools for training sparse Keras models: callbacks, masks, criteria, schedules, stripping and export.

>>> import keras, kprune
>>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
>>> masks = kprune.prune(model, "magnitude", sparsity=0.5)
>>> sum(int(mask.sum()) for mask in masks.values())
9
"""

import pathlib

# A checkout works from its own folder: setup.cfg maps `callbacks/` and `models/` beside this package to
# `kprune.callbacks` and `kprune.models`, which in a checkout only the repository's root can provide.
_root = pathlib.Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "callbacks").is_dir():
    __path__.append(str(_root))

from . import (  # noqa: E402
    analysis,
    callbacks,
    controls,
    criteria,
    data,
    growth,
    models,
    patterns,
    regularizers,
    schedules,
    scopes,
    targets,
    tickets,
)
from ._version import __version__  # noqa: E402
from .after_training import prune_after_training  # noqa: E402
from .callbacks.after_pruning import AfterPruning  # noqa: E402
from .config import PruningConfig  # noqa: E402
from .data.batches import balanced_sample  # noqa: E402
from .data.rewindable import RewindableBatches  # noqa: E402
from .deploy.export import export  # noqa: E402
from .deploy.exported import Export  # noqa: E402
from .deploy.latency import latency_budget  # noqa: E402
from .deploy.recalibrate import recalibrate  # noqa: E402
from .deploy.shrink import shrink  # noqa: E402
from .experiments.find_ticket import find_ticket  # noqa: E402
from .experiments.lottery_runs import LotteryRuns, run_lotteries  # noqa: E402
from .experiments.search import Trial, search  # noqa: E402
from .experiments.search_report import SearchResult, SearchRow  # noqa: E402
from .experiments.selftest import SelfTest, selftest  # noqa: E402
from .experiments.sensitivity import Sensitivity, sensitivity  # noqa: E402
from .experiments.sweep import Sweep, sweep  # noqa: E402
from .lottery.levels import Level  # noqa: E402
from .lottery.rewind import RewindPoint, Snapshot, rewind, snapshot  # noqa: E402
from .lottery.ticket import Ticket  # noqa: E402
from .masks import MaskedWeight, MaskReport, adopt, mask, masked_weights, set_masks, strip  # noqa: E402
from .pruning import prune  # noqa: E402
from .regularizers import regularize  # noqa: E402
from .report.plot import plot_sparsity  # noqa: E402
from .report.summary import Summary, summary  # noqa: E402
from .runtime.strategy import auto_strategy  # noqa: E402
from .schedules import plot_schedule  # noqa: E402
from .targets import Advice, advise  # noqa: E402

__all__ = [
    "Advice",
    "AfterPruning",
    "Export",
    "Level",
    "LotteryRuns",
    "MaskReport",
    "MaskedWeight",
    "PruningConfig",
    "RewindPoint",
    "RewindableBatches",
    "SearchResult",
    "SearchRow",
    "SelfTest",
    "Sensitivity",
    "Snapshot",
    "Summary",
    "Sweep",
    "Ticket",
    "Trial",
    "__version__",
    "adopt",
    "advise",
    "analysis",
    "auto_strategy",
    "balanced_sample",
    "callbacks",
    "controls",
    "criteria",
    "data",
    "export",
    "find_ticket",
    "growth",
    "latency_budget",
    "mask",
    "masked_weights",
    "models",
    "patterns",
    "plot_schedule",
    "plot_sparsity",
    "prune",
    "prune_after_training",
    "recalibrate",
    "regularize",
    "regularizers",
    "rewind",
    "run_lotteries",
    "schedules",
    "scopes",
    "search",
    "selftest",
    "sensitivity",
    "set_masks",
    "shrink",
    "snapshot",
    "strip",
    "summary",
    "sweep",
    "targets",
    "tickets",
]
