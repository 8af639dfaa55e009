"""One contract for all that is registered: a new criterion, scope, pattern, schedule or callback adds one row."""

import itertools
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, assert_programs_agree, assert_zero, built, data, mlp, steady
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from keras import layers
from test_prune import assert_unchanged, snapshot, zeros

import kprune
from kprune import schedules
from kprune.config import PruningConfig
from kprune.criteria import CRITERIA, Context
from kprune.masks import MaskedWeight
from kprune.masks.below import all_layers
from kprune.patterns import PATTERNS
from kprune.schedules import SCHEDULES, as_schedule
from kprune.scopes import SCOPES
from kprune.util.ranking import zeros_for
from kprune.util.registry import trait

pytestmark = pytest.mark.one_session


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


def breaks_numpy_in(module, name):
    """Breaks a function of NumPy's that much else uses in this module only."""
    return lambda patch: patch.setattr(sys.modules[module], "np", SimpleNamespace(**{name: raising}))


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
    "lamp": CriterionRow(broken("argsort")),
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
        masks: whether it masks a model that has no masks.
        at_init: whether it does all it does before the first step.
        relative: whether it prunes a share of what is left, so twice prunes more.
        moves: whether weights come back, too.
        opens: whether masks open altogether in between.
        alone: whether it is the only one that prunes in a fit.
        epochs: of the fit that it asks for.
    """

    make: object
    prunes: bool = True
    masks: bool = True
    at_init: bool = False
    relative: bool = False
    moves: bool = False
    opens: bool = False
    alone: bool = False
    epochs: int = 1


CALLBACK_ROWS = {
    "GradualPruning": CallbackRow(
        lambda sparsity: kprune.callbacks.GradualPruning(SCHEDULE_ROWS["polynomial"](sparsity, 6))
    ),
    "PruneAtInit": CallbackRow(lambda sparsity: kprune.callbacks.PruneAtInit("magnitude", sparsity), at_init=True),
    "SynFlow": CallbackRow(lambda sparsity: kprune.callbacks.SynFlow(sparsity, rounds=3), at_init=True),
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
    # Settles at the end of the second epoch: the third is the first to train under its masks.
    "EarlyBird": CallbackRow(
        lambda sparsity: kprune.callbacks.EarlyBird(sparsity=sparsity, patience=2, threshold=1.0, stop=False), epochs=3
    ),
}
MASKING = [name for name, row in CALLBACK_ROWS.items() if row.masks]
ABSOLUTE = {name: row for name, row in CALLBACK_ROWS.items() if not row.relative}
PRUNING = [name for name, row in ABSOLUTE.items() if row.prunes]
TOGETHER = {name: row for name, row in ABSOLUTE.items() if not row.alone}

# Read when the tests are collected, before any test (or doctest) registers an entry of its own.
REGISTERED = {
    "criteria": (set(CRITERIA), set(CRITERIA_ROWS)),
    "scopes": (set(SCOPES), set(SCOPE_ROWS)),
    "patterns": (set(PATTERNS), set(PATTERN_ROWS)),
    "schedules": (set(SCHEDULES), set(SCHEDULE_ROWS)),
    "callbacks": (set(kprune.callbacks.__all__), set(CALLBACK_ROWS)),
}


@pytest.mark.parametrize("kind", REGISTERED)
def test_every_registered_entry_has_a_row(kind):
    registered, rows = REGISTERED[kind]
    assert registered == rows, f"add a row for each new entry to {kind} at the top of this file, drop those of old ones"


def test_every_entry_is_documented_and_named():
    for registry in (CRITERIA, SCOPES, PATTERNS, SCHEDULES):
        for name in REGISTERED[{"criterion": "criteria"}.get(registry.kind, registry.kind + "s")][0]:
            entry = registry.get(name)
            assert ">>>" in entry.__doc__, name
            assert registry.get(entry) is entry
    for name in kprune.callbacks.__all__:
        cls = getattr(kprune.callbacks, name)
        assert ">>>" in cls.__doc__ and issubclass(cls, keras.callbacks.Callback)


# The models: each has the same three kernels, norm and dropout, written in another way.


def parts():
    return [
        layers.Dense(10, "relu", name="hidden1"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.3, seed=3, name="drop"),
        layers.Dense(9, "relu", name="hidden2"),
        layers.Dense(3, name="logits"),
    ]


def flat():
    return keras.Sequential([keras.Input((8,)), *parts()])


def nested():
    hidden1, norm, drop, hidden2, logits = parts()
    inner_inputs = keras.Input((10,))
    inner = keras.Model(inner_inputs, hidden2(drop(inner_inputs)), name="inner")
    inputs = keras.Input((8,))
    first = keras.Sequential([keras.Input((8,)), hidden1, norm], name="first")
    head = keras.Sequential([keras.Input((9,)), logits], name="head")
    return keras.Model(inputs, head(inner(first(inputs))))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden1, self.norm, self.drop, self.hidden2, self.logits = parts()

    def call(self, x, training=None):
        x = self.drop(self.norm(self.hidden1(x), training=training), training=training)
        return self.logits(self.hidden2(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 8), "float32"))
    return model


def two_by_two():
    one, other = keras.Input((8,), name="one"), keras.Input((4,), name="other")
    hidden1, norm, drop, hidden2, logits = parts()
    x = layers.Concatenate()([drop(norm(hidden1(one))), layers.Dense(6, "relu", name="side")(other)])
    return keras.Model([one, other], {"logits": logits(hidden2(x)), "size": layers.Dense(1, name="size")(x)})


MODELS = {"flat": flat, "nested": nested, "subclassed": subclassed, "two by two": two_by_two}


def batch_for(kind):
    (x, y), (other, size) = data(), data((4,), outputs=(1,), seed=1)
    return ({"one": x, "other": other}, {"logits": y, "size": size}) if kind == "two by two" else (x, y)


def trained(kind, masked=True, policy="float32", **compile_args):
    """A compiled model of a kind, with state everywhere: moments, metrics, statistics, a seed generator."""
    keras.config.set_dtype_policy(policy)
    model = MODELS[kind]()
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:  # biases and gammas too
        v.assign(rng.normal(size=v.shape) * 0.5 + (1.0 if v.name == "gamma" else 0.0))
    if masked:
        kprune.mask(model)
    metrics = {"logits": "mae", "size": "mae"} if kind == "two by two" else ["mae"]
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", metrics=metrics, **{**CHEAP, **compile_args})
    built(model)
    x, y = batch_for(kind)
    model.train_on_batch(x, y)
    keras.config.set_dtype_policy("float32")
    return model


@pytest.fixture(scope="module")
def shared():
    """Makes each trained model once: the tests that share it hold that it does not change."""
    made = {}

    def get(kind, **arguments):
        key = (kind, *sorted(arguments.items()))
        if key not in made:
            made[key] = trained(kind, **arguments)
        return made[key]

    return get


def needed(model, name):
    """What the criterion needs, as arguments of `kprune.prune`."""
    needs, arguments = trait(CRITERIA.get(name), "needs", ()), {}
    if "data" in needs:
        arguments["data"] = [batch_for("two by two" if any("side" in v.path for v in model.variables) else "flat")]
    if tracker := PruningConfig(name).tracker():
        rng = np.random.default_rng(7)
        tracker.arrays = [rng.normal(size=v.shape) for v in model.trainable_variables if "kernel" in v.path]
        arguments["trackers"] = tracker
    return arguments


def scores_of(model, name, seed=0):
    weights = kprune.masked_weights(model)
    given = needed(model, name)
    masks = {w.path: w.kept() for w in weights}
    batches = PruningConfig(name).take(given.get("data"))
    return CRITERIA.get(name)(Context(model, weights, masks, seed, batches, given.get("trackers")))


def masks_of(model, name, sparsity, **arguments):
    """The masks to which the model would be pruned; it is not."""
    return PruningConfig(name, **arguments).masks(model, sparsity, **needed(model, name))


def count_zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def assert_all_equal(one, other):
    """Two dicts of arrays: the same keys in the same order, the same bits."""
    assert list(one) == list(other)
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


# Criteria


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_criterion(name, kind, shared):
    model = shared(kind)
    before = snapshot(model)
    scores = scores_of(model, name)
    assert_unchanged(model, before)

    weights = kprune.masked_weights(model)
    assert len(weights) == (5 if kind == "two by two" else 3)
    assert list(scores) == [w.path for w in weights]
    for w in weights:
        assert scores[w.path].shape == w.shape
        assert np.isfinite(scores[w.path]).all()
        differs = CRITERIA_ROWS[name].differs(w.path, w.shape)
        assert (np.unique(scores[w.path]).size > 1) == differs, f"{w.path}: {scores[w.path]}"

    assert_all_equal(scores_of(model, name), scores)
    if CRITERIA_ROWS[name].seeded:
        other = scores_of(model, name, seed=1)
        assert not any(np.array_equal(other[path], scores[path]) for path in scores)

    total = sum(w.size for w in weights)
    masks = masks_of(model, name, 0.57, rounds=2)
    assert count_zeros(masks) == 57 * total // 100
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_a_criterion_on_a_model_that_is_pruned(name):
    model = two_by_two()
    model.compile("sgd", "mse")
    masks = {}
    for sparsity in (0.3, 0.57, 0.9):
        new = kprune.prune(model, name, sparsity, rounds=2, **needed(model, name))
        assert count_zeros(new) == zeros(model) == zeros_for(80 + 24 + 144 + 27 + 16, sparsity)
        assert all(not np.any(new[path] & ~masks[path]) for path in masks)
        masks = new
        assert_zero(model)


@pytest.mark.parametrize(("kind", "masked"), [("nested", True), ("subclassed", False)], ids=["masked", "plain"])
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_a_criterion_that_raises_in_the_middle_leaves_everything_alone(name, kind, masked, shared, monkeypatch):
    model = shared(kind, masked=masked)
    before = snapshot(model)
    x, _ = batch_for(kind)
    outputs = np.asarray(model(x))
    with monkeypatch.context() as patch:
        CRITERIA_ROWS[name].breaks(patch)
        with pytest.raises(Broken):
            kprune.prune(model, name, 0.5, rounds=3, **needed(model, name))
    assert_unchanged(model, before)
    assert bool(kprune.masked_weights(model)) == masked
    np.testing.assert_array_equal(np.asarray(model(x)), outputs)
    if masked:  # and the next one works
        assert count_zeros(masks_of(model, name, 0.5, rounds=3)) == 197 // 2


@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_scoring_draws_no_random_numbers(name):
    model = flat()
    model.compile("sgd", "mse")
    kprune.mask(model)
    draws = []
    for scores in (False, True):
        keras.utils.set_random_seed(11)
        if scores:
            scores_of(model, name)
        draws.append((random.random(), np.random.random(), float(keras.random.normal(()))))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_criterion_under_mixed_precision(name, policy, shared):
    model, mixed = shared("nested"), shared("nested", policy=policy)
    values = mixed.get_weights()
    mixed.set_weights(model.get_weights())
    before = snapshot(mixed)
    # The weights are float32 under each policy, so the scores are those of the float32 model.
    for one, other in zip(scores_of(mixed, name).values(), scores_of(model, name).values(), strict=True):
        assert_programs_agree(one, other, rtol=1e-10)
    assert count_zeros(masks_of(mixed, name, 0.57, rounds=2)) == 57 * 197 // 100
    assert_unchanged(mixed, before)
    mixed.set_weights(values)


@pytest.mark.parametrize("kind", ["nested", "subclassed"])
@pytest.mark.parametrize("name", CRITERIA_ROWS)
def test_the_way_a_model_is_written_does_not_matter(name, kind, shared):
    values = {layer.name: layer.get_weights() for layer in shared("flat", masked=False).layers}
    scores = []
    for make in (flat, MODELS[kind]):
        model = make()
        for layer in all_layers(model):
            if values.get(layer.name):
                layer.set_weights(values[layer.name])
        model.compile("sgd", "mse")
        kprune.mask(model)
        scores.append({path.split("/")[-2]: score for path, score in scores_of(model, name).items()})
    assert scores[0].keys() == scores[1].keys() == {"hidden1", "hidden2", "logits"}
    for layer, score in scores[0].items():
        if not CRITERIA_ROWS[name].seeded or list(scores[0]) == list(scores[1]):
            assert_programs_agree(score, scores[1][layer], rtol=1e-12, err_msg=layer)


@pytest.mark.parametrize("how", [dict(run_eagerly=True), dict(jit_compile=True), dict(jit_compile=False)], ids=str)
def test_the_way_a_model_is_compiled_does_not_matter(how):
    reference, model = flat(), trained("flat", **how)
    reference.compile("sgd", "mse")
    kprune.mask(reference)
    reference.set_weights(model.get_weights())
    for name in CRITERIA_ROWS:
        masks = [list(masks_of(m, name, 0.8, rounds=3).values()) for m in (model, reference)]
        scores = [list(scores_of(m, name).values()) for m in (model, reference)]
        for part in (masks, scores):
            for one, other in zip(*part, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)


# Scopes and patterns

SCORES = arrays(
    np.float64,
    array_shapes(min_dims=1, max_dims=4, max_side=4),
    elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 1.0, 2.0]),
)


@pytest.mark.once
@pytest.mark.parametrize("name", SCOPE_ROWS)
@steady
@given(arrays=st.lists(SCORES, min_size=1, max_size=4), one=st.floats(0, 0.999), other=st.floats(0, 0.999))
def test_scope(name, arrays, one, other):
    scope = SCOPES.get(name)
    scores = {f"layer{i}": array for i, array in enumerate(arrays)}
    copies = [array.copy() for array in arrays]
    low, high = sorted([one, other])
    for sparsity in (low, high):
        if SCOPE_ROWS[name]([array.size for array in arrays], sparsity) < SCOPE_NEEDS.get(name, lambda _: 0)(arrays):
            with pytest.raises(ValueError, match=r"require .* Received: "):
                scope(scores, sparsity)
            return
    many, few = scope(scores, low), scope(scores, high)
    for n_keep, sparsity in [(many, low), (few, high), (scope(scores, 0.0), 0.0)]:
        assert list(n_keep) == list(scores)
        assert all(0 <= n_keep[path] <= score.size for path, score in scores.items())
        assert all(n == int(n) for n in n_keep.values())
        assert sum(n_keep.values()) == SCOPE_ROWS[name]([array.size for array in arrays], sparsity)
    assert all(few[path] <= many[path] for path in scores)
    assert scope(scores, low) == many
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.once
@pytest.mark.parametrize("name", ALL_PATTERNS)
@steady
@given(score=SCORES, draw=st.data())
def test_pattern(name, score, draw):
    pattern, row = PATTERNS.get(name), ALL_PATTERNS[name]
    few, many = sorted([draw.draw(st.integers(0, score.size)), draw.draw(st.integers(0, score.size))])
    copy, block = score.copy(), row.block(score.shape if score.ndim > 1 else (*score.shape, 1))
    masks = [pattern(score, n) for n in (few, many)]
    for n, mask in zip((few, many), masks, strict=True):
        assert mask.dtype == np.bool_ and mask.shape == score.shape
        n = n if row.prunes_again else min(n, alive(score))
        assert n <= np.count_nonzero(mask) <= n + block - 1
        np.testing.assert_array_equal(pattern(score, n), mask)
    assert not np.any(masks[0] & ~masks[1])
    everything = np.ones(score.shape, bool) if row.prunes_again else score > -np.inf
    np.testing.assert_array_equal(pattern(score, score.size), everything)
    assert not pattern(score, 0).any()
    np.testing.assert_array_equal(score, copy)


def most_kept(pattern, weights):
    """By how many entries a pattern may keep more than it is asked to, of all these weights."""
    return sum(ALL_PATTERNS[pattern].block(w.shape) - 1 for w in weights)


# Both work on NumPy's arrays: all pairs on one backend, on the other each scope with one pattern, in turn.
PAIRS = list(itertools.product(SCOPE_ROWS, ALL_PATTERNS))
if keras.backend.backend() != "tensorflow":
    PAIRS = list(zip(SCOPE_ROWS, itertools.cycle(ALL_PATTERNS), strict=False))


@pytest.mark.parametrize(("scope", "pattern"), PAIRS)
def test_scopes_and_patterns_together(scope, pattern):
    model = two_by_two()
    kprune.mask(model)
    weights = kprune.masked_weights(model)
    sizes = [w.size for w in weights]
    needs = SCOPE_NEEDS.get(scope, lambda _: 0)([w.value() for w in weights])
    masks = {}
    for sparsity in (0.3, 0.57, 0.9):
        if SCOPE_ROWS[scope](sizes, sparsity) < needs:
            assert sparsity == 0.9
            with pytest.raises(ValueError, match=r"require .* Received: "):
                kprune.prune(model, "magnitude", sparsity, scope=scope, pattern=pattern)
            break
        new = kprune.prune(model, "magnitude", sparsity, scope=scope, pattern=pattern)
        kept, asked = sum(int(m.sum()) for m in new.values()), SCOPE_ROWS[scope](sizes, sparsity)
        assert asked <= kept <= asked + most_kept(pattern, weights)
        if scope == "global":
            assert kept < asked + max(ALL_PATTERNS[pattern].block(w.shape) for w in weights)
        assert all(not np.any(new[path] & ~masks[path]) for path in masks)
        masks = new
        assert_zero(model)
        # As a fit that is resumed does: to the same sparsity once more, with scores that have changed.
        assert_all_equal(kprune.prune(model, "random", sparsity, scope=scope, pattern=pattern), masks)


STRUCTURED = [name for name in ALL_PATTERNS if name != "unstructured"]


def assert_pattern(pattern, weights, masks, sparsity):
    """The pattern's shape, and the number of zeros that its own scope comes to."""
    scope = "layerwise" if ":" in pattern else "global"
    asked = SCOPE_ROWS[scope]([w.size for w in weights], sparsity)
    kept = sum(int(masks[w.path].sum()) for w in weights)
    assert asked <= kept <= asked + most_kept(pattern, weights)
    assert all(ALL_PATTERNS[pattern].holds(masks[w.path]) for w in weights)


# A pattern sees nothing of a criterion but an array: each with one of the others, in turn.
@pytest.mark.parametrize(("criterion", "pattern"), list(zip(CRITERIA_ROWS, itertools.cycle(STRUCTURED), strict=False)))
def test_criteria_and_patterns_together(criterion, pattern, shared):
    model = shared("flat")
    masks = masks_of(model, criterion, 0.8, rounds=3, pattern=pattern)
    assert_pattern(pattern, kprune.masked_weights(model), masks, 0.8)


@pytest.mark.parametrize("pattern", STRUCTURED)
def test_groups_and_patterns_together(pattern, shared):
    model = shared("two by two")
    masks = masks_of(model, "magnitude", {"hidden": 0.9, "logits": 0.8}, pattern=pattern)
    for expression, sparsity in {"hidden": 0.9, "logits": 0.8}.items():
        group = [w for w in kprune.masked_weights(model) if expression in w.path]
        assert_pattern(pattern, group, masks, sparsity)
    assert sum(mask.all() for mask in masks.values()) == 2


# Schedules


@pytest.mark.once
@pytest.mark.parametrize("name", SCHEDULE_ROWS)
def test_schedule(name):
    schedule = SCHEDULE_ROWS[name](0.8, 7)
    assert isinstance(schedule, SCHEDULES.get(name)) and isinstance(schedule, schedules.Schedule)
    assert as_schedule(schedule) is schedule
    values = [schedule(step) for step in range(20)]
    assert all(0 <= a <= b <= 0.8 for a, b in itertools.pairwise(values))
    assert values[0] == 0.0 and values[7:] == [0.8] * 13
    assert schedule.last_due(0) is None and schedule.last_due(100) == schedule.end_step == 7
    due = [step for step in range(20) if schedule.due(step)]
    assert [schedule.next_due(step) for step in [-1, *due]] == [*due, None]
    assert schedule == SCHEDULE_ROWS[name](0.8, 7) != SCHEDULE_ROWS[name](0.7, 7)
    assert schedules.deserialize(json.loads(json.dumps(schedules.serialize(schedule)))) == schedule


@pytest.mark.parametrize("name", SCHEDULE_ROWS)
def test_a_schedule_in_a_fit_lands_on_its_final_sparsity(name):
    schedule = SCHEDULE_ROWS[name](0.8, 7)
    callback = kprune.callbacks.GradualPruning(schedule)
    # After the n-th batch n steps are taken.
    due = [schedule.last_due(step) for step in range(1, 11)]
    expected = [0 if step is None else zeros_for(276, schedule(step)) for step in due]
    assert expected[-1] == 220
    for _ in range(2):  # the second model starts from nothing, also where the schedule has a single update
        model = mlp()
        model.compile("sgd", "mse", **CHEAP)
        built(model)
        seen = []
        watch = EachBatch(lambda model, seen=seen: seen.append(zeros(model)))
        model.fit(*data(n=80), batch_size=8, verbose=0, callbacks=[callback, watch])
        assert seen == expected


@pytest.mark.parametrize("pattern", STRUCTURED)
def test_schedules_and_patterns_together(pattern):
    model = mlp()
    kprune.mask(model)
    model.compile("sgd", "mse", **CHEAP)
    built(model)
    dense = model.get_weights()
    weights = kprune.masked_weights(model)
    for name, row in SCHEDULE_ROWS.items():
        kprune.set_masks(model, {w.path: np.ones(w.shape, bool) for w in weights})
        model.set_weights(dense)
        model.optimizer.iterations.assign(0)
        schedule, seen = row(0.8, 7), []
        watch = EachBatch(lambda model, seen=seen: seen.append([int(w.kept().sum()) for w in weights]))
        callbacks = [kprune.callbacks.GradualPruning(schedule, pattern=pattern, scope="layerwise"), watch]
        model.fit(*data(n=80), batch_size=8, verbose=0, callbacks=callbacks)
        due = [schedule.last_due(step) for step in range(1, 11)]
        assert len(seen) == len(due)
        for counts, step in zip(seen, due, strict=True):
            asked = [w.size - (0 if step is None else zeros_for(w.size, schedule(step))) for w in weights]
            most = [n + ALL_PATTERNS[pattern].block(w.shape) - 1 for n, w in zip(asked, weights, strict=True)]
            assert all(a <= n <= m for a, n, m in zip(asked, counts, most, strict=True)), (name, step)
        assert all(ALL_PATTERNS[pattern].holds(w.kept()) for w in weights), name


@pytest.mark.parametrize("pattern", ALL_PATTERNS)
def test_a_resumed_fit_has_the_masks_that_it_had(pattern):
    model, masks = mlp(), []
    model.compile("adam", "mse", **CHEAP)
    built(model)
    for _ in range(3):  # each ends some steps after an update, so the weights have moved since
        callback = kprune.callbacks.GradualPruning(schedules.Linear(0.1, 0.8, 1, 28, frequency=7), pattern=pattern)
        begin = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: masks.append({w.path: w.kept() for w in kprune.masked_weights(model)})
        )
        model.fit(*data(n=80), batch_size=8, verbose=0, callbacks=[callback, begin])
        masks.append({w.path: w.kept() for w in kprune.masked_weights(model)})
    _, *pairs = masks
    for ended, resumed in zip(pairs[::2], pairs[1::2], strict=False):
        assert_all_equal(ended, resumed)
    assert count_zeros(masks[1]) < count_zeros(masks[3]) < count_zeros(masks[5])


# Callbacks

COMPILED = {
    "plain": dict(jit_compile=False, build=False),
    "jit": dict(jit_compile=True),
    "three steps, jit": dict(steps_per_execution=3, jit_compile=True),
}
# XLA compiles three steps in one call, too: one step in a call is for a callback that prunes, and one that does not.
ALONE = ("SynFlow", "TakeSnapshot")
WAYS = [(name, how) for name in CALLBACK_ROWS for how in COMPILED if how != "jit" or name in ALONE]


def fit(model, callbacks, **arguments):
    """A fit of 8 steps that checks at batch ends for exact zeros, and masks that only shrink unless they may move."""
    rows = [CALLBACK_ROWS[type(callback).__name__] for callback in callbacks]
    checks = OnlyShrinks(any(row.moves for row in rows), any(row.opens for row in rows))
    x, y = data(n=64)
    arguments = {"batch_size": 8, "verbose": 0, "shuffle": False, **arguments}
    history = model.fit(x, y, callbacks=[*callbacks, checks], **arguments)
    assert checks.calls >= 3
    return history, checks


class OnlyShrinks(keras.callbacks.Callback):
    def __init__(self, moves=False, opens=False):
        super().__init__()
        self.moves, self.opens = moves, opens
        self.masks, self.calls, self.zeros = {}, 0, []

    def on_train_begin(self, logs=None):
        self.on_train_batch_end(0)

    def on_train_batch_end(self, batch, logs=None):
        new = {w.path: w.kept() for w in kprune.masked_weights(self.model)}
        for path, old in self.masks.items():
            assert self.opens or new[path].sum() <= old.sum()
            assert self.opens or self.moves or not np.any(new[path] & ~old)
        self.masks = new
        for w in kprune.masked_weights(self.model):
            np.testing.assert_array_equal(w.value()[~w.kept()], 0.0, err_msg=w.path)
        self.calls += 1
        self.zeros.append(zeros(self.model))


def compiled(build=True, **arguments):
    model = mlp()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), "mse", **{**CHEAP, **arguments})
    return built(model) if build else model


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_callback(name, how):
    row = CALLBACK_ROWS[name]
    model = compiled(**COMPILED[how])
    before = model.get_weights()
    _, checks = fit(model, [row.make(0.8)], epochs=row.epochs)
    assert checks.zeros[-1] == zeros(model) == (220 if row.prunes else 0)
    assert bool(kprune.masked_weights(model)) == row.masks
    assert int(np.asarray(model.optimizer.iterations)) == (8 if row.relative else 8 * row.epochs)
    if not row.prunes:
        plain = compiled(**COMPILED[how])
        plain.set_weights(before)
        if row.masks:
            kprune.mask(plain)
        fit(plain, [])
        for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", TOGETHER)
def test_a_callback_used_twice_in_one_fit(name):
    row = CALLBACK_ROWS[name]
    model = compiled()
    fit(model, [row.make(sparsity) for sparsity in (0.5, 0.8, 0.5)], epochs=row.epochs)
    assert zeros(model) == (220 if row.prunes else 0)
    once = row.make(0.8)
    model = compiled()
    fit(model, [once, once], epochs=row.epochs)
    assert zeros(model) == (220 if row.prunes else 0)


@pytest.mark.parametrize("name", ABSOLUTE)
def test_a_callback_in_two_fits(name):
    row = CALLBACK_ROWS[name]
    callback, expected = row.make(0.8), 220 if row.prunes else 0
    model = compiled()
    fit(model, [callback], epochs=row.epochs)
    masks = {w.path: w.kept() for w in kprune.masked_weights(model)}
    _, checks = fit(model, [callback], epochs=row.epochs)  # of the same model: goes on with its masks
    assert checks.zeros[0] == checks.zeros[-1] == expected
    for w in [] if row.opens else kprune.masked_weights(model):
        assert w.kept().sum() == masks[w.path].sum()
        assert row.moves or np.array_equal(w.kept(), masks[w.path])
    other = compiled()
    fit(other, [callback], epochs=row.epochs)  # of another model: prunes that one
    assert zeros(other) == expected


@pytest.mark.parametrize(
    ("highest", "order", "how"),
    # Each is once the highest, and each pair stands in both orders.
    [
        *(
            (name, order, "cheap")
            for name, order in zip(TOGETHER, itertools.cycle((1, -1)), strict=False)
            if name in PRUNING
        ),
        ("GradualPruning", -1, "three steps, jit"),
    ],
)
def test_all_callbacks_in_one_fit(highest, order, how):
    callbacks = [row.make(0.9 if name == highest else 0.6) for name, row in TOGETHER.items()][::order]
    model = compiled(**COMPILED.get(how, CHEAP))
    history, checks = fit(model, callbacks, epochs=max(row.epochs for row in TOGETHER.values()))
    assert zeros(model) == 248  # the highest sparsity rules, and exactly
    assert checks.zeros == sorted(checks.zeros)
    assert history.history["sparsity"][-1] == 248 / 276


@pytest.mark.parametrize("name", [name for name, row in CALLBACK_ROWS.items() if row.at_init])
def test_a_callback_that_fails_before_the_first_step_leaves_the_model_as_it_was(name):
    model = compiled()
    model.get_layer("hidden2").kernel.assign(np.full((12, 12), np.nan, "float32"))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"infinite or NaN.*Received: "):
        model.fit(*data(), batch_size=8, verbose=0, callbacks=[CALLBACK_ROWS[name].make(0.5)])
    assert_unchanged(model, before, ["weights"])
    assert kprune.masked_weights(model) == []


@pytest.mark.parametrize("name", MASKING)
def test_a_callback_refuses_what_it_cannot_prune_before_anything_changes(name):
    callback = CALLBACK_ROWS[name].make(0.5)
    model = keras.Sequential([keras.Input((8,)), layers.Activation("relu")])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=f"no weight that can be masked.*Received: model='{model.name}'$"):
        model.fit(np.ones((8, 8)), np.ones((8, 8)), verbose=0, callbacks=[callback])
    model = mlp()
    model.compile(keras.optimizers.Muon(0.01), "mse")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"Received: optimizer=Muon$"):
        model.fit(*data(), verbose=0, callbacks=[callback])
    assert_unchanged(model, before, ["weights"])


DEFAULT_SPARSITY = ("PruneAtInit", "SynFlow")  # None is 0.9, or the budget


@pytest.mark.parametrize(
    ("sparsity", "name"),
    [
        (sparsity, name)
        for sparsity in (1.0, -0.1, "0.5", True, None)
        for name in PRUNING
        if sparsity is not None or name not in DEFAULT_SPARSITY
    ],
)
def test_a_callback_refuses_what_is_not_a_sparsity(sparsity, name):
    with pytest.raises(ValueError) as error:
        CALLBACK_ROWS[name].make(sparsity)
    assert f"sparsity={sparsity!r}" in str(error.value).partition("Received: ")[2]
