"""Named datasets, samples drawn from them, and batches that can be rewound."""

from .batches import (
    Batch,
    balanced_sample,
    check_batches,
    examples,
    take_batches,
)
from .dataset import (
    Dataset,
)
from .datasets import (
    NAMES,
    kind_of,
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
    "kind_of",
    "load",
    "take_batches",
]
