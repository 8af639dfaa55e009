"""All rounds of SynFlow as one compiled float64 loop on the accelerator that holds the model's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ...masks import Masks, library_of
from ...runtime.distribution import undistributed
from ...selection import keep_highest_jax
from ..base import Context
from .linearize import linearized
from .precision import float64_on

CHUNK = 10
# Of R: below it, the scores that it is the sum of come close to where float64 loses its digits, 2e-308.
SMALLEST = 1e-290


def accelerator(context: Context) -> Any:
    """Return the single float64-capable accelerator that holds the model's weights, or None.

    That is a GPU under Keras 3 on JAX. A TPU has no float64, and on a CPU the rounds are faster one by one.
    """
    if library_of(context.model).backend() != "jax" or keras.distribution.distribution() is not None:
        return None
    devices = set().union(*(weight.variable.value.devices() for weight in context.weights))
    return devices.pop() if len(devices) == 1 and next(iter(devices)).platform == "gpu" else None


def run_rounds(
    flow: Any, context: Context, n_keep: list[int], device: Any, advance: Callable[[int], Any]
) -> Masks | None:
    """Return the masks after all rounds, or None if scores may be all 0 or outside the range of float64.

    Args:
        flow: the `_Flow` of the model.
        context: its masks are those before the first round.
        n_keep: entries to keep after each round, not increasing.
        device: of JAX, with float64.
        advance: told how many rounds are done, for a progress bar.
    """
    import jax
    from jax import numpy as jnp

    def one_round(r: Any, state: Any) -> Any:
        masks, sound, untouched, counts, kernels, constants = state
        kept = [jnp.where(m, k, 0.0) for m, k in zip(masks, kernels, strict=True)]
        total, gradients = jax.value_and_grad(flow.output)(kept, constants)
        scores = [abs(g * k) for g, k in zip(gradients, kept, strict=True)]
        highest = jnp.stack([score.max() for score in scores])  # NaN if a score is
        sound &= jnp.isfinite(total) & jnp.isfinite(highest).all() & (~untouched | (highest > 0)).all()
        sound &= (total == 0) | (total >= SMALLEST)
        left = sum(jnp.sum(m, dtype=jnp.int32) for m in masks)
        masks = keep_highest_jax(scores, masks, jnp.minimum(counts[r], left))
        return masks, sound, jnp.zeros((), bool), counts, kernels, constants

    with float64_on(device), linearized(context.model), undistributed():
        kernels = [jnp.asarray(value) for value in flow.absolute]
        constants = [jnp.asarray(value) for _, value in flow.constants]
        masks = [jnp.asarray(context.masks[weight.path]) for weight in context.weights]
        sound, untouched = jnp.asarray(True), jnp.asarray(all(mask.all() for mask in context.masks.values()))
        counts = jnp.zeros(CHUNK, jnp.int32)
        rounds = jax.jit(lambda n, *state: jax.lax.fori_loop(0, n, one_round, state)[:3])
        compiled = rounds.lower(jnp.int32(1), masks, sound, untouched, counts, kernels, constants).compile()
        for start in range(0, len(n_keep), CHUNK):
            part = n_keep[start : start + CHUNK]
            counts = jnp.asarray(part + [0] * (CHUNK - len(part)), jnp.int32)
            masks, sound, untouched = compiled(
                jnp.int32(len(part)), masks, sound, untouched, counts, kernels, constants
            )
            if not bool(sound):
                return None
            advance(len(part))
    return {weight.path: np.asarray(mask) for weight, mask in zip(context.weights, masks, strict=True)}
