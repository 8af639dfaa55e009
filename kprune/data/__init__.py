"""Data: data sets by name, samples of them, batches that can be rewound."""

from .batches import (
    Batch,
    balanced_sample,
    check_batches,
    examples,
    take_batches,
)
from .datasets import (
    NAMES,
    Dataset,
    load,
)
from .rewindable import (
    RewindableBatches,
)

__all__ = [
    "NAMES",
    "Batch",
    "Dataset",
    "RewindableBatches",
    "balanced_sample",
    "check_batches",
    "examples",
    "load",
    "take_batches",
]
