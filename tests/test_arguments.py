"""Wrong arguments: a ValueError that says what was given, and nothing has changed."""

import math

import keras
import numpy as np
import pytest
from helpers import mlp
from kprune.callbacks import EarlyBird, GradualPruning, LotteryTicket, PruneAtInit, TakeSnapshot

import kprune
from kprune import analysis, growth, patterns, scopes
from kprune.criteria import CRITERIA, InitialWeights
from kprune.data import take_batches
from kprune.runtime.files import pack
from kprune.schedules import PolynomialDecay, TfmotSchedule

ANYTHING = [None, -1, 1.5, math.nan, True, "", set(), np.array(3), object(), {"wrong": 1}, {1: 2}, [object()]]
ANYTHING.append(np.ones(3))
SCORES = {"a": np.ones((4, 3)), "b": np.ones((3, 2))}


def but(*right):
    """Everything that is wrong where only values of these types or these values themselves are right."""
    types = tuple(one for one in right if isinstance(one, type))
    return [value for value in ANYTHING if not isinstance(value, types) and not any(value is one for one in right)]


def scoped(make, **arguments):
    make(**arguments)(SCORES, 0.5)


def ones(model):
    return 1.0


def trained(model, seed):
    return None


# What is called (of the model, a snapshot of it and one argument), the argument's name, and values that are wrong.
TABLE = {
    "mask filters": (kprune.mask, "filters", but(None, "")),
    "mask weights": (kprune.mask, "weights", ANYTHING),
    "masked_weights": (lambda m, model: kprune.masked_weights(model), "model", ANYTHING),
    "set_masks": (kprune.set_masks, "masks", but()),
    "prune criterion": (lambda m, **a: kprune.prune(m, sparsity=0.5, **a), "criterion", ANYTHING),
    "prune sparsity": (lambda m, **a: kprune.prune(m, "magnitude", **a), "sparsity", ANYTHING),
    **{
        f"prune {name}": (lambda m, **a: kprune.prune(m, "magnitude", 0.5, verbose=False, **a), name, values)
        for name, values in {
            "scope": but(None),
            "pattern": ANYTHING,
            "rounds": but(None),
            "seed": but(True),
            "batches": but(None),
        }.items()
    },
    "prune verbose": (lambda m, **a: kprune.prune(m, "magnitude", 0.5, **a), "verbose", but(int)),
    "prune trackers": (lambda m, **a: kprune.prune(m, "movement", 0.5, verbose=0, **a), "trackers", ANYTHING),
    "PruningConfig within": (lambda m, **a: kprune.PruningConfig().masks(m, 0.5, **a), "within", but(None)),
    "prune optimizer": (lambda m, **a: kprune.prune(m, "magnitude", 0.5, verbose=0, **a), "optimizer", but(None)),
    "set_masks optimizer": (lambda m, **a: kprune.set_masks(m, {}, **a), "optimizer", but(None)),
    "snapshot optimizer": (kprune.snapshot, "optimizer", but(None)),
    "rewind optimizer": (lambda m, **a: kprune.rewind(m, kprune.snapshot(m), **a), "optimizer", but(None)),
    "take_batches data": (lambda m, data: take_batches(data), "data", [*but(np.ndarray), np.array(3)]),
    "Ticket masks": (lambda m, masks: kprune.Ticket(masks, {}), "masks", ANYTHING),
    "Ticket weights": (lambda m, weights: kprune.Ticket({}, weights), "weights", ANYTHING),
    "Snapshot optimizer": (lambda m, optimizer: kprune.Snapshot({}, optimizer), "optimizer", ANYTHING),
    "mask_distance": (lambda m, one: analysis.mask_distance(one, {}), "one", ANYTHING),
    "pattern score": (lambda m, score: patterns.unstructured(score, 0), "score", but(np.ndarray)),
    "pattern n_keep": (lambda m, n_keep: patterns.block(2, 2)(np.ones((3, 3)), n_keep), "n_keep", ANYTHING),
    "scope scores": (lambda m, scores: scopes.uniform_plus(scores, 0.5), "scores", ANYTHING),
    "scope sparsity": (lambda m, sparsity: scopes.erk(SCORES, sparsity), "sparsity", ANYTHING),
    "step": (lambda m, step: PolynomialDecay(0.1, 0.5, 0, 4)(step), "step", [*but(int, float), True, math.nan]),
    "drop_and_grow n_keep": (lambda m, n_keep: growth.drop_and_grow(m, "set", n_keep, 0.3), "n_keep", ANYTHING),
    "splice margin": (lambda m, margin: growth.splice(kprune.PruningConfig(), m, 0.5, margin), "margin", but(1.5)),
    "name of a criterion": (lambda m, name: CRITERIA.register(name), "name", ANYTHING),
    "state of a tracker": (lambda m, state: InitialWeights().set_state(state), "state", ANYTHING),
    "balanced_sample seed": (
        lambda m, seed: kprune.balanced_sample(np.ones((3, 2)), np.array([0, 1, 1]), 1, seed),
        "seed",
        ANYTHING,
    ),
    "shrink inputs": (kprune.shrink, "inputs", [*but(None, np.ndarray), np.array(3)]),
    "tfmot's schedule": (lambda m, schedule: TfmotSchedule.of(schedule), "schedule", ANYTHING),
    "search seeds": (lambda m, seeds: kprune.search(m, trained, ones, seeds=seeds), "seeds", [*ANYTHING, [[1], [2]]]),
    "RewindPoint epochs": (lambda m, epochs: kprune.RewindPoint(epochs=epochs), "epochs", but(None, 1.5)),
    "in_epochs epochs": (lambda m, epochs: kprune.RewindPoint(steps=1).in_epochs(epochs, 9), "epochs", ANYTHING),
    "in_batches batches": (lambda m, n: kprune.RewindPoint(epochs=1).in_batches(9, n), "n", but(1.5)),
    "find_ticket shuffle_seed": (
        lambda m, **a: kprune.find_ticket(m, trained, levels=1, **a),
        "shuffle_seed",
        but(None),
    ),
    "rewind to": (kprune.rewind, "to", ANYTHING),
    "rewind what": (lambda m, what: kprune.rewind(m, kprune.snapshot(m), what), "what", ANYTHING),
    "sensitivity evaluate": (kprune.sensitivity, "evaluate", [*but(list, np.ndarray), np.array(3), b"x"]),
    "sensitivity sparsities": (lambda m, **a: kprune.sensitivity(m, ones, **a), "sparsities", ANYTHING),
    "supermask": (lambda m, ticket: analysis.supermask(m, ticket, ones), "ticket", ANYTHING),
    "linear_path one": (lambda m, one: analysis.linear_path(m, one, kprune.snapshot(m), ones), "one", ANYTHING),
    "instability train": (lambda m, train: analysis.instability(m, train, ones), "train", ANYTHING),
    "instability prepare": (lambda m, **a: analysis.instability(m, trained, ones, **a), "prepare", but(None)),
    "find_ticket train": (lambda m, train: kprune.find_ticket(m, train, levels=1), "train", ANYTHING),
    "kept_out scope": (lambda m, scope: scoped(scopes.kept_out, scope=scope, first=True), "scope", ANYTHING),
    "kept_out first": (lambda m, **a: scoped(scopes.kept_out, scope="global", **a), "first", but(True)),
    "kept_out last": (lambda m, **a: scoped(scopes.kept_out, scope="global", **a), "last", but(True)),
    "kept_out paths": (lambda m, **a: scoped(scopes.kept_out, scope="global", **a), "paths", but("")),
    "with_floor scope": (lambda m, **a: scoped(scopes.with_floor, **a), "scope", ANYTHING),
    "with_ceiling scope": (lambda m, **a: scoped(scopes.with_ceiling, ceiling=0.9, **a), "scope", ANYTHING),
    "GradualPruning": (lambda m, schedule: GradualPruning(schedule), "schedule", ANYTHING),
    "PruneAtInit": (lambda m, criterion: PruneAtInit(criterion), "criterion", ANYTHING),
    "EarlyBird": (lambda m, patience: EarlyBird(sparsity=0.5, patience=patience), "patience", ANYTHING),
    "LotteryTicket": (lambda m, **a: LotteryTicket(1, 1, **a), "rewind", ANYTHING),
    "TakeSnapshot": (lambda m, at: TakeSnapshot(at), "at", ANYTHING),
}


@pytest.fixture(scope="module")
def model():
    made = mlp(units=3)
    made.compile("sgd", "mse", metrics=["mae"])
    kprune.mask(made)
    return made


@pytest.mark.parametrize("row", TABLE)
def test_a_wrong_argument_is_named_and_changes_nothing(row, model):
    function, name, values = TABLE[row]
    before = [v.numpy().tobytes() for v in model.variables]
    for value in values:
        with pytest.raises(ValueError, match="Received: ") as raised:
            function(model, **{name: value})
        assert "truth value" not in str(raised.value) and len(str(raised.value)) < 1000
    assert [v.numpy().tobytes() for v in model.variables] == before


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([object()])])
def test_what_no_reader_could_read_is_not_written(array):
    with pytest.raises(ValueError, match=r"Only numeric arrays can be saved\. Received: array='mask/a', dtype="):
        pack({"mask/a": array}, {})


@pytest.mark.parametrize(
    "answer, says",
    [
        (None, "must return a dict"),
        ({}, "must return an integer from 0 to 24 for"),
        (24.0, "must return an integer from 0 to 24 for"),
        (25, "must return an integer from 0 to 24 for"),
        (True, "must return an integer from 0 to 24 for"),
    ],
)
@pytest.mark.parametrize("around", [lambda scope: scope, lambda scope: scopes.with_floor(scope, 1)])
def test_a_scope_that_answers_wrongly_is_named(answer, says, around, model):
    def mine(scores, sparsity):
        return answer if answer is None or isinstance(answer, dict) else dict.fromkeys(scores, answer)

    with pytest.raises(ValueError, match=f"{says}.*Received: scope='mine'"):
        kprune.prune(model, "magnitude", 0.5, scope=around(mine), verbose=False)


def test_a_pattern_that_answers_nothing_is_refused(model):
    with pytest.raises(ValueError, match=r"A pattern must return a bool array.*Received: shape=\(\), dtype=object"):
        kprune.prune(model, "magnitude", 0.5, pattern=lambda scores, n_keep: None, verbose=False)


def test_weights_that_are_pruned_to_nothing_are_named_once_per_fit(caplog):
    dense = [keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(v)) for v in (3.0, 2.0, 1.0)]
    small = keras.Sequential([keras.Input((4,)), *dense])
    small.compile("sgd", "mse")
    callback = GradualPruning(PolynomialDecay(0.2, 0.7, begin_step=0, end_step=4))
    for _ in range(2):
        caplog.clear()
        small.fit(np.zeros((5, 4)), np.zeros((5, 1)), batch_size=1, verbose=0, callbacks=[callback])
        assert caplog.text.count("pruned completely") == 1
