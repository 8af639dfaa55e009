"""Check that kprune works on this machine's devices, and measure the cost of masked steps and mask updates."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from .._version import __version__
from ..callbacks import GradualPruning
from ..callbacks.base import Callback
from ..config import PruningConfig
from ..masks import begin_fit, current_masks, end_fit, mask, masked_weights, moved_weights, set_masks
from ..pruning import Pruner
from ..runtime.distribution import copies, on_host, replicas
from ..runtime.strategy import auto_strategy
from ..schedules import PolynomialDecay
from ..util.progress import check_verbose, progress
from ..util.ranking import zeros_for
from ..util.tables import Printed, new_table, table_lines

_UPDATES, _SPARSITY, _HARDER = 50, 0.9, 0.95
_ROUNDS, _STEPS = 5, 50
_TITLES = {
    "zeros": "pruned weights are exactly 0 after each step",
    "sparsity": f"{_SPARSITY:.0%} of the weights are pruned at the end",
    "traces": f"{_UPDATES} mask updates cause no retracing",
    "copies": "masks and weights are the same on all devices",
    "selection": "masks computed on the device equal those computed by NumPy",
}


@dataclass(frozen=True)
class SelfTest(Printed):
    """The result of `kprune.selftest`; `print(report)` shows a table.

    Attributes:
        checks: name of a promise -> whether it was kept.
        found: the same name -> what was seen, in words.
        step_ratio: time of a masked train step over that of the dense one, medians of interleaved rounds.
        step_ms: milliseconds of a masked step.
        update_ms: milliseconds of one magnitude update.
        partition_ratio: time of that update over that of `np.partition` of as many magnitudes on the host.
        weights: entries that the update ranks.
        machine: where it ran: backend, devices, versions.
    """

    checks: dict[str, bool]
    found: dict[str, str]
    step_ratio: float
    step_ms: float
    update_ms: float
    partition_ratio: float
    weights: int
    machine: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(self.checks.values())

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and `passed` as JSON-serializable values."""
        return {"passed": self.passed, **asdict(self)}

    def __str__(self) -> str:
        table = new_table()
        for header in ("promise", "", "seen"):
            table.add_column(header)
        for name, kept in self.checks.items():
            table.add_row(_TITLES[name], "kept" if kept else "BROKEN", self.found[name])
        return "\n".join(
            [
                ", ".join(f"{name} {value}" for name, value in self.machine.items()),
                *table_lines(table),
                f"masked step: {self.step_ratio:.2f} times the time of a dense step ({self.step_ms:.2f} ms)",
                f"magnitude update of {self.weights:,} weights: {self.update_ms:.1f} ms, {self.partition_ratio:.2f} "
                "times the time of np.partition on the host",
            ]
        )


def selftest(strategy: str = "auto", library: Any = keras, verbose: Any = "auto") -> SelfTest:
    """Train and prune a small network on this machine's devices, check the results, and measure the cost.

    A convolutional network is pruned in 50 updates while it trains on random data; then two networks, one masked,
    train in turns. About a minute on two CPU cores.

    Args:
        strategy: as in `kprune.auto_strategy`.
        library: `keras` or `tf_keras`.
        verbose: 0 silent, 1 or "auto" a progress bar, 2 a line at the end.

    Returns:
        `kprune.SelfTest`: nothing is raised where a promise is broken; `passed` says it.

    Raises:
        ValueError: an argument is wrong, or the devices cannot be had.

    >>> import kprune
    >>> report = kprune.selftest("none", verbose=0)  # doctest: +SKIP
    >>> report.passed  # doctest: +SKIP
    True
    """
    check_verbose(verbose)
    chosen = auto_strategy(strategy, library, verbose=False)
    with progress("self-test", 3, verbose, unit="parts") as bar, chosen.scope():
        checks, found = _promises(library)
        bar.update()
        step_ratio, step_ms = _step(library)
        bar.update()
        weights, update_ms, partition_ratio = _update(library)
        bar.update()
    machine = _machine(library, chosen)
    return SelfTest(checks, found, step_ratio, step_ms, update_ms, partition_ratio, weights, machine)


class _Watching(Callback):
    """A callback that records, after each step, the weights whose pruned entries moved and the number of traces."""

    def __init__(self, count: Callable[[], int]):
        super().__init__()
        self.count = count
        self.moved: list[str] = []
        self.traces: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.moved += moved_weights(self.model)
        self.traces.append(self.count())


def _promises(library: Any) -> tuple[dict[str, bool], dict[str, str]]:
    layers, traces = library.layers, []

    class Traced(layers.Layer):  # type: ignore[name-defined]  # of either Keras
        def call(self, inputs: Any) -> Any:
            traces.append(1)
            return inputs

    network = [layers.Conv2D(16, 3), layers.BatchNormalization(), layers.ReLU(), Traced(), layers.Flatten()]
    model = _compiled(library, library.Sequential([library.Input((16, 16, 3)), *network, layers.Dense(10)]), True)
    x, y = _random_data(_UPDATES + 2, 16, 16, 3)
    prune = GradualPruning(PolynomialDecay(0.0, _SPARSITY, 1, _UPDATES, frequency=1))
    watching = _Watching(lambda: len(traces))
    try:  # it looks before the update of each step, which sets the pruned entries again
        model.fit(x, y, batch_size=_batch(), shuffle=False, verbose=0, callbacks=[watching, prune])
    except RuntimeError as error:  # what a callback says of pruned entries that are not 0
        watching.moved.append(str(error))
    weights = masked_weights(model)
    size = sum(weight.size for weight in weights)
    zeros = sum(int((~kept).sum()) for kept in current_masks(model).values())
    retraced = watching.traces[-1] - watching.traces[:2][-1]  # Keras traces again in the second step of a distribution
    differ = [
        weight.path
        for weight in weights
        for v in (weight.variable, weight.mask)
        if any(not np.array_equal(one, copies(v)[0]) for one in copies(v))
    ]
    n_copies = len(copies(weights[0].mask))
    checks = {
        "zeros": not watching.moved,
        "sparsity": zeros == zeros_for(size, _SPARSITY),
        "traces": retraced == 0,
        "copies": not differ,
    }
    found = {
        "zeros": f"{len(watching.traces)} steps" if not watching.moved else f"not 0: {sorted(set(watching.moved))}",
        "sparsity": f"{zeros:,} zeros of {size:,}",
        "traces": f"{retraced} traces after the second step",
        "copies": f"copies differ: {differ}" if differ else f"{n_copies} copies" if n_copies > 1 else "one copy",
    }
    if not on_host(weight.variable for weight in weights):
        if watching.moved:
            model.set_weights(model.get_weights())  # zeros again, or the update would refuse the model
        config = PruningConfig("magnitude")
        expected = config.masks(model, _HARDER)
        Pruner(config).update(model, _HARDER)
        given = current_masks(model)
        wrong = sum(int((given[path] != one).sum()) for path, one in expected.items())
        checks["selection"], found["selection"] = wrong == 0, f"{wrong} of {size:,} entries differ"
    return checks, found


def _wide(library: Any, masked: bool) -> Any:
    dense = library.layers.Dense
    layers = [library.Input((512,)), *(dense(1024, "relu") for _ in range(2)), dense(10)]
    return _compiled(library, library.Sequential(layers), masked)


def _step(library: Any) -> tuple[float, float]:
    """Measure a masked training step; return its time relative to a dense step, and its time in milliseconds."""
    models = {masked: _wide(library, masked) for masked in (False, True)}
    weights = masked_weights(models[True])
    set_masks(models[True], {w.path: np.arange(w.size).reshape(w.shape) % 10 == 0 for w in weights})
    x, y = _random_data(_STEPS, 512)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(_ROUNDS + 1):  # the first compiles
        for masked, model in models.items():
            start = time.perf_counter()
            model.fit(x, y, batch_size=_batch(), shuffle=False, verbose=0)
            if repeat:
                seconds[masked].append(time.perf_counter() - start)
    dense, masked_s = (statistics.median(seconds[masked]) for masked in (False, True))
    return masked_s / dense, 1e3 * masked_s / _STEPS


class _Updating(Callback):
    """A callback whose `update` method updates the masks, so that the optimizers found by `begin_fit` are reused."""

    def update(self, pruner: Pruner, model: Any, sparsity: float) -> None:
        pruner.update(model, sparsity)


def _update(library: Any) -> tuple[int, float, float]:
    """Measure a mask update; return the number of entries, the time in ms, and the time relative to `np.partition`."""
    model = _wide(library, True)
    weights, pruner = masked_weights(model), Pruner(PruningConfig("magnitude"))
    size = sum(weight.size for weight in weights)
    ours, plain = [], []
    begin_fit(model)
    try:
        for repeat in range(_ROUNDS + 1):
            magnitudes = np.concatenate([np.abs(weight.value()).ravel() for weight in weights])
            start = time.perf_counter()
            np.partition(magnitudes, size // 2)
            middle = time.perf_counter()
            _Updating().update(pruner, model, 0.5 + 0.4 * repeat / _ROUNDS)
            copies(weights[-1].mask)  # waits for the device
            if repeat:
                plain.append(middle - start)
                ours.append(time.perf_counter() - middle)
    finally:
        end_fit(model)
    update = statistics.median(ours)
    return size, 1e3 * update, update / statistics.median(plain)


def _compiled(library: Any, model: Any, masked: bool) -> Any:
    model = mask(model).model if masked else model
    model.compile("adam", library.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _batch() -> int:
    return math.lcm(64, replicas())


def _random_data(steps: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    draw, n = np.random.default_rng(0), steps * _batch()
    return draw.normal(size=(n, *shape)).astype("float32"), draw.integers(0, 10, n).astype("int32")


def _machine(library: Any, strategy: Any) -> dict[str, str]:
    backend = keras.backend.backend() if library is keras else "tensorflow"
    if backend == "jax":
        devices = keras.distribution.list_devices()
    else:
        import tensorflow as tf

        devices = [device.name.removeprefix("/device:").lower() for device in tf.config.list_logical_devices()]
    return {
        "kprune": __version__,
        library.__name__: library.__version__,
        "backend": backend,
        "strategy": type(strategy).__name__,
        "devices": ", ".join(map(str, devices)),
        "machine": platform.machine(),
    }
