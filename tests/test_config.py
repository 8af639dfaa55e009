"""PruningConfig: what to prune by, as one value; and what watches a training for the criteria that need it."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import CHEAP, built, data, mlp
from kprune.callbacks import BackupAndRestore, EarlyBird, GradualPruning, LotteryTicket, PruneAtInit
from marks import with_slow
from test_prune import zeros

import kprune
from kprune import PruningConfig, controls, criteria, scopes
from kprune.patterns import PATTERNS
from kprune.scopes import SCOPES

CONFIGS = {
    "the default": PruningConfig(),
    "names": PruningConfig("synflow", scope="erk", pattern="2:4", rounds=3, seed=5),
    "functions": PruningConfig(criteria.lamp, scope=scopes.uniform, pattern=PATTERNS.get("4x4")),
    "a partial": PruningConfig(functools.partial(criteria.snip, training=True)),
    "made scopes": PruningConfig(scope=scopes.with_floor(scopes.kept_out("erk", first=True), 0.01)),
    "densities": PruningConfig("random", scope=scopes.per_layer({"a": 0.5, "b": 0.1})),
    "inverted": PruningConfig(controls.inverted("lamp")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_goes_through_json(name):
    config = CONFIGS[name].get_config()
    again = PruningConfig.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("a partial", "densities")])
def test_what_comes_back_prunes_alike(name):
    model = mlp()
    kprune.mask(model)
    again = PruningConfig.from_config(CONFIGS[name].get_config())
    for mask, other in zip(CONFIGS[name].masks(model, 0.6).values(), again.masks(model, 0.6).values(), strict=True):
        np.testing.assert_array_equal(mask, other)


def test_what_is_left_out_is_filled_in_once():
    config = PruningConfig("synflow", pattern="2:4")
    assert (config.scope, config.rounds, config.seed) == ("layerwise", 100, 0)
    assert config == PruningConfig("synflow", scope="layerwise", pattern="2:4", rounds=100)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rounds = 1


def unregistered(context):
    return {w.path: w.value() for w in context.weights}


def magnitude(context):
    """It has the name of a registered one, and is another."""
    return {w.path: w.value() for w in context.weights}


@pytest.mark.parametrize(
    "config",
    [
        PruningConfig(unregistered),
        PruningConfig(magnitude),
        PruningConfig(functools.partial(unregistered)),
        PruningConfig(controls.inverted(unregistered)),
        PruningConfig(scope=lambda scores, sparsity: {}),
        PruningConfig(scope=scopes.with_floor(lambda scores, sparsity: {}, 1)),
        PruningConfig(scope=scopes.per_layer(lambda path, shape: 1.0)),
        PruningConfig(pattern=lambda score, n_keep: score > 0),
    ],
)
def test_a_function_of_the_users_own_must_be_registered_to_be_saved(config):
    with pytest.raises(ValueError, match="can be saved only if it is registered"):
        config.get_config()


def test_an_option_that_json_cannot_hold():
    with pytest.raises(ValueError, match=r"Received: training=<object"):
        PruningConfig(functools.partial(criteria.snip, training=object())).get_config()


@pytest.mark.parametrize(
    "config", [3, {"name": "erk"}, {"name": "nowhere", "options": {}}, {"name": "erk", "options": 3}]
)
def test_a_wrong_config_is_refused(config):
    with pytest.raises(ValueError, match="Received: "):
        SCOPES.deserialize(config)


CALLBACKS = {
    "prune": lambda **given: kprune.prune(mlp(), sparsity=0.5, **given),
    "PruneAtInit": lambda **given: PruneAtInit(sparsity=0.5, **given),
    "EarlyBird": lambda **given: EarlyBird(sparsity=0.5, **given),
    "GradualPruning": lambda **given: GradualPruning(kprune.schedules.Constant(0.5), **given),
    "LotteryTicket": lambda **given: LotteryTicket(1, 1, **given),
    "find_ticket": lambda **given: kprune.find_ticket(mlp(), lambda *_: None, levels=1, verbose=0, **given),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_all_take_a_config_or_its_fields(name):
    config = PruningConfig("random", scope="erk", seed=3)
    made = CALLBACKS[name](criterion=config)
    assert name in ("prune", "find_ticket") or getattr(made, "lottery", made).pruner.config is config
    made = CALLBACKS[name](criterion="random", scope="erk", seed=3)
    assert name in ("prune", "find_ticket") or getattr(made, "lottery", made).pruner.config == config
    with pytest.raises(ValueError, match=r"cannot be combined with separate fields.*Received: scope='erk', seed=3$"):
        CALLBACKS[name](criterion=config, scope="erk", seed=3)
    fields = r"PruningConfig has no field 'scoop'. Its fields are .*Received: scoop='erk'$"
    with pytest.raises(ValueError, match=fields):
        CALLBACKS[name](criterion="random", scoop="erk")


@pytest.mark.parametrize("make", [EarlyBird, PruneAtInit, lambda sparsity: kprune.prune(mlp(), sparsity, 0.5)])
def test_a_sparsity_in_the_place_of_the_criterion(make):
    with pytest.raises(ValueError, match=r"pass the sparsity as the next argument\. Received: criterion=0\.9$"):
        make(0.9)


def test_masks_within_others_may_grow():
    model = mlp()
    kprune.prune(model, "magnitude", 0.9)
    (first, *rest) = kprune.masked_weights(model)
    every = {w.path: np.ones(w.shape, bool) for w in (first, *rest)}
    half = {**every, first.path: np.arange(first.size).reshape(first.shape) % 2 == 0}
    config = PruningConfig("random", seed=1)
    assert sum(map(np.count_nonzero, config.masks(model, 0.5).values())) == zeros_kept(model)
    grown = config.masks(model, 0.5, within=every)
    assert sum(map(np.count_nonzero, grown.values())) == sum(w.size for w in (first, *rest)) // 2
    assert not np.any(config.masks(model, 0.1, within=half)[first.path] & ~half[first.path])


def zeros_kept(model):
    return sum(w.size for w in kprune.masked_weights(model)) - zeros(model)


# Trackers


class Steps(criteria.Tracker):
    """Counts what it is told."""

    def __init__(self):
        self.begun, self.steps = 0, 0

    def begin(self, model):
        self.begun += 1

    def after_step(self, model):
        self.steps += 1

    def get_state(self):
        return {"steps": np.array([self.steps])}

    def set_state(self, state):
        self.steps = int(state["steps"][0])


def watched(made, context):
    made.append((context.tracker, context.tracker.steps))
    return {w.path: np.abs(w.value()) for w in context.weights}


def watching():
    """A criterion with a tracker, and what it was given at each of its calls: (tracker, steps it has seen)."""
    made = []

    def criterion(context):
        return watched(made, context)

    criterion.tracker = Steps
    return criterion, made


def fit(model, *callbacks, epochs=1, **arguments):
    x, y = data(n=60)
    model.fit(x, y, batch_size=10, epochs=epochs, verbose=0, callbacks=list(callbacks), **arguments)


def compiled():
    model = mlp()
    model.compile("adam", "mse", **CHEAP)
    return built(model)


def test_a_tracker_sees_each_step_of_a_fit_and_a_new_one_the_next():
    criterion, made = watching()
    model, callback = compiled(), GradualPruning(kprune.schedules.Linear(0.1, 0.5, 2, 6, frequency=2), criterion)
    fit(model, callback)
    assert [steps for _, steps in made] == [2, 4, 6]
    first = callback.pruner.tracker
    fit(model, callback)
    assert callback.pruner.tracker is not first


def test_early_bird_goes_by_what_it_watched():
    criterion, made = watching()
    fit(compiled(), EarlyBird(criterion, 0.5, patience=2, threshold=1.0, stop=False), epochs=3)
    assert [steps for _, steps in made] == [6, 12]


@pytest.mark.parametrize(("rewind", "expected"), [("weights", [6, 6]), ("none", [6, 12])])
def test_a_lottery_watches_from_the_rewind_point_on(rewind, expected):
    criterion, made = watching()
    lottery = LotteryTicket(2, 2, rewind_to="epoch:1", rewind=rewind, criterion=criterion)
    x, y = data(n=60)
    compiled().fit(x, y, batch_size=10, verbose=0, **lottery.fit_kwargs())
    assert [steps for _, steps in made] == expected


@pytest.mark.parametrize("rewind", ["weights", "none"])
def test_find_ticket_watches_as_the_callback_does(rewind):
    criterion, made = watching()

    def train(model, level):
        fit(model, *level.callbacks, epochs=2, initial_epoch=level.initial_epoch)

    how = dict(rewind_to="epoch:1", rewind=rewind, criterion=criterion)
    kprune.find_ticket(compiled(), train, levels=2, verbose=0, **how)
    assert [steps for _, steps in made] == ([6, 6] if rewind == "weights" else [6, 12])


@pytest.mark.parametrize("kind", with_slow(["movement"], ["large_init"]))
@pytest.mark.parametrize(
    "make",
    [
        lambda kind: EarlyBird(kind, 0.5, patience=3, threshold=1.0, stop=False),
        lambda kind: LotteryTicket(3, 1, rate=0.3, criterion=kind),
        lambda kind: GradualPruning(kprune.schedules.Linear(0.1, 0.5, 4, 20, frequency=4), kind),
    ],
    ids=["EarlyBird", "LotteryTicket", "GradualPruning"],
)
def test_what_was_watched_comes_back_from_a_backup(make, kind, tmp_path):
    def start():
        keras.utils.set_random_seed(3)
        return compiled()

    whole, cut = start(), start()
    how = dict(shuffle=False)
    fit(whole, make(kind), epochs=4, **how)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = tmp_path / "backup.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(cut, make(kind), BackupAndRestore(backup), Stop(), epochs=4, **how)
    resumed = start()
    fit(resumed, make(kind), BackupAndRestore(backup), epochs=4, **how)
    for a, b in zip(kprune.masked_weights(whole), kprune.masked_weights(resumed), strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept())
        np.testing.assert_array_equal(a.value(), b.value())


SCHEDULE = kprune.schedules.Linear(0.1, 0.8, 1, 9)
WRITTEN = {
    "schedule": (GradualPruning, (SCHEDULE,), dict(margin=np.float64(1.5), rounds=2)),
    "shares": (GradualPruning, ({"conv": 0.5}, "lamp"), dict(begin=3, end=0.9)),
    "per layer": (GradualPruning, (kprune.schedules.PerLayer({"": SCHEDULE}), PruningConfig("snip", seed=4)), {}),
    "partial": (PruneAtInit, (functools.partial(kprune.criteria.snip, training=True),), dict(pattern="2:4")),
    "scope": (kprune.callbacks.SynFlow, (0.5,), dict(scope=kprune.scopes.with_floor("erk", 2))),
    "early bird": (EarlyBird, (), dict(patience=3, stop=False)),
    "sparse": (kprune.callbacks.DynamicSparseTraining, ("set", SCHEDULE), dict(stop=0.5)),
    "lottery": (LotteryTicket, (3, 2), dict(rewind_to="epoch:1", path=Path("ticket.npz"))),
    "supermask": (kprune.callbacks.Supermask, ("edge_popup", 0.7), dict(scope="erk", signed_constant=True)),
    "snapshot": (kprune.callbacks.TakeSnapshot, (3,), {}),
    "logger": (kprune.callbacks.SparsityLogger, (), dict(table=False)),
    "backup": (kprune.callbacks.BackupAndRestore, (Path("backup.npz"),), {}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_callbacks_are_written_down_and_made_again(name):
    cls, args, kwargs = WRITTEN[name]
    data = dict(data=(np.ones((4, 8)), np.ones((4, 3)))) if name in ("per layer", "partial") else {}
    made = cls(*args, **kwargs, **data)
    config = json.loads(json.dumps(made.get_config()))
    again = cls.from_config(config, **data)
    assert type(again) is cls and again.get_config() == made.get_config()
    for attribute in ("pruner.config", "lottery.pruner.config", "schedule", "point", "margin", "stop", "path"):
        assert find(made, attribute) == find(again, attribute), attribute
    fields = rf"^{cls.__name__} has no field 'scoop'\. Its fields are .*Received: scoop=1$"
    with pytest.raises(ValueError, match=fields):
        cls.from_config({**config, "scoop": 1})
    with pytest.raises(ValueError, match=r"does not accept the argument `model`\. Received: model=1$"):
        cls.from_config(config, model=1)
    assert copy.copy(made).get_config() == made.get_config()


def find(callback, attribute):
    for name in attribute.split("."):
        callback = getattr(callback, name, None)
    return callback.get_config() if hasattr(callback, "get_config") else str(callback)


def test_what_cannot_be_written_down_is_an_error():
    made = GradualPruning(SCHEDULE, lambda context: {})
    with pytest.raises(ValueError, match="A custom criterion can be saved only if it is registered"):
        made.get_config()
    with pytest.raises(
        ValueError, match=r"^LotteryTicket requires the field 'epochs_per_level'\. Received: fields=\['levels'\]$"
    ):
        LotteryTicket.from_config({"levels": 2})
    with pytest.raises(ValueError, match=r"^The config of EarlyBird must be a dict\. Received: config=3$"):
        EarlyBird.from_config(3)
    with pytest.raises(ValueError, match=r"^PruningConfig has no field 'scoop'.*Received: scoop=1$"):
        PruningConfig.from_config({"scoop": 1})
    with pytest.raises(ValueError, match=r"^Linear has no field 'ends'.*Received: ends=1$"):
        kprune.schedules.Linear.from_config({**SCHEDULE.get_config(), "ends": 1})
    with pytest.raises(ValueError, match=r"^with_floor has no field 'flor'.*Received: flor=1$"):
        PruningConfig.from_config({"scope": {"name": "with_floor", "options": {"scope": "erk", "flor": 1}}})
