"""The rows of the contract: a new criterion, scope, pattern, schedule or callback adds one."""

import itertools
import tempfile
from dataclasses import dataclass

import numpy as np
from keras import layers

import kprune
from kprune import schedules
from kprune.masks import MaskedWeight
from kprune.util.ranking import zeros_for


class Broken(Exception):
    """Raised in the middle of things."""


def raising(*args, **kwargs):
    raise Broken


@dataclass(frozen=True)
class CriterionRow:
    """How the contract breaks the criterion in the middle of its work, and whether the seed makes a difference.

    Attributes:
        breaks: takes pytest's monkeypatch; afterwards scoring must raise `Broken`.
        seeded: whether the scores depend on the seed.
        differs: path, shape -> whether some scores of such a weight must differ.
    """

    breaks: object
    seeded: bool = False
    differs: object = lambda path, shape: True


def breaks_layer_calls(monkeypatch):
    """The last layer that is called raises, with all that the criterion patched for it in place."""
    dense, calls = layers.Dense.call, []

    def call(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Broken
        return dense(self, *args, **kwargs)

    monkeypatch.setattr(layers.Dense, "call", call)


def broken(name):
    """Breaks a function of NumPy's."""
    return lambda patch: patch.setattr(np, name, raising)


def breaks_reading(monkeypatch):
    """A weight cannot be read; a criterion that scores each entry by itself asks for no more."""
    monkeypatch.setattr(MaskedWeight, "seen", raising)


def behind_relu(path, shape):
    """Only such units are 0 at times."""
    return "hidden" in path or "side" in path


def several_units(path, shape):
    return shape[-1] > 1


CRITERIA_ROWS = {
    "apoz": CriterionRow(breaks_layer_calls, differs=behind_relu),
    "network_slimming": CriterionRow(breaks_layer_calls, differs=several_units),
    "taylor_gates": CriterionRow(breaks_layer_calls, differs=several_units),
    "wanda": CriterionRow(breaks_layer_calls),
    "fisher": CriterionRow(breaks_layer_calls),
    "force": CriterionRow(breaks_layer_calls),
    "gradient": CriterionRow(breaks_layer_calls),
    "grasp": CriterionRow(breaks_layer_calls),
    "init_final_sign": CriterionRow(broken("maximum")),
    "iterative_snip": CriterionRow(breaks_layer_calls),
    "lamp": CriterionRow(broken("cumsum")),
    "large_final": CriterionRow(breaks_reading),
    "large_init": CriterionRow(broken("abs")),
    "magnitude_increase": CriterionRow(broken("abs")),
    "movement": CriterionRow(lambda patch: patch.setattr(kprune.criteria.Movement, "of", raising)),
    "snip": CriterionRow(breaks_layer_calls),
    "synflow_l2": CriterionRow(breaks_layer_calls),
    "taylor": CriterionRow(breaks_layer_calls),
    "magnitude": CriterionRow(breaks_reading),
    "random": CriterionRow(lambda patch: patch.setattr(np.random, "default_rng", raising), seeded=True),
    "synflow": CriterionRow(breaks_layer_calls),
}
# name -> the number of entries that it keeps of weights of these sizes, in all
SCOPE_ROWS = {
    "global": lambda sizes, sparsity: sum(sizes) - zeros_for(sum(sizes), sparsity),
    "layerwise": lambda sizes, sparsity: sum(size - zeros_for(size, sparsity) for size in sizes),
    "uniform": lambda sizes, sparsity: sum(sizes) - zeros_for(sum(sizes), sparsity),
    "erk": lambda sizes, sparsity: sum(sizes) - zeros_for(sum(sizes), sparsity),
    "uniform_plus": lambda sizes, sparsity: sum(sizes) - zeros_for(sum(sizes), sparsity),
}
# name -> the number of entries of weights that it cannot do without: asked for fewer, it raises
SCOPE_NEEDS = {
    "uniform_plus": lambda arrays: (
        alive(arrays[0]) + (min(-(-arrays[-1].size // 5), alive(arrays[-1])) if len(arrays) > 1 else 0)
    ),
}


def alive(array):
    return int(np.count_nonzero(array > -np.inf))


@dataclass(frozen=True)
class PatternRow:
    """What a pattern promises.

    Attributes:
        holds: whether a mask (in, out) of sparsity 0.8 or more has the pattern's shape.
        block: shape -> entries of its largest block: by less than this it may keep more than it is asked for.
        prunes_again: whether it keeps entries that are pruned already, where too few others are left.
    """

    holds: object
    block: object = lambda shape: 1
    prunes_again: bool = False


def at_most(n, m):
    return lambda mask: all(mask[i : i + m].sum(0).max() <= n for i in range(0, len(mask), m))


def whole(h, w):
    def holds(mask):
        starts = itertools.product(range(0, mask.shape[0], h), range(0, mask.shape[1], w))
        return all(mask[i : i + h, o : o + w].all() == mask[i : i + h, o : o + w].any() for i, o in starts)

    return holds


PATTERN_ROWS = {
    "unstructured": PatternRow(lambda mask: True, prunes_again=True),
    "2:4": PatternRow(at_most(2, 4)),
    "fan_in": PatternRow(lambda mask: np.ptp(mask.sum(0)) <= 1),
    "channel": PatternRow(whole(1000, 1), block=lambda shape: np.prod(shape[:-1], dtype=int)),
}
# Of the patterns whose names have numbers, some that a rule for one pair of numbers could get wrong.
NAMED_ROWS = {
    "1:3": PatternRow(at_most(1, 3)),
    "2x3": PatternRow(whole(2, 3), block=lambda shape: 6),
}
ALL_PATTERNS = {**PATTERN_ROWS, **NAMED_ROWS}
STRUCTURED = [name for name in ALL_PATTERNS if name != "unstructured"]
# name -> a schedule that ends with this sparsity at this step, and begins at step 1 if it can
SCHEDULE_ROWS = {
    "constant": lambda sparsity, end: schedules.Constant(sparsity, end),
    "polynomial": lambda sparsity, end: schedules.PolynomialDecay(0.1, sparsity, 1, end, frequency=2),
    "exponential": lambda sparsity, end: schedules.Exponential(0.1, sparsity, 1, end, frequency=2),
    "linear": lambda sparsity, end: schedules.Linear(0.1, sparsity, 1, end, frequency=2),
    "cosine": lambda sparsity, end: schedules.Cosine(0.1, sparsity, 1, end, frequency=2),
    "one_cycle": lambda sparsity, end: schedules.OneCycle(0.1, sparsity, 1, end, frequency=2),
    # One update at each step from 1 to `end`.
    "geometric": lambda sparsity, end: schedules.Geometric(1 - (1 - sparsity) ** (1 / end), 1, end, frequency=1),
}


@dataclass(frozen=True)
class CallbackRow:
    """How to make a callback that ends with a sparsity, within six steps.

    Attributes:
        make: takes the sparsity.
        prunes: whether it changes masks at all.
        acts: whether weights train to other values with it, though it prunes nothing.
        masks: whether it masks a model that has no masks.
        at_init: whether it does all it does before the first step.
        relative: whether it prunes a share of what is left, so twice prunes more.
        moves: whether weights come back, too.
        opens: whether masks open altogether in between.
        alone: whether it is the only one that prunes in a fit.
        stands_in: whether it trains something else in the place of weights, by an optimizer of its own.
        latent: whether weights keep values behind the masks.
        epochs: of the fit that it asks for.
    """

    make: object
    prunes: bool = True
    acts: bool = False
    masks: bool = True
    at_init: bool = False
    relative: bool = False
    moves: bool = False
    opens: bool = False
    alone: bool = False
    stands_in: bool = False
    latent: bool = False
    epochs: int = 1


CALLBACK_ROWS = {
    "GradualPruning": CallbackRow(
        lambda sparsity: kprune.callbacks.GradualPruning(SCHEDULE_ROWS["polynomial"](sparsity, 6))
    ),
    "PruneAtInit": CallbackRow(lambda sparsity: kprune.callbacks.PruneAtInit("magnitude", sparsity), at_init=True),
    "SynFlow": CallbackRow(lambda sparsity: kprune.callbacks.SynFlow(sparsity, rounds=3), at_init=True),
    "SynFlowPenalty": CallbackRow(
        lambda sparsity: kprune.callbacks.SynFlowPenalty(0.01, frequency=2), prunes=False, acts=True
    ),
    "SparsityLogger": CallbackRow(lambda sparsity: kprune.callbacks.SparsityLogger(), prunes=False, masks=False),
    "TakeSnapshot": CallbackRow(lambda sparsity: kprune.callbacks.TakeSnapshot(3), prunes=False),
    "BackupAndRestore": CallbackRow(
        lambda sparsity: kprune.callbacks.BackupAndRestore(f"{tempfile.mkdtemp()}/backup.npz"), prunes=False
    ),
    "LotteryTicket": CallbackRow(
        lambda sparsity: kprune.callbacks.LotteryTicket(levels=1, epochs_per_level=1, rate=sparsity),
        relative=True,
        epochs=2,
    ),
    "DynamicSparseTraining": CallbackRow(
        lambda sparsity: kprune.callbacks.DynamicSparseTraining("set", sparsity, frequency=2), moves=True
    ),
    "ACDC": CallbackRow(
        lambda sparsity: kprune.callbacks.ACDC(sparsity, begin=1, end=5, cycles=2), opens=True, alone=True
    ),
    "Supermask": CallbackRow(
        lambda sparsity: kprune.callbacks.Supermask("edge_popup", sparsity, scope="uniform"),
        moves=True,
        alone=True,
        stands_in=True,
        latent=True,
    ),
    "ADMM": CallbackRow(
        lambda sparsity: kprune.callbacks.ADMM(sparsity, rounds=2, updates=1, begin=1, end=5), alone=True
    ),
    "DropBack": CallbackRow(lambda sparsity: kprune.callbacks.DropBack(sparsity, decay=0.02), alone=True),
    "STR": CallbackRow(
        lambda sparsity: kprune.callbacks.STR(sparsity, start=-2.0, decay=2.0, frequency=1), alone=True, stands_in=True
    ),
    # Settles at the end of the second epoch: the third is the first to train under its masks.
    "EarlyBird": CallbackRow(
        lambda sparsity: kprune.callbacks.EarlyBird(sparsity=sparsity, patience=2, threshold=1.0, stop=False), epochs=3
    ),
}
# name -> what the error says with which the callback refuses a tf_keras model
KERAS_3_ONLY = {
    "ADMM": r"ADMM supports Keras 3 models only.*Received: model=",
    "SynFlowPenalty": r"SynFlowPenalty supports Keras 3 models only.*Received: model=",
    "STR": r"STR supports Keras 3 models only.*Received: model=",
    "Supermask": r"Supermask supports Keras 3 models only.*Received: model=",
    "BackupAndRestore": r"use tf_keras\.callbacks\.BackupAndRestore.*Received: model=",
}
MASKING = [name for name, row in CALLBACK_ROWS.items() if row.masks]
ABSOLUTE = {name: row for name, row in CALLBACK_ROWS.items() if not row.relative}
PRUNING = [name for name, row in ABSOLUTE.items() if row.prunes]
TOGETHER = {name: row for name, row in ABSOLUTE.items() if not row.alone}
