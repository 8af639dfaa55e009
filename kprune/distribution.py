"""What kprune needs to know of training on several devices or in several processes; TensorFlow is never imported."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import keras
from absl import logging

Result = TypeVar("Result")


def is_chief() -> bool:
    """Whether this process is the one that writes files, of all those that train a model together.

    Under a `tf.distribute` strategy that is what the strategy says; outside of its scope, what the cluster of the
    environment variable TF_CONFIG says: the task "chief", or without one, worker 0.

    >>> is_chief()  # one process alone
    True
    """
    strategy = _strategy()
    if strategy is not None:
        return bool(strategy.extended.should_checkpoint)
    cluster, task = _cluster()
    return task.get("type") != "worker" or (int(task["index"]) == 0 and "chief" not in cluster)


def warn_of_keras_fit() -> None:
    """Log a warning, once, where Keras 3's own `fit` fails: on the workers of a TensorFlow cluster.

    `fit` fails before it asks any callback (checked with Keras 3.15.1; tests/tf_distribute/test_multi_worker.py).
    """
    workers = sum(len(_cluster()[0].get(kind, [])) for kind in ("chief", "worker"))
    if workers > 1 and keras.backend.backend() == "tensorflow" and "tf_keras" not in sys.modules:
        logging.log_first_n(
            logging.WARNING,
            "kprune: this process is one of the %d workers of TF_CONFIG. Under MultiWorkerMirroredStrategy the `fit` "
            "of Keras 3 fails, with or without kprune: it cannot convert a PerReplica value. What works: a tf_keras "
            "model; a loop of your own that calls kprune.prune or the callbacks; Keras on JAX (KERAS_BACKEND=jax) with "
            "keras.distribution.",
            1,
            workers,
        )


def strategy_scope(model: Any) -> AbstractContextManager[Any]:
    """The scope of the `tf.distribute` strategy in which the model was made, so that its new variables are alike.

    Nothing where there is none, or where its scope has been entered.
    """
    strategy = getattr(model, "distribute_strategy", None)  # of the trainers of tf_keras and of Keras on TensorFlow
    if strategy is None or strategy is sys.modules["tensorflow"].distribute.get_strategy():
        return nullcontext()
    return strategy.scope()


def outside_strategies(function: Callable[[], Result]) -> Result:
    """What the function returns, called where no `tf.distribute` strategy is in force.

    Its variables lie on one device then, its losses are not divided by the number of replicas, and it waits for no
    other process.
    """
    if _strategy() is None:
        return function()
    # TensorFlow has no way to leave a strategy's scope, but the scope holds in the thread that entered it only.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def _cluster() -> tuple[dict[str, Any], dict[str, Any]]:
    """The cluster and the task in it that TF_CONFIG describes; empty without one."""
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    return config.get("cluster", {}), config.get("task", {})


def _strategy() -> Any:
    """The `tf.distribute` strategy that is in force, or None."""
    tf = sys.modules.get("tensorflow")
    return tf.distribute.get_strategy() if tf is not None and tf.distribute.has_strategy() else None
