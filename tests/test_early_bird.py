"""EarlyBird: masks are drawn as `kprune.prune` would, set when they settle, and carried through a kill."""

import math

import keras
import numpy as np
import pytest
from helpers import EachBatch, assert_zero, data, mlp
from kprune.callbacks import BackupAndRestore, EarlyBird, SparsityLogger
from test_backup import Interrupt, fit, network, same

import kprune
from kprune.analysis import mask_distance
from kprune.config import PruningConfig


class Drawn(keras.callbacks.Callback):
    """The masks that pruning at each epoch's end would give; to be listed before the callback."""

    def __init__(self, **plan):
        super().__init__()
        self.plan, self.masks = PruningConfig("magnitude", **plan), []

    def on_epoch_end(self, epoch, logs=None):
        self.masks.append(self.plan.masks(self.model, 0.75))


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("plan", [{}, {"scope": "layerwise", "pattern": "2:4"}], ids=["global", "2:4"])
@pytest.mark.parametrize("patience", [2, 4])
def test_it_prunes_when_the_newest_mask_is_near_all_that_are_kept(patience, plan):
    model, drawn = network(), Drawn(**plan)
    fit(model, 12, drawn, EarlyBird(sparsity=0.75, patience=13))  # which masks the model, and never settles
    assert len(drawn.masks) == 12
    largest = [
        max((mask_distance(mask, old) for old in drawn.masks[max(0, i + 1 - patience) : i]), default=math.nan)
        for i, mask in enumerate(drawn.masks)
    ]
    threshold = sorted(largest[patience - 1 :])[3]
    settles = next(i for i, distance in enumerate(largest) if i >= patience - 1 and distance < threshold)
    assert settles >= patience

    model, bird = network(), EarlyBird(sparsity=0.75, threshold=threshold, patience=patience, **plan)
    history = fit(model, 12, bird, SparsityLogger(table=False))
    assert bird.settled_at == settles and history.epoch == list(range(settles + 1))
    np.testing.assert_array_equal(history.history["mask_distance"], largest[: settles + 1])
    assert [sparsity > 0 for sparsity in history.history["sparsity"]] == [False] * settles + [True]
    for weight, mask in zip(kprune.masked_weights(model), drawn.masks[settles].values(), strict=True):
        np.testing.assert_array_equal(weight.kept(), mask)
    assert_zero(model)


def test_without_a_stop_the_sparse_network_trains_on():
    model, bird, seen = network(), EarlyBird(sparsity=0.5, threshold=1.0, patience=2, stop=False), []
    history = fit(model, 4, bird, EachBatch(lambda m: seen.append(zeros(m))))
    assert bird.settled_at == 1 and history.epoch == [0, 1, 2, 3]
    assert seen == [0] * 12 + [138] * 12
    first, second, *later = history.history["mask_distance"]
    assert math.isnan(first) and second > 0 and later == [0.0, 0.0]


def zeros(model):
    return sum(int((w.value() == 0).sum()) for w in kprune.masked_weights(model))


def test_masks_that_never_settle_are_never_set():
    model, bird = network(), EarlyBird(sparsity=0.5, threshold=1e-9, patience=2)
    history = fit(model, 3, bird)
    assert bird.settled_at is None and history.epoch == [0, 1, 2] and zeros(model) == 0
    assert min(history.history["mask_distance"][1:]) > 0


def test_a_second_fit_begins_anew_and_trains_the_ticket_on():
    model, bird = network(), EarlyBird(sparsity=0.5, threshold=1.0, patience=3)
    assert fit(model, 9, bird).epoch == [0, 1, 2]
    masks = [w.kept() for w in kprune.masked_weights(model)]
    assert len(fit(model, 9).epoch) == 9
    for w, mask in zip(kprune.masked_weights(model), masks, strict=True):
        np.testing.assert_array_equal(w.kept(), mask)
    other = network()
    assert fit(other, 9, bird).epoch == [0, 1, 2]
    assert zeros(other) == 138


def bird(stop):
    return EarlyBird("taylor", 0.8, data=data(n=60), threshold=1.0, patience=4, stop=stop)


def backup(kind, folder):
    return keras.callbacks.BackupAndRestore(folder / "b") if kind == "keras" else BackupAndRestore(folder / "b.npz")


# test_backup.py shows that either kind of backup may be listed before and after.
@pytest.mark.parametrize(("kind", "first"), [("keras", True), ("kprune", False)])
def test_resumed_it_ends_as_if_it_had_not_stopped(kind, first, tmp_path):
    def callbacks(*more):
        own = bird(stop=False)
        return own, [backup(kind, tmp_path), own, *more] if first else [own, backup(kind, tmp_path), *more]

    whole, uninterrupted = network(), bird(stop=False)
    distances = fit(whole, 6, uninterrupted).history["mask_distance"]
    assert uninterrupted.settled_at == 3 and zeros(whole) == 220
    for stop in (1, 2, 5):  # with one mask, with two, and after it has settled
        with pytest.raises(KeyboardInterrupt):
            fit(network(), 6, *callbacks(Interrupt(stop))[1])
    model, (resumed, listed) = network(), callbacks()
    assert fit(model, 6, *listed).history["mask_distance"] == distances[5:]
    assert resumed.settled_at == 3
    assert same(model, whole)


class KilledAtTheEnd(keras.callbacks.Callback):
    """Ends the process, as far as a test can, after the last epoch, before the backup is deleted."""

    def on_train_end(self, logs=None):
        raise KeyboardInterrupt


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(("kind", "first"), [("keras", False), ("kprune", True)])
def test_killed_after_it_has_stopped_it_does_not_train_on(kind, first, tmp_path):
    def callbacks():
        pair = [backup(kind, tmp_path), bird(stop=True)]
        return pair if first else pair[::-1]

    whole = network()
    assert fit(whole, 9, bird(stop=True)).epoch == [0, 1, 2, 3]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(network(), 9, KilledAtTheEnd(), *callbacks())
    model = network()
    assert len(fit(model, 9, *callbacks()).epoch) == 1
    assert zeros(whole) == 220 and same(model, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sparsity=1.0), r"Received: sparsity=1\.0$"),
        (dict(threshold=0), "Received: threshold=0$"),
        (dict(threshold=1.5), r"Received: threshold=1\.5$"),
        (dict(threshold="0.1"), r"Received: threshold='0\.1'$"),
        (dict(patience=1), "Received: patience=1$"),
        (dict(patience=2.0), r"Received: patience=2\.0$"),
        (dict(criterion="snip"), "Received: data=None$"),
        (dict(pattern="3:2"), "Received: "),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyBird(**{"sparsity": 0.5, **arguments})


@pytest.mark.parametrize(("sparsity", "warned"), [(0.94, False), (0.96, True), (0.06, False), (0.04, True)])
def test_a_threshold_that_any_masks_meet_is_warned_of(sparsity, warned, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        fit(network(), 1, EarlyBird(sparsity=sparsity))
    assert ("differ in at most a fraction of 0.08 of their entries" in caplog.text) == warned


def test_an_infinite_score_is_an_error_in_the_midst_of_a_fit():
    model = mlp()
    model.compile(keras.optimizers.SGD(float("inf")), "mse")
    with pytest.raises(ValueError, match=r"infinite or NaN.*Received: criterion='magnitude'"):
        fit(model, 3, EarlyBird(sparsity=0.5))


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_an_early_bird_on_digits():
    digits = kprune.data.load("digits")
    x, y = digits.train
    keras.utils.set_random_seed(0)
    model = kprune.models.lenet_300_100(input_shape=(8, 8, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    caught = EarlyBird(sparsity=0.7, threshold=0.02, patience=4)
    history = model.fit(x, y, batch_size=64, epochs=30, verbose=0, callbacks=[caught])
    assert 4 < caught.settled_at < 29 and caught.settled_at == history.epoch[-1]
    distances = history.history["mask_distance"]
    assert all(distance >= 0.02 for distance in distances[3:-1]) and distances[-1] < 0.02
    assert kprune.summary(model).sparsity == pytest.approx(0.7, abs=1e-4)
    model.fit(x, y, batch_size=64, epochs=5, verbose=0)
    assert_zero(model)
    assert model.evaluate(*digits.test, verbose=0, return_dict=True)["accuracy"] > 0.93
