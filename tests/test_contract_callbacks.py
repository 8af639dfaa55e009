"""The contract of the callbacks: alone, twice, in a second fit, and all in one."""

import itertools

import keras
import numpy as np
import pytest
from contract_rows import ABSOLUTE, CALLBACK_ROWS, MASKING, PRUNING, TOGETHER
from helpers import CHEAP, built, data, mlp
from keras import layers
from test_prune import assert_unchanged, snapshot, zeros

import kprune

pytestmark = pytest.mark.one_session

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
            assert w.moved().size == 0, w.path
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
    steps = 0 if row.stands_in else 8 if row.relative else 8 * row.epochs
    assert int(np.asarray(model.optimizer.iterations)) == steps
    if not (row.prunes or row.acts):
        plain = compiled(**COMPILED[how])
        plain.set_weights(before)
        if row.masks:
            kprune.mask(plain)
        fit(plain, [])
        for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", [name for name, row in TOGETHER.items() if not row.acts])
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
    with pytest.raises(ValueError, match=f"no weights that can be masked.*Received: model='{model.name}'$"):
        model.fit(np.ones((8, 8)), np.ones((8, 8)), verbose=0, callbacks=[callback])
    model = mlp()
    model.compile(keras.optimizers.Muon(0.01), "mse")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"Received: optimizer=Muon$"):
        model.fit(*data(), verbose=0, callbacks=[callback])
    assert_unchanged(model, before, ["weights"])


DEFAULT_SPARSITY = ("PruneAtInit", "SynFlow", "Supermask")  # None is 0.9 or 0.5, or the budget


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
