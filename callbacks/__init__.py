"""Keras callbacks that prune: the same classes for Keras 3 and tf_keras.

Masks only shrink, but for those that ACDC opens and that DynamicSparseTraining and Supermask move: when several pruning
callbacks are in one fit, or one is used twice, each prunes the survivors to its own target and the highest sparsity
rules.
"""

from .acdc import ACDC
from .admm import ADMM
from .backup_and_restore import BackupAndRestore
from .dropback import DropBack
from .dynamic_sparse_training import DynamicSparseTraining
from .early_bird import EarlyBird
from .gradual_pruning import GradualPruning
from .lottery_ticket import LotteryTicket
from .prune_at_init import PruneAtInit, SynFlow
from .soft_threshold import STR
from .sparsity_logger import SparsityLogger
from .supermask import Supermask
from .synflow_penalty import SynFlowPenalty
from .take_snapshot import TakeSnapshot

__all__ = [
    "ACDC",
    "ADMM",
    "STR",
    "BackupAndRestore",
    "DropBack",
    "DynamicSparseTraining",
    "EarlyBird",
    "GradualPruning",
    "LotteryTicket",
    "PruneAtInit",
    "SparsityLogger",
    "Supermask",
    "SynFlow",
    "SynFlowPenalty",
    "TakeSnapshot",
]
