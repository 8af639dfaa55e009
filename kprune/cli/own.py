"""Load the user's own model from a .keras file, or build it with a function given as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

import numpy as np

from ..data import Dataset
from ..experiments.evaluation import unchanged
from ..masks import library_of
from ..report.saved import load

EXPECTED = "a model name, a .keras file, or module:function"
_COMPILING = ("optimizer", "learning_rate", "decay", "weight_decay")


def is_own(model: str) -> bool:
    """Return whether `model` refers to the user's own model rather than a reference network."""
    return model.endswith(".keras") or ":" in model


def build(model: str, dataset: Dataset, seed: int, width: float, library: Any) -> Any:
    """Load the model from the file, or build it with the function.

    Args:
        model: the path of a .keras file, which is checked as `kprune.report.saved.load` checks it: nothing that it
            names is run unless it is a part of a model. Or "module:function": the module is imported, from the working
            folder too, and the function called with those of input_shape, classes, seed, width and library that it
            takes.
        dataset, seed, width, library: what a function is called with.

    Raises:
        ValueError: there is no such function, it takes other arguments, or returns no built model of this library.
        OSError, ImportError: the file or the module is not there.
    """
    received = f"Received: model={model!r}"
    if model.endswith(".keras"):
        made = load(model)
    else:
        function = _function(model, received)
        made = function(**_arguments(function, dataset, seed, width, library, received))
    if not isinstance(made, library.Model):
        kind = library_of(made).package.__name__ if hasattr(made, "fit") else None
        cure = f": add --library={kind}" if kind else f", but it is of type {type(made).__name__}"
        raise ValueError(f"The model must be a {library.__name__} model{cure}. {received}")
    return made


def _function(model: str, received: str) -> Any:
    module, _, name = model.partition(":")
    if module.endswith(".py"):
        raise ValueError(
            f"Pass the module's name without .py, as in an import statement: {module[:-3]}:{name}. {received}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the installed program has its own folder there, not the user's
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error} (working directory: {os.getcwd()!r}). {received}") from error
    if not callable(function):
        raise ValueError(f"Module {module!r} has no function {name!r}. {received}")
    return function


def _arguments(function: Any, dataset: Dataset, seed: int, width: float, library: Any, received: str) -> dict[str, Any]:
    offered = {
        "input_shape": dataset.input_shape,
        "classes": dataset.classes,
        "seed": seed,
        "width": width,
        "library": library,
    }
    parameters = inspect.signature(function).parameters
    others = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in offered
    ]
    if others:
        raise ValueError(
            f"The function has required parameters that kprune does not pass: {', '.join(others)}. Give them "
            f"default values. kprune passes only {', '.join(offered)}. {received}"
        )
    return {name: value for name, value in offered.items() if name in parameters}


def comes_compiled(values: Any, name: str, model: Any, dataset: Dataset) -> bool:
    """Return whether the model is already compiled and is therefore trained as is.

    Raises:
        ValueError: flags say something else about how to train it, or it measures no accuracy.
    """
    if getattr(model, "optimizer", None) is None:
        return False
    given = [f"--{name}" for name in _COMPILING if name in values and values[name].present]
    if given:
        raise ValueError(
            f"The model is already compiled with its own optimizer: drop {', '.join(given)}, or provide an "
            f"uncompiled model. Received: model={name!r}"
        )
    with unchanged(model, optimizer=True):
        reported = model.evaluate(*_some(dataset), verbose=0, return_dict=True)
    if "accuracy" not in reported:
        raise ValueError(
            "The model is already compiled, but it must be compiled with metrics=['accuracy']. Received: "
            f"model={name!r}, metrics={list(reported)}"
        )
    return True


def _some(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return a few test examples."""
    part = dataset.test if isinstance(dataset.test, tuple) else next(iter(dataset.test))
    return np.asarray(part[0][:8]), np.asarray(part[1][:8])


def gives_probabilities(model: Any, dataset: Dataset) -> bool:
    """Return whether the model's outputs are probabilities; raise ValueError if their shape does not fit the data.

    By its numbers, since a layer of any kind may be the last.
    """
    x, _ = _some(dataset)
    try:
        outputs = model(x, training=False)
    except Exception as error:  # of any kind: what the model's layers raise on examples of another shape
        raise ValueError(
            f"The model does not accept the examples of {dataset.name}, which have shape {dataset.input_shape}. Cause: "
            f"{' '.join(str(error).split())[:300].rstrip('.')}. Received: model={model.name!r}"
        ) from error
    shape = tuple(getattr(outputs, "shape", ()))  # several outputs have none
    if shape != (len(x), dataset.classes):
        raise ValueError(
            f"The model must return {dataset.classes} numbers per example, one for each class of {dataset.name}, but "
            f"its output has shape {shape[1:]}. Received: model={model.name!r}"
        )
    numbers = np.asarray(outputs)
    return bool((numbers >= 0).all() and np.allclose(numbers.sum(-1), 1, atol=1e-3))
