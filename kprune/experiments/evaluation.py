"""Evaluate a model with temporary weights or masks, by a function or on data, and restore the model afterward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

from ..masks import masked
from ..runtime.distribution import to_numpy
from ..runtime.optimizers import all_variables, build


@contextmanager
def unchanged(model: Any, optimizer: bool = False) -> Iterator[None]:
    """Restore weights, masks, statistics, seeds and metrics on exit, and the optimizer if `optimizer` is True."""
    variables = [*model.variables, *(v for metric in getattr(model, "metrics", []) for v in metric.variables)]
    if optimizer and getattr(model, "optimizer", None) is not None:
        build(model.optimizer, model)
        variables += all_variables(model.optimizer)
    kept = [(v, to_numpy(v)) for v in {id(v): v for v in variables}.values()]
    try:
        yield
    finally:
        for metric in getattr(model, "metrics", []):  # also those that the first evaluation has made
            metric.reset_state()
        for v, value in kept:
            v.assign(value)


@contextmanager
def masked_meanwhile(model: Any) -> Iterator[None]:
    """Give the model masks in this context, and restore the model on exit."""
    with masked(model, keep=False), unchanged(model):
        yield


def measure_by(model: Any, evaluate: Any) -> Callable[[], tuple[str, float]]:
    """Return a function that returns the metric's name and current value."""
    if callable(evaluate):
        return lambda: _by_function(model, evaluate)
    wrong = (
        "`evaluate` must be a function of the model, or data that can be read more than once, such as (x, y), a "
        "tf.data.Dataset or a list of batches"
    )
    if isinstance(evaluate, tuple):
        if len(evaluate) not in (2, 3):
            raise ValueError(
                f"{wrong}. A tuple must be (x, y) or (x, y, sample_weight). Received: length={len(evaluate)}"
            )
        data = dict(zip(("x", "y", "sample_weight"), evaluate, strict=False))
        inputs: Callable[[], dict[str, Any]] = lambda: data  # noqa: E731
    elif isinstance(evaluate, list):
        inputs = lambda: {"x": (batch for batch in evaluate), "steps": len(evaluate)}  # noqa: E731
    elif (hasattr(evaluate, "__iter__") or hasattr(evaluate, "__getitem__")) and not (
        isinstance(evaluate, str | bytes | Iterator | Set | Mapping) or getattr(evaluate, "ndim", 1) == 0
    ):
        inputs = lambda: {"x": evaluate}  # noqa: E731
    else:
        raise ValueError(f"{wrong}. Received: evaluate={evaluate!r:.200}")
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "Evaluating on data requires compiled metrics: compile the model, or pass a function that takes the model "
            f"and returns a number. Received: model={model.name!r}"
        )
    return lambda: _by_metric(model, inputs())


def _by_function(model: Any, evaluate: Callable[[Any], Any]) -> tuple[str, float]:
    name = getattr(evaluate, "__name__", "<lambda>")
    value = evaluate(model)
    try:
        number = float("no number" if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ValueError(f"`evaluate` must return a number. Received: evaluate={name}, result={value!r}") from None
    return "value" if name == "<lambda>" else name, number


def _by_metric(model: Any, inputs: dict[str, Any]) -> tuple[str, float]:
    results = model.evaluate(**inputs, verbose=0, return_dict=True)
    # Keras sorts what `evaluate` returns, Keras 3.13 also what `get_metrics_result` does; the metrics themselves are in
    # the order in which they were compiled. Keras 3 has one for all of these, whose result is a dict.
    names = [name for metric in model.metrics for name in _names(metric)]
    names = [name for name in names if name in results and name != "loss" and not name.endswith("_loss")]
    if not names:
        raise ValueError(
            "The model has no metric besides the loss: compile it with metrics=['accuracy'], or pass a function "
            f"that takes the model and returns a number. Received: model={model.name!r}, metrics={list(results)}"
        )
    return names[0], float(results[names[0]])


def _names(metric: Any) -> list[str]:
    result = metric.result()
    return list(result) if isinstance(result, dict) else [metric.name]
