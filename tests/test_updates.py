"""An update by compiled programs, as on an accelerator, is the one that NumPy makes, bit for bit."""

import functools
import signal

import keras
import numpy as np
import pytest
from steps import updates_on_device

import kprune
import kprune.updates
from kprune.config import PruningConfig
from kprune.criteria.engines.lamp_tensors import lamp_tensors
from kprune.masks import current_masks, masked_weights
from kprune.pruning import Pruner
from kprune.scopes import kept_out, per_layer, with_ceiling, with_floor
from kprune.util.registry import own_trait

pytestmark = pytest.mark.optimized

CONFIGS = {
    "global": PruningConfig("magnitude"),
    "layerwise": PruningConfig("magnitude", scope="layerwise"),
    "uniform": PruningConfig("large_final", scope="uniform"),
    "erk": PruningConfig("magnitude", scope="erk"),
    "per_layer": PruningConfig("magnitude", scope=per_layer({"conv": 0.9, "": 0.3})),
    "floor": PruningConfig("magnitude", scope=with_floor("global", 0.2)),
    "ceiling": PruningConfig("magnitude", scope=with_ceiling("global", {"conv": 0.5})),
    "2:4": PruningConfig("magnitude", pattern="2:4"),
    "1:3 global": PruningConfig("magnitude", pattern="1:3", scope="global"),
    "kept_out": PruningConfig("magnitude", scope=kept_out("uniform", first=True)),
    "2x2": PruningConfig("magnitude", pattern="2x2"),
    "3x2 erk": PruningConfig("magnitude", pattern="3x2", scope="erk"),
    "channel": PruningConfig("magnitude", pattern="channel", scope=with_floor("global", 0.2)),
}
BLOCKS = ("2x2", "3x2", "channel")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(3, 2, name="conv"), keras.layers.Conv2DTranspose(5, 2, name="transposed")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(2, name="out")]
    made = keras.Sequential([keras.Input((4, 4, 2)), *layers])
    made.compile(keras.optimizers.Adagrad(initial_accumulator_value=0.25), "mse")
    kprune.mask(made)
    made.optimizer.build(made.trainable_variables)
    return made


@pytest.fixture
def elsewhere(monkeypatch):
    """Where the weights of these tests would lie, if this machine had an accelerator."""
    monkeypatch.setattr(kprune.updates, "on_host", lambda variables: False)
    monkeypatch.setattr(kprune.updates, "_alone", lambda model: False)  # as under tf.distribute: XLA takes seconds


def dense(model, values):
    """The model with all entries alive, and slots that training has filled."""
    kprune.set_masks(model, {w.path: np.ones(w.shape, bool) for w in masked_weights(model)})
    for i, weight in enumerate(masked_weights(model)):
        weight.variable.assign(values(np.random.default_rng(i), weight.shape).astype("float32"))
    for v in model.optimizer.variables[2:]:
        v.assign(np.full(v.shape, 7.0))


def state(model):
    variables = [w.variable for w in masked_weights(model)] + [w.mask for w in masked_weights(model)]
    return [keras.ops.convert_to_numpy(v) for v in variables + model.optimizer.variables]


def normal(draw, shape):
    return draw.normal(size=shape)


def ties(draw, shape):
    """Few values of both signs, and zeros of both."""
    return draw.integers(-2, 3, shape) * draw.choice([-0.0, 1.0], shape)


def fine(draw, shape):
    """Values that float32 takes for equal, subnormal ones, and ties, of both signs."""
    coarse, middle, small = (draw.integers(-2, 3, shape) for _ in range(3))
    # The lower half of a float64 begins at 2**-21 of it.
    values = coarse + middle * 2.0**-21 + small * 2.0**-40
    return np.where(draw.random(shape) < 0.3, small * 2.0**-1070, values) * draw.choice([-1.0, 1.0])


def both_ways(model, config, values, steps=(0.3, 0.3, 0.75), tracker=None):
    """The states after each step of the host's updates, and of those by programs."""
    ways = []
    for update in (
        lambda sparsity: kprune.set_masks(model, config.masks(model, sparsity, trackers=tracker)),
        lambda sparsity: by_programs(model, config, sparsity, tracker),
    ):
        dense(model, values)
        ways.append([])
        for sparsity in steps:
            update(sparsity)
            ways[-1].append(state(model))
    return ways


def by_programs(model, config, sparsity, tracker=None):
    asked = kprune.updates.update_on_device(model, config, sparsity, tracker=tracker)
    kept = {path: int(mask.sum()) for path, mask in current_masks(model).items()}
    assert asked == kept or (config.pattern in BLOCKS and all(kept[path] >= n for path, n in asked.items()))


def assert_the_same(host, device):
    for one, other in zip(host, device, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("values", [normal, ties])
@pytest.mark.parametrize("name", CONFIGS)
def test_is_what_numpy_makes_to_the_bit(model, elsewhere, name, values):
    host, device = both_ways(model, CONFIGS[name], values)
    assert_the_same(host, device)


def moved(model, values):
    """A tracker whose sums lie on the weights' devices, as in a fit."""
    tracker = kprune.criteria.Movement()
    draw = np.random.default_rng(0)
    tracker.set_state({str(i): values(draw, weight.shape) for i, weight in enumerate(masked_weights(model))})
    tracker.begin(model)
    return tracker


@pytest.mark.parametrize("values", [fine, ties])
@pytest.mark.parametrize("fields", [{}, {"scope": "layerwise"}, {"pattern": "2:4"}, {"pattern": "1:3"}])
def test_movement_is_ranked_in_float64(model, elsewhere, fields, values):
    dense(model, normal)
    config = PruningConfig("movement", **fields)
    assert_the_same(*both_ways(model, config, normal, tracker=moved(model, values)))


def test_movement_is_ranked_in_pairs_of_float32_where_a_tpu_makes_float64_of_them(model, elsewhere, monkeypatch):
    monkeypatch.setattr(kprune.updates, "platforms", lambda variables: {"tpu"})
    dense(model, normal)
    tracker = moved(model, lambda draw, shape: np.where(np.abs(values := fine(draw, shape)) < 1e-30, 0.0, values))
    assert_the_same(*both_ways(model, PruningConfig("movement"), normal, tracker=tracker))


def test_movement_of_blocks(model, elsewhere):
    config = PruningConfig("movement", pattern="channel", scope=with_floor("global", 0.2))
    assert_the_same(*both_ways(model, config, normal, tracker=moved(model, ties)))


@pytest.mark.parametrize("values", [normal, ties])
def test_lamp(model, elsewhere, values):
    assert_the_same(*both_ways(model, PruningConfig("lamp"), values))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lamp_has_its_scores_on_the_device(dtype):
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((20,)), *(keras.layers.Dense(units, dtype=dtype) for units in (30, 4))])
    kprune.prune(made, "random", 0.3, verbose=0)
    weights = masked_weights(made)
    scores = kprune.criteria.lamp(kprune.criteria.Context(made, weights, current_masks(made)))
    for weight, tensor in zip(weights, lamp_tensors(weights), strict=True):
        np.testing.assert_allclose(np.asarray(tensor), scores[weight.path], rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("error:Some donated buffers")
def test_the_sums_of_movement_outlive_an_update_to_which_the_weights_are_donated(model, elsewhere, monkeypatch):
    monkeypatch.setattr(kprune.updates, "fits", lambda model: True)
    dense(model, normal)
    tracker = moved(model, fine)
    before = tracker.arrays
    with updates_on_device() as traces:
        for sparsity in (0.2, 0.4, 0.7):
            by_programs(model, PruningConfig("movement"), sparsity, tracker)
            for weight in masked_weights(model):  # as steps do, which have other memory
                weight.variable.assign(weight.value() * 1.5)
    assert sorted(traces) == ["_count", "_given", "_look", "_written"]
    for one, other in zip(before, tracker.arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_movement_that_was_kept_in_float32_is_ranked(model, elsewhere):
    dense(model, normal)
    tracker = moved(model, lambda draw, shape: draw.normal(size=shape).astype("float32"))
    assert {array.dtype for array in tracker.arrays} == {np.dtype("float64")}
    by_programs(model, PruningConfig("movement"), 0.5, tracker)


def test_movement_before_anything_has_moved_is_left_to_the_host(model, elsewhere):
    dense(model, normal)
    begun, ended = moved(model, lambda draw, shape: np.zeros(shape)), moved(model, normal)
    ended.end()
    for tracker in (None, kprune.criteria.Movement(), begun, ended):
        assert kprune.updates.update_on_device(model, PruningConfig("movement"), 0.5, tracker=tracker) is None


def test_movement_of_another_model_is_refused(model, elsewhere):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    kprune.mask(other)
    with pytest.raises(ValueError, match="Movement has not watched this model"):
        kprune.updates.update_on_device(model, PruningConfig("movement"), 0.5, tracker=moved(other, normal))


def test_uniform_plus_whose_first_weight_stays_dense(model, elsewhere):
    config = PruningConfig("magnitude", scope="uniform_plus")
    host, device = both_ways(model, config, ties, [0.2, 0.6])
    assert_the_same(host, device)


def test_by_xla(model, elsewhere, monkeypatch):
    monkeypatch.setattr(kprune.updates, "_alone", lambda model: True)
    host, device = both_ways(model, CONFIGS["global"], ties)
    assert_the_same(host, device)


@pytest.mark.parametrize("name", ["global", "2x2"])
def test_groups_of_their_own_sparsity(model, elsewhere, name):
    host, device = both_ways(model, CONFIGS[name], ties, [{"conv": 0.5}, {"conv": 0.5, "out": 0.9}])
    assert_the_same(host, device)


def test_channels_take_their_followers_along(elsewhere, monkeypatch):
    monkeypatch.setattr(kprune.masks.types, "on_host", lambda variables: False)
    layers = [keras.layers.Conv2D(4, 2), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    made = keras.Sequential([keras.Input((3, 3, 2)), *layers, keras.layers.Dense(3)])
    made.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    kprune.prune(made, "magnitude", 0.0, pattern="channel", verbose=0)
    made.optimizer.build(made.trainable_variables)
    first = masked_weights(made)[0]
    first.variable.assign(np.broadcast_to([4.0, 1.0, 3.0, 2.0], first.shape))
    for v in made.optimizer.variables[2:]:
        v.assign(np.full(v.shape, 7.0))
    config = PruningConfig("magnitude", pattern="channel")
    by_programs(made, config, {masked_weights(made)[0].path: 0.5})
    bias, gamma, beta = kprune.masks.followers(made)[:3]
    for follower in (bias, gamma, beta):
        assert follower.kept().tolist() == [True, False, True, False]
    assert gamma.value().tolist() == [1, 0, 1, 0]
    momentum = {v.path.split("/", 1)[-1]: keras.ops.convert_to_numpy(v) for v in made.optimizer.variables[2:]}
    assert [m.tolist() for m in momentum.values() if m.shape == (4,)] == [[7, 0, 7, 0]] * 3


@pytest.mark.parametrize("scope", ["global", with_floor("global", 1), "layerwise"])
@pytest.mark.parametrize("way", ["host", "device"])
def test_many_entries_of_equal_score_at_the_cut_are_told_once(way, scope, monkeypatch, caplog, request):
    if way == "device":
        request.getfixturevalue("elsewhere")
    monkeypatch.setattr(kprune.selection, "_TOLD", set())
    keras.utils.set_random_seed(0)
    for dtype in ("mixed_bfloat16", "bfloat16"):
        layers = [keras.layers.Dense(40, dtype=dtype, name=name) for name in ("first", "second")]
        coarse = keras.Sequential([keras.Input((40,)), *layers])
        kprune.mask(coarse)
        pruner = Pruner(PruningConfig("magnitude", scope=scope))
        assert "at the cut" not in caplog.text
        for sparsity in (0.1, 0.2, 0.15):
            pruner.update(coarse, sparsity)
    assert caplog.text.count("at the cut") == (scope != "layerwise")
    if scope != "layerwise":
        first, second = (weight.path for weight in masked_weights(coarse))
        assert f"entries of {first} are kept before entries of {second}." in caplog.text


def test_ctrl_c_interrupts_when_all_weights_are_written(model, elsewhere, monkeypatch):
    dense(model, normal)
    pressed = []

    def press(variable):
        if not pressed:  # a second one would interrupt at once
            pressed.append(variable)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(kprune.updates, "forget_given", press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with pytest.raises(KeyboardInterrupt):
        kprune.updates.update_on_device(model, CONFIGS["layerwise"], 0.5)
    signal.signal(signal.SIGINT, before)
    for weight in masked_weights(model):
        kept = weight.kept()
        assert kept.sum() == kept.size - kept.size // 2 and not weight.value()[~kept].any()


def test_a_new_sparsity_compiles_nothing(model, elsewhere, monkeypatch):
    counts = []
    monkeypatch.setattr(kprune.updates, "fits", lambda model: True)  # whose steps donate their arrays
    with updates_on_device() as traces:
        for name in ("floor", "2:4"):
            for sparsity in (0.1, 0.2, 0.7):
                dense(model, normal)
                by_programs(model, CONFIGS[name], sparsity)
                counts.append(list(traces))
    assert counts == [["_look", "_count", "_written"]] * 3 + [["_look", "_count", "_written", "_look", "_written"]] * 3


def test_a_pruner_updates_so(model, elsewhere):
    dense(model, normal)
    Pruner(CONFIGS["global"]).update(model, 0.75)
    assert kprune.summary(model).sparsity == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("criterion", "fields"),
    [
        ("random", {}),
        (kprune.controls.inverted("magnitude"), {}),
        ("magnitude", {"rounds": 2}),
        ("magnitude", {"pattern": functools.wraps(kprune.patterns.channel)(lambda score, n_keep: score > 1)}),
        ("magnitude", {"pattern": "fan_in"}),
        ("magnitude", {"scope": lambda scores, sparsity: {path: score.min() and 1 for path, score in scores.items()}}),
    ],
)
def test_what_has_no_form_for_a_device_is_left_to_the_host(model, elsewhere, criterion, fields):
    dense(model, normal)
    before = state(model)
    assert kprune.updates.update_on_device(model, PruningConfig(criterion, **fields), 0.5) is None
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_scope_that_wraps_another_is_given_arrays(model, elsewhere):
    @functools.wraps(kprune.scopes.layerwise)
    def by_spread(scores, sparsity):
        return {path: 1 + (score.std() > 0) for path, score in scores.items()}

    dense(model, normal)
    config = PruningConfig("magnitude", scope=with_floor(by_spread, 1))
    assert kprune.updates.update_on_device(model, config, 0.5) is None
    assert [mask.sum() for mask in config.masks(model, 0.5).values()] == [2, 2, 2]


def test_the_host_says_which_scores_are_not_finite(model, elsewhere):
    dense(model, lambda draw, shape: np.full(shape, np.nan))
    with pytest.raises(ValueError, match="conv/kernel are infinite or NaN"):
        Pruner(CONFIGS["global"]).update(model, 0.5)
    dense(model, normal)


def test_weights_in_the_hosts_memory_are_left_to_numpy(model):
    assert kprune.updates.update_on_device(model, CONFIGS["global"], 0.5) is None


def test_an_entrywise_criterion_is_its_function_of_each_entry(model):
    dense(model, normal)
    weights = masked_weights(model)
    context = kprune.criteria.Context(model, weights, current_masks(model))
    entrywise = [name for name in kprune.criteria.CRITERIA if hasattr(kprune.criteria.get(name), "entrywise")]
    assert set(entrywise) >= {"magnitude", "large_final"}
    for name in entrywise:
        criterion = kprune.criteria.get(name)
        for weight in weights:
            score = criterion(context)[weight.path]
            np.testing.assert_array_equal(score, criterion.entrywise(weight.value()))
            operation = getattr(keras.ops, criterion.entrywise.__name__)
            np.testing.assert_array_equal(score, keras.ops.convert_to_numpy(operation(weight.value())))


@pytest.mark.parametrize(("name", "form"), [("magnitude", "entrywise"), ("synflow", "loop")])
def test_a_criterion_that_wraps_another_has_none_of_its_faster_forms(name, form):
    assert own_trait(kprune.criteria.get(name), form) is not None
    assert own_trait(kprune.controls.inverted(name), form) is None
    assert own_trait(functools.partial(kprune.criteria.get(name)), form) is None


def test_a_wrapped_magnitude_is_asked(model):
    @functools.wraps(kprune.criteria.magnitude)
    def least(context):
        return {path: -score for path, score in kprune.criteria.magnitude(context).items()}

    dense(model, normal)
    masks = PruningConfig(least, scope="layerwise").masks(model, 0.5)
    for weight in masked_weights(model):
        size = np.abs(weight.value())
        assert size[masks[weight.path]].max() < size[~masks[weight.path]].min()
