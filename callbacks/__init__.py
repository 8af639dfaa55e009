"""Keras callbacks that prune: the same classes for Keras 3 and tf_keras.

Masks only shrink: when several pruning callbacks are in one fit, or one is used twice, each prunes the survivors to
its own target and the highest sparsity rules.
"""

from .gradual_pruning import GradualPruning
from .prune_at_init import PruneAtInit, SynFlow
from .sparsity_logger import SparsityLogger

__all__ = ["GradualPruning", "PruneAtInit", "SparsityLogger", "SynFlow"]
