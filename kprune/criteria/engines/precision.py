"""The dtype in which a Keras 3 model computes while it is scored, regardless of its own policy."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras

from ...masks.below import all_layers

Patch = Callable[[Any, str, Any], None]
_ABSENT = object()


@contextmanager
def patched_attributes() -> Iterator[Patch]:
    """Yield `patch(layer, name, value)`, and restore everything it set when the block ends."""
    saved: list[tuple[Any, str, Any]] = []

    def patch(layer: Any, name: str, value: Any) -> None:
        saved.append((layer, name, vars(layer).get(name, _ABSENT)))
        # Past Keras's own `__setattr__`, which would track the value as part of the layer.
        object.__setattr__(layer, name, value)

    try:
        yield patch
    finally:
        for layer, name, value in reversed(saved):
            if value is _ABSENT:
                object.__delattr__(layer, name)
            else:
                object.__setattr__(layer, name, value)


@contextmanager
def computing_in(model: Any, dtype: str) -> Iterator[Patch]:
    """Make the layers of a Keras 3 model compute in `dtype` ("float32" or "float64") within the context."""
    # On JAX, Keras's type promotion makes float32 of every float64, whatever JAX itself allows; it has no public switch
    # (checked with Keras 3.13.2 and 3.15.1; test_synflow.py: a gain beyond float32).
    promotion = importlib.import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE
    promoted = promotion["float64"]
    try:
        promotion["float64"] = dtype
        with patched_attributes() as patch:
            for layer in all_layers(model):
                patch(layer, "_dtype_policy", keras.dtype_policies.DTypePolicy(dtype))
                # Models inside the model would cast what they are given to the float32 of their Input.
                if "_functional" in vars(layer):
                    patch(layer, "_convert_input_args", False)
                for graph in (layer, vars(layer).get("_functional")):
                    if hasattr(graph, "_convert_inputs_to_tensors"):
                        patch(graph, "_convert_inputs_to_tensors", first)
            yield patch
    finally:
        promotion["float64"] = promoted


@contextmanager
def float64_on(device: Any) -> Iterator[None]:
    """Enable float64 in JAX and compute on this device within the context."""
    import jax

    with with_float64(), jax.default_device(device):
        yield


def with_float64() -> AbstractContextManager[Any]:
    """Enable float64 in JAX within the context."""
    import jax

    # `jax.enable_x64` since JAX 0.8; before, as on Colab's TPU runtime (0.7.2), it was experimental.
    x64 = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return x64.enable_x64(True)


def host_of_jax() -> Any:
    """Return JAX's device for this process's CPU; raise ValueError if JAX was told to exclude the CPU."""
    import jax

    try:
        return jax.local_devices(backend="cpu")[0]  # of this process: each computes the scores by itself
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        raise ValueError(
            "SynFlow computes its scores in float64 on the host CPU, but JAX_PLATFORMS excludes the CPU: set it to "
            f"'{platforms},cpu' before starting Python. Received: JAX_PLATFORMS={platforms!r}"
        ) from error


def first(inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the first argument unchanged."""
    return inputs
