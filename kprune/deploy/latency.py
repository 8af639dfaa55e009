"""Find the budget in multiply-adds that brings a network to a given latency on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from ..channels import functional
from ..channels.budget import ChannelCut, Costs
from ..config import PruningConfig
from ..masks import adopt, library_of, masked_weights
from ..masks.undo import masked
from ..pruning import prune
from ..runtime.distribution import to_numpy
from ..runtime.inputs import call_with, check_inputs
from ..util.checks import check_integer, check_number
from ..util.progress import check_verbose, progress
from .card import measure
from .sample import sample, tensors
from .shrink import shrink


def latency_budget(
    model: Any,
    fraction: float,
    *,
    criterion: str | Callable[..., Any] = "magnitude",
    groups: str = "channels",
    inputs: Any = None,
    trials: int = 6,
    verbose: Any = "auto",
) -> dict[str, float]:
    """Find the budget at which the shrunk network takes at most a given fraction of the dense network's latency.

    A bisection over the fraction f of multiply-adds: a copy is pruned to {"flops": f}, shrunk, compiled, and run in
    turns with the dense model. Latency is that of one example on the device that the backend computes on. It depends on
    the machine, on what else runs there, and on which channels are removed: measure where the network will run, on an
    idle machine. The card of `kprune.export` says what the trained network takes in the end.

    Args:
        model: a built Keras 3 model, as `kprune.shrink` takes it. It stays as it is.
        fraction: of the dense network's latency, above 0 and below 1.
        criterion: a criterion that needs no data; it chooses the channels in these trials.
        groups: as in `kprune.PruningConfig`.
        inputs: a batch that `model.predict` takes; its first example is used. By default a random example.
        trials: number of bisections, >= 1; each compiles a network and halves the interval in which f lies.
        verbose: 0 silent, 1 or "auto" a progress bar, 2 a line at the end.

    Returns:
        {"flops": f} for `budget=`, with the largest f tried that was fast enough.

    Raises:
        ValueError: an argument is wrong, the model is one of tf_keras or has no channel groups, or even the smallest
            network that pruning can leave is too slow.

    >>> import keras, kprune
    >>> wide = [keras.layers.Dense(2048, "relu") for _ in range(2)]
    >>> model = keras.Sequential([keras.Input((64,)), *wide, keras.layers.Dense(10)])
    >>> budget = kprune.latency_budget(model, 0.8, trials=1, verbose=0)
    >>> _ = kprune.prune(model, "magnitude", budget=budget, groups="channels")
    """
    check_number("fraction", fraction, "above 0 and below 1", lambda value: 0 < value < 1)
    check_integer("trials", trials, 1)
    check_verbose(verbose)
    masked_weights(model)  # raises for what is no model
    if not library_of(model).IN_PLACE:
        raise ValueError(
            "kprune.latency_budget requires a Keras 3 model. For a tf_keras model, pass a budget in flops. "
            f"Received: model={model.name!r}, library='tf_keras'"
        )
    if inputs is not None:
        check_inputs(inputs)
    config = PruningConfig(criterion, groups=groups)
    if groups is None:
        raise ValueError('`groups` must be "channels" or "channels:N". Received: groups=None')
    if not config.data_free:
        raise ValueError(
            "`criterion` must be one that needs neither data nor training, such as 'magnitude'. The returned "
            f"budget also works with other criteria. Received: criterion={criterion!r:.200}"
        )
    least = _least(model, groups)
    with progress("latency", trials + 1, verbose, unit="trials") as bar:
        smallest = _ratio(model, _small(model, config, least, inputs), inputs)
        bar.update()
        if smallest > fraction:
            raise ValueError(
                "The target latency cannot be reached: even the smallest network that pruning can produce, with "
                f"{least:.4g} of the multiply-adds, takes {smallest:.2f} times as long as the dense network on this "
                f"machine. Raise `fraction`. Received: fraction={fraction}, model={model.name!r}"
            )
        low, high = least, 1.0
        for _ in range(trials):
            middle = (low + high) / 2
            small = _small(model, config, middle, inputs)
            # Whatever else ran meanwhile must not make a network seem slow.
            fast = _ratio(model, small, inputs) <= fraction or _ratio(model, small, inputs) <= fraction
            low, high = (middle, high) if fast else (low, middle)
            bar.update()
    return {"flops": low}


def _least(model: Any, groups: str) -> float:
    """Return the smallest fraction of the multiply-adds that pruning can leave, rounded up."""
    with masked(model, keep=False):
        cut = ChannelCut(model, groups)
        costs = Costs(model, cut.groups, "flops")
        fraction = cut.least(costs) / costs.total
    return min(fraction * (1 + 1e-6) + 1e-9, 0.999)


def _small(model: Any, config: PruningConfig, flops: float, inputs: Any) -> Any:
    """Return a copy of the model, pruned to this fraction of the multiply-adds and shrunk."""
    with library_of(model).plain(model) as plain:
        followed = functional(plain)
        copy = keras.models.clone_model(followed)
        copy.set_weights([to_numpy(v) for v in followed.weights])
    if masked_weights(model):
        adopt(copy)
    prune(copy, replace(config, budget={"flops": flops}), verbose=0)
    return shrink(copy, keep_masks=False, inputs=inputs, tolerance=1.0)  # it is timed; what it predicts does not matter


def _ratio(model: Any, small: Any, inputs: Any) -> float:
    """Return the latency of the small network relative to that of the model, with interleaved measurements."""
    found = measure({"dense": _compiled(model, inputs), "small": _compiled(small, inputs)})
    return found["small"][0] / found["dense"][0]


def _compiled(model: Any, inputs: Any) -> Callable[[], Any]:
    """Return a function that predicts one example with a compiled program and waits for the result."""
    arguments = tensors(sample(model, inputs).first(1))
    arguments = keras.tree.map_structure(keras.ops.convert_to_tensor, arguments)
    if keras.backend.backend() == "jax":
        import jax

        state = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
        program = jax.jit(
            lambda state, given: call_with(partial(model.stateless_call, *state), given, training=False)[0]
        )
        return lambda: jax.block_until_ready(program(state, arguments))
    import tensorflow as tf

    graph = tf.function(lambda given: call_with(model, given, training=False))
    return lambda: [output.numpy() for output in keras.tree.flatten(graph(arguments))]


__all__ = ["latency_budget"]
