"""Constraints that hold pruned entries of tf_keras weights at exactly 0 after each step."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class MaskConstraint:
    """w -> where(mask, c(w), 0), where c is the constraint that the weight had."""

    def __init__(self, mask: Any, constraint: Any):
        self.mask, self.constraint = mask, constraint

    def __call__(self, weight: Any) -> Any:
        weight = weight if self.constraint is None else self.constraint(weight)
        return tf.where(tf.cast(self.mask, tf.bool), weight, tf.zeros_like(weight))


class FollowerConstraint(MaskConstraint):
    """That of a weight that is pruned only with its channel; files do not hold its mask, which follows from others."""
