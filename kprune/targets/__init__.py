"""Targets, which estimate before training how much pruning would save on a given runtime.

A runtime multiplies by zeros as by any number, unless it was built to leave out a certain shape of them. Each target
here knows that shape, which of a network's kernels can have it, and what stands in the way. What is said is counted,
not measured: bytes and multiply-adds that are left, of those of the dense network. `kprune.export` measures.
"""

# They register their targets.
from . import runtimes as runtimes
from . import xnnpack as xnnpack
from .advice import TARGETS, Advice, Kernel, advise, get, kernels_of

__all__ = ["TARGETS", "Advice", "Kernel", "advise", "get", "kernels_of"]
