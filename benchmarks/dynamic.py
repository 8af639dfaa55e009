"""RigL and SET beside static random, magnitude and dense at equal training FLOPs, on two data sets.

    python benchmarks/dynamic.py digits mnist10k.npz --out_dir=docs

LeNet-300-100 on scikit-learn's digits and on 10,000 MNIST digits (examples/mnist10k.py makes the file). Prints the
tables of docs/while_training.md, writes dynamic.png, and dynamic.csv with the finished runs, from which a command that
was killed goes on.

The rule: a training may cost what `STEPS` steps of the static sparse network cost, in multiply-adds of kernels: kept
entries x examples x 3 (forward, gradient of the inputs, gradient of the weights). RigL's gradients are dense and come
on top; gradual pruning is dense at first. Whatever costs more per step takes fewer steps, in which its learning rate
and its schedule go the whole way. As references, dense and magnitude are also trained for all `STEPS`.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from kprune.callbacks import DynamicSparseTraining, GradualPruning
from matplotlib.figure import Figure
from scipy.stats import t as student

import kprune
from kprune.data import Dataset
from kprune.experiments.runs import RunTable
from kprune.schedules import PolynomialDecay

STEPS, BATCH, RATE, FREQUENCY, STOP, PER_CLASS = 4000, 64, 0.1, 100, 0.75, 10
SPARSITIES, SEEDS = (0.9, 0.95, 0.98), (0, 1, 2, 3, 4)
EQUAL = ("static random", "SET", "RigL", "magnitude", "dense")  # at the budget of the first
LONG = ("magnitude, all steps", "dense, all steps")
COLORS = dict(zip(EQUAL, ("#8a94a3", "#2a9d8f", "#2f6db5", "#d9730d", "#333333"), strict=True))


@dataclass(frozen=True)
class DynamicRun:
    """One training: `dense_steps` says what it cost, in steps of the dense network."""

    dataset: str
    method: str
    sparsity: float
    seed: int
    steps: int
    dense_steps: float
    accuracy: float

    @property
    def key(self) -> tuple[str, str, float, int]:
        """What distinguishes this run from the others."""
        return self.dataset, self.method, self.sparsity, self.seed


def ramp(sparsity: float, steps: int) -> PolynomialDecay:
    """The schedule of gradual magnitude pruning in a training of so many steps."""
    end, frequency = max(1, round(0.7 * steps)), max(1, steps // 100)
    return PolynomialDecay(0.0, sparsity, begin_step=round(0.1 * steps), end_step=end, frequency=frequency)


def cost(method: str, sparsity: float, steps: int, examples: int) -> float:
    """Multiply-adds of a training, in those of one dense step: 3 x 64 examples x all entries.

    A gradient of RigL is from `examples` examples: forward and back through the sparse network, dense for the weights.

    >>> cost("static random", 0.75, 100, 96), cost("dense", 0.75, 100, 96)
    (25.0, 100.0)
    >>> cost("RigL", 0.75, 200, 96)  # one update: 96 * (0.25 + 0.25 + 1) / (3 * 64)
    50.75
    """
    if method.startswith("dense"):
        return float(steps)
    if method.startswith("magnitude"):
        schedule = ramp(sparsity, steps)
        return math.fsum(1 - schedule.applied(step) for step in range(steps))
    updates = int(STOP * steps) // FREQUENCY if method == "RigL" else 0
    return (1 - sparsity) * steps + updates * examples * (2 * (1 - sparsity) + 1) / (3 * BATCH)


def steps_of(method: str, sparsity: float, examples: int) -> int:
    """How many steps a method may take.

    >>> [steps_of(method, 0.9, 100) for method in ("static random", "dense", "dense, all steps")]
    [4000, 400, 4000]
    """
    budget = cost(EQUAL[0], sparsity, STEPS, examples) * (1 + 1e-9)
    counts = range(1, STEPS + 1)
    return STEPS if method in LONG else bisect_right(counts, budget, key=lambda n: cost(method, sparsity, n, examples))


class Batches(keras.utils.PyDataset):
    """So many batches, pass after pass in orders that depend on the seed only."""

    def __init__(self, data: Dataset, steps: int, seed: int):
        super().__init__()
        self.x, self.y = data.train
        random, passes = np.random.default_rng(seed), math.ceil(steps * BATCH / len(self.x))
        self.order = np.concatenate([random.permutation(len(self.x)) for _ in range(passes)])
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Any:
        rows = self.order[index * BATCH : (index + 1) * BATCH]
        return self.x[rows], self.y[rows]


def train(data: Dataset, method: str, sparsity: float, seed: int) -> DynamicRun:
    """Train one network, test it after its last step."""
    sample = data.sample(PER_CLASS, seed)
    steps = steps_of(method, sparsity, len(sample[0]))
    keras.utils.set_random_seed(seed)
    model = kprune.models.lenet_300_100(data.input_shape, data.classes)
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(RATE, steps), momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    callbacks: list[Any] = []
    if method == "static random":
        pruning = {"scope": "erk", "seed": seed, "verbose": 0}
        callbacks = [kprune.callbacks.PruneAtInit("random", sparsity, **pruning)]
    elif method.startswith("magnitude"):
        callbacks = [GradualPruning(ramp(sparsity, steps))]
    elif not method.startswith("dense"):
        options = {"frequency": FREQUENCY, "stop": STOP, "seed": seed, "scope": "erk"}
        if method == "RigL":
            options.update(data=sample, batches=None)
        callbacks = [DynamicSparseTraining(method.lower(), sparsity, **options)]
    model.fit(Batches(data, steps, seed), shuffle=False, verbose=0, callbacks=callbacks)
    accuracy = model.evaluate(**data.evaluate_kwargs(), verbose=0, return_dict=True)["accuracy"]
    used = round(cost(method, sparsity, steps, len(sample[0])), 3)
    return DynamicRun(data.name, method, sparsity, seed, steps, used, round(float(accuracy), 6))


def interval(differences: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval by Student's t.

    >>> [round(number, 3) for number in interval([1.0, 2.0, 3.0])]
    [2.0, 2.484]
    """
    n = len(differences)
    return float(np.mean(differences)), float(student.ppf(0.975, n - 1) * np.std(differences, ddof=1) / math.sqrt(n))


def _rounded(*values: float) -> list[float]:
    return [round(value, 2) + 0.0 for value in values]  # -0.0 is 0.0


def keys(datasets: list[str], seeds: tuple[int, ...]) -> list[tuple[str, str, float, int]]:
    """The runs, whole seeds one after another; what is dense for all steps is trained at no sparsity."""
    found = [(name, method, sparsity) for name in datasets for method in (*EQUAL, LONG[0]) for sparsity in SPARSITIES]
    found += [(name, LONG[1], 0.0) for name in datasets]
    return [(*key, seed) for seed in seeds for key in found]


class Report:
    """Tables and figure of finished runs."""

    def __init__(self, cells: dict[Any, DynamicRun], seeds: tuple[int, ...]):
        self.cells, self.seeds = cells, seeds

    def runs(self, dataset: str, method: str, sparsity: float) -> list[DynamicRun]:
        """One per seed."""
        return [self.cells[dataset, method, 0.0 if method == LONG[1] else sparsity, seed] for seed in self.seeds]

    def accuracies(self, dataset: str, method: str, sparsity: float) -> list[float]:
        """In per cent, one per seed."""
        return [100 * run.accuracy for run in self.runs(dataset, method, sparsity)]

    def table(self, dataset: str) -> str:
        """Mean accuracy and steps, then the difference to static random, seed by seed, with its interval."""
        heads = [f"{100 * sparsity:.0f} % zeros" for sparsity in SPARSITIES]
        lines = [f"| {dataset} | {' | '.join(heads)} |", f"| --- | {' | '.join('---:' for _ in heads)} |"]
        for method in (*EQUAL, *LONG):
            cells = []
            for sparsity in SPARSITIES:
                mean = np.mean(self.accuracies(dataset, method, sparsity))
                cells.append(f"{mean:.2f} ({self.runs(dataset, method, sparsity)[0].steps})")
            lines.append(f"| {method} | {' | '.join(cells)} |")
        for method in EQUAL[1:]:
            cells = []
            for sparsity in SPARSITIES:
                pairs = [self.accuracies(dataset, name, sparsity) for name in (method, EQUAL[0])]
                mean, half = interval([one - other for one, other in zip(*pairs, strict=True)])
                cells.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*_rounded(mean, mean - half, mean + half)))
            lines.append(f"| {method} - {EQUAL[0]} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def figure(self, datasets: list[str]) -> Figure:
        """Accuracy against sparsity, a panel for each data set: means, in bands from the least to the most."""
        figure = Figure(figsize=(5.5 * len(datasets), 4.5), dpi=110, layout="constrained")
        at = np.arange(len(SPARSITIES))
        for dataset, axes in zip(datasets, figure.subplots(1, len(datasets), squeeze=False)[0], strict=True):
            for method in (*EQUAL, *LONG):
                columns = [self.accuracies(dataset, method, sparsity) for sparsity in SPARSITIES]
                means, line = list(map(np.mean, columns)), {"color": COLORS[method.partition(",")[0]]}
                if method in LONG:
                    axes.plot(at, means, **line, linestyle=":", label=method)
                    continue
                axes.plot(at, means, **line, marker="o", label=f"{method}, equal FLOPs")
                axes.fill_between(at, list(map(min, columns)), list(map(max, columns)), **line, alpha=0.12, lw=0)
            axes.set(title=dataset, xlabel="zeros", ylabel="test accuracy, %")
            axes.set_xticks(at, [f"{100 * sparsity:.0f} %" for sparsity in SPARSITIES])
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#ececec", linewidth=0.8)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure


def main(arguments: list[str] | None = None) -> None:
    """Train what is not in the CSV file yet, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="digits, or an .npz file as kprune.data.load reads it")
    parser.add_argument("--out_dir", default="out", help="folder for dynamic.csv and dynamic.png")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="trainings of each, at least 2")
    values = parser.parse_args(arguments)
    loaded = [kprune.data.load(name, batch_size=BATCH) for name in values.datasets]
    data, seeds = {one.name: one for one in loaded}, tuple(range(values.seeds))
    path = Path(values.out_dir, "dynamic.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"model": "lenet-300-100", "backend": keras.backend.backend(), "budget": STEPS, "batch_size": BATCH}
    own.update(learning_rate=RATE, frequency=FREQUENCY, stop=STOP, per_class=PER_CLASS)
    with RunTable(path, DynamicRun, own, None) as table:
        missing = [key for key in keys(list(data), seeds) if key not in table.cells]
        for number, (name, *key) in enumerate(missing, 1):
            run = train(data[name], *key)
            table.add(run)
            print(f"{number}/{len(missing)} {name} {key}: {100 * run.accuracy:.2f} in {run.steps} steps", flush=True)
    report = Report(table.cells, seeds)
    for name in data:
        print(f"\n{report.table(name)}")
    report.figure(list(data)).savefig(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
