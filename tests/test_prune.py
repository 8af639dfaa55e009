"""`kprune.prune`: exact counts, rounds over survivors, and a model that is as it was when anything is wrong."""

import functools
import math
import re

import keras
import numpy as np
import pytest
from helpers import assert_zero, data, mlp
from keras import layers

import kprune
from kprune.config import PruningConfig
from kprune.masks.below import all_layers
from kprune.masks.masked_layers import Masked
from kprune.scopes import with_floor
from kprune.util.ranking import zeros_for

pytestmark = pytest.mark.one_session


def zeros(model):
    return sum(int((~w.kept()).sum()) for w in kprune.masked_weights(model))


def size(model):
    return sum(w.size for w in kprune.masked_weights(model))


def values_of(variables):
    return [(v, v.path, np.array(v.numpy())) for v in variables]


def snapshot(model):
    """All that scoring, or a failed pruning, must leave alone: see `assert_unchanged`."""
    optimizer = getattr(model, "optimizer", None)
    metrics = [v for metric in getattr(model, "metrics", []) for v in metric.variables]
    return {
        "weights": values_of(model.variables),
        "metrics": values_of(metrics),
        "optimizer": values_of(optimizer.variables if optimizer is not None else []),
        "layers": [(layer, type(layer), dict(vars(layer))) for layer in all_layers(model)],
    }


def assert_unchanged(model, before, what=("weights", "metrics", "optimizer")):
    """The same variables with the same bits, the same layers of the same classes with the same attributes."""
    after = snapshot(model)
    for part in what:
        assert [path for _, path, _ in after[part]] == [path for _, path, _ in before[part]]
        for (v, path, value), (old_v, _, old) in zip(after[part], before[part], strict=True):
            assert v is old_v, path
            assert value.dtype == old.dtype and value.tobytes() == old.tobytes(), path
    assert len(after["layers"]) == len(before["layers"])
    for (layer, cls, attributes), (old_layer, old_cls, old) in zip(after["layers"], before["layers"], strict=True):
        assert layer is old_layer and cls is old_cls
        # The trainer keeps its own books (compiled functions, history) in the model itself.
        assert layer is model or attributes.keys() == old.keys(), layer.name
        for name in ("call", "build", "activation", "max_value", "threshold", "_dtype_policy", "trainable"):
            assert attributes.get(name) is old.get(name), (layer.name, name)


def trained(**arguments):
    """A compiled model with state everywhere: moments, metrics, statistics, a seed generator."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(12, "relu", name="hidden1", kernel_regularizer="l2"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.2, seed=1, name="drop"),
            layers.Dense(12, "relu", name="hidden2"),
            layers.Dense(3, name="logits"),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"], **arguments)
    model.fit(*data(), batch_size=16, verbose=0)
    return model


# Exact counts


@pytest.mark.parametrize("criterion", ["magnitude", "random", "synflow"])
@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.5, 0.57, 0.9, 0.999])
def test_the_number_of_zeros_is_exact(criterion, sparsity):
    model = mlp()
    masks = kprune.prune(model, criterion, sparsity, rounds=2)
    total = 8 * 12 + 12 * 12 + 12 * 3
    assert total == 276
    expected = math.floor(sparsity * 276)
    assert zeros(model) == sum(int((~m).sum()) for m in masks.values()) == expected
    for weight in kprune.masked_weights(model):
        assert masks[weight.path].dtype == np.bool_
        np.testing.assert_array_equal(weight.kept(), masks[weight.path])
        np.testing.assert_array_equal(weight.value()[~masks[weight.path]], 0.0)


def test_layerwise_counts_are_exact():
    model = mlp()
    kprune.prune(model, "magnitude", 0.57, scope="layerwise")
    assert [int((~w.kept()).sum()) for w in kprune.masked_weights(model)] == [54, 82, 20]  # floor(.57 * 96, 144, 36)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_an_all_equal_kernel_is_pruned_exactly(sparsity):
    # tfmot keeps whatever is at or above its threshold: of equal weights, all of them, for ever.
    model = mlp(kernel_initializer="ones")
    kprune.prune(model, "magnitude", sparsity)
    flat = np.concatenate([w.kept().reshape(-1) for w in kprune.masked_weights(model)])
    kept = 276 - math.floor(sparsity * 276)
    np.testing.assert_array_equal(flat, np.arange(276) < kept)


def test_magnitude_keeps_the_largest_of_all_layers():
    model = mlp()
    values = np.concatenate([np.abs(layer.kernel.numpy()).reshape(-1) for layer in model.layers])
    kprune.prune(model, "magnitude", 0.75)
    flat = np.concatenate([w.kept().reshape(-1) for w in kprune.masked_weights(model)])
    assert values[flat].min() > values[~flat].max()


def test_everything_that_was_kept_has_its_value():
    model = trained()
    before = model.get_weights()
    masks = kprune.prune(model, "magnitude", 0.5)
    by_path = {w.path: w for w in kprune.masked_weights(model)}
    assert set(masks) == set(by_path) == {f"{model.name}/{name}/kernel" for name in ("hidden1", "hidden2", "logits")}
    kprune.strip(model)
    for v, old in zip(model.weights, before, strict=True):
        new = v.numpy()
        kept = masks.get(v.path, np.ones(v.shape, bool))
        np.testing.assert_array_equal(new, np.where(kept, old, 0), err_msg=v.path)


def test_only_what_the_filters_named_is_pruned():
    model = mlp()
    kprune.mask(model, filters="hidden")
    logits = model.get_layer("logits").kernel.numpy()
    masks = kprune.prune(model, "magnitude", 0.9)
    assert sorted(path.split("/")[-2] for path in masks) == ["hidden1", "hidden2"]
    assert zeros(model) == 216
    np.testing.assert_array_equal(model.get_layer("logits").kernel.numpy(), logits)


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_weights_of_low_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = mlp()
    kprune.prune(model, "magnitude", 0.9)
    assert zeros(model) == 248
    assert {w.value().dtype.name for w in kprune.masked_weights(model)} == {policy}
    kprune.prune(model, "random", 0.95)
    assert zeros(model) == 262
    assert_zero(model)


# Rounds and survivors


def test_pruning_again_prunes_survivors_only():
    model = mlp()
    half = kprune.prune(model, "magnitude", 0.5)
    more = kprune.prune(model, "random", 0.8)
    assert (zeros(model), size(model)) == (220, 276)
    for path in half:
        assert not np.any(more[path] & ~half[path])
    before = snapshot(model)
    less = kprune.prune(model, "magnitude", 0.3)
    assert_unchanged(model, before)
    for path in half:
        np.testing.assert_array_equal(less[path], more[path])


@pytest.mark.parametrize("scope", ["layerwise", with_floor("global", 4), with_floor("layerwise", 0.1)])
def test_a_pruned_weight_does_not_return_under_another_scope(scope):
    model = mlp()
    model.get_layer("hidden2").kernel.assign(model.get_layer("hidden2").kernel * 0.1)  # global spares the others
    first = kprune.prune(model, "magnitude", 0.6)
    second = kprune.prune(model, "magnitude", 0.7, scope=scope)
    for path in first:
        assert not np.any(second[path] & ~first[path])
    assert_zero(model)


def test_a_floor_that_pruned_weights_cannot_fill_does_not_cost_the_others():
    model = mlp()
    kprune.mask(model)
    first, *others = kprune.masked_weights(model)
    kprune.set_masks(model, {first.path: np.arange(96).reshape(8, 12) < 2, **{w.path: w.kept() for w in others}})
    kprune.prune(model, "magnitude", 0.75, scope=with_floor("global", 10))
    assert int(first.kept().sum()) == 2
    assert zeros(model) == 207


def test_rounds_follow_the_density_of_the_paper():
    seen = []

    def watching(context):
        seen.append(sum(int(mask.sum()) for mask in context.masks.values()))
        return {w.path: np.abs(w.value()) for w in context.weights}

    model = mlp()
    kprune.prune(model, watching, 0.9, rounds=4)
    # density .1^(r/4) after round r: .562, .316, .178
    assert seen == [276, *(276 - zeros_for(276, 1 - 0.1 ** (r / 4)) for r in (1, 2, 3))]
    assert seen == [276, 156, 88, 50]
    assert zeros(model) == 248


@pytest.mark.parametrize("rounds", [1, 2, 7, 100])
def test_rounds_do_not_matter_to_a_criterion_that_ignores_masks(rounds):
    masks = []
    for n in (1, rounds):
        keras.utils.set_random_seed(0)
        masks.append(kprune.prune(mlp(), "magnitude", 0.9, rounds=n))
    for one, other in zip(*(m.values() for m in masks), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_criterion_has_its_own_number_of_rounds():
    def five(context):
        return {w.path: w.value() for w in context.weights}

    five.default_rounds = 5
    assert [PruningConfig(criterion).rounds for criterion in ("magnitude", "random", "synflow", five)] == [1, 1, 100, 5]
    assert PruningConfig(five, rounds=2).rounds == 2
    calls = []

    def counting(context):
        calls.append(context.once("made", lambda: len(calls)))
        return five(context)

    counting.default_rounds = 3
    kprune.prune(mlp(), counting, 0.5)
    assert calls == [0, 0, 0]  # three rounds, `once` made once
    kprune.prune(mlp(), counting, 0.5)
    assert calls == [0, 0, 0, 3, 3, 3]  # and anew in the next pruning


# What is passed on


def test_a_criterion_of_ones_own():
    def smallest(context):
        assert context.seed == 7
        assert all(context.masks[w.path].all() for w in context.weights)
        return {w.path: -np.abs(w.value()) for w in context.weights}

    model = mlp()
    values = np.concatenate([np.abs(layer.kernel.numpy()).reshape(-1) for layer in model.layers])
    kprune.prune(model, smallest, 0.5, seed=7)
    flat = np.concatenate([w.kept().reshape(-1) for w in kprune.masked_weights(model)])
    assert flat.sum() == 138 and values[flat].max() < values[~flat].min()


def test_whole_numbers_are_scores_too():
    def index(context):
        return {w.path: np.arange(w.size).reshape(w.shape) for w in context.weights}

    model = mlp()
    kprune.prune(model, index, 0.5, scope="layerwise")
    kprune.prune(model, index, 0.75, scope="layerwise")
    for w in kprune.masked_weights(model):
        np.testing.assert_array_equal(w.kept().reshape(-1), np.arange(w.size) >= w.size * 3 // 4)


def test_scopes_and_patterns_of_ones_own():
    def first_layer_only(scores, sparsity):
        return {path: 0 if i == 0 else score.size for i, (path, score) in enumerate(scores.items())}

    def last_ones(score, n_keep):
        return np.arange(score.size).reshape(score.shape) >= score.size - n_keep

    model = mlp()
    kprune.prune(model, "magnitude", 0.5, scope=first_layer_only)
    assert [int(w.kept().sum()) for w in kprune.masked_weights(model)] == [0, 144, 36]
    model = mlp()
    kprune.prune(model, "magnitude", 0.5, scope="layerwise", pattern=last_ones)
    for w in kprune.masked_weights(model):
        np.testing.assert_array_equal(w.kept().reshape(-1), np.arange(w.size) >= w.size // 2)


def test_scores_of_pruned_weights_do_not_matter():
    def nan_where_pruned(context):
        return {w.path: np.where(context.masks[w.path], np.abs(w.value()), np.nan) for w in context.weights}

    model = mlp()
    kprune.prune(model, nan_where_pruned, 0.9, rounds=3)
    assert zeros(model) == 248


def test_the_slots_of_a_custom_loops_optimizer_are_reset():
    model = mlp()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    for v in optimizer.variables:
        if v.path.endswith("momentum"):
            v.assign(keras.ops.ones(v.shape))
    other = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(other, "mse")
    model.fit(*data(), verbose=0)
    compiled = [np.array(v.numpy()) for v in other.momentums]
    masks = kprune.prune(model, "magnitude", 0.5, optimizer=optimizer)
    for v, slot in zip(model.trainable_variables, optimizer.momentums, strict=True):
        kept = masks.get(v.path, np.ones(v.shape, bool))
        np.testing.assert_array_equal(slot.numpy(), kept.astype("float32"), err_msg=v.path)
    # The compiled one may take steps, too.
    for v, slot, old in zip(model.trainable_variables, other.momentums, compiled, strict=True):
        kept = masks.get(v.path, np.ones(v.shape, bool))
        np.testing.assert_array_equal(slot.numpy(), np.where(kept, old, 0))


def test_the_compiled_optimizer_is_the_default():
    model = trained()
    masks = kprune.prune(model, "magnitude", 0.5)
    adam = model.optimizer
    for slots in (adam._momentums, adam._velocities):
        for v, slot in zip(model.trainable_variables, slots, strict=True):
            kept = masks.get(v.path, np.ones(v.shape, bool))
            np.testing.assert_array_equal(slot.numpy()[~kept], 0.0)
    assert all(np.any(slot.numpy()) for slot in adam._velocities)


def test_training_goes_on_after_pruning():
    model = trained()
    for sparsity in (0.5, 0.8):
        kprune.prune(model, "synflow", sparsity, rounds=3)
        model.fit(*data(), batch_size=16, verbose=0)
        assert_zero(model)
        assert zeros(model) == zeros_for(276, sparsity)


# What is wrong leaves the model alone


def wrong_shape(context):
    return {w.path: np.abs(w.value())[:-1] for w in context.weights}


def wrong_shape_of_the_last(context):
    return {w.path: np.abs(w.value()).T for w in context.weights}  # hidden2 is square


def missing(context):
    return {w.path: np.abs(w.value()) for w in context.weights[:-1]}


def nothing(context):
    return None


def spoiled(context, position, value):
    """Magnitudes with another value at the first kept entry of one weight."""
    scores = {w.path: np.abs(w.value()) for w in context.weights}
    path = context.weights[position].path
    scores[path][tuple(np.argwhere(context.masks[path])[0])] = value
    return scores


def with_a_nan(context):
    return spoiled(context, 1, np.nan)


def with_an_infinity(context):
    return spoiled(context, 2, np.inf)


def minus_infinity(context):
    return spoiled(context, 0, -np.inf)


class OwnError(Exception):
    pass


def raising(context):
    raise OwnError("broken")


def raising_in_round_two(context):
    context.once("round", list).append(1)
    if len(context.once("round", list)) == 2:
        raise OwnError("broken")
    return {w.path: np.abs(w.value()) for w in context.weights}


def bad_scope(scores, sparsity):
    raise OwnError("broken")


def scope_of_too_few(scores, sparsity):
    return {path: 1 for path in list(scores)[1:]}


def negative_scope(scores, sparsity):
    return dict.fromkeys(scores, -1)


def pattern_of_another_shape(score, n_keep):
    return np.ones(score.size, bool)


def pattern_of_numbers(score, n_keep):
    return np.ones(score.shape)


KNOWN = {
    "criterion": "'lamp', .*'magnitude', .*'random', .*'synflow'",
    "scope": r"'global', 'layerwise'",
    "pattern": r"'unstructured'",
}
WRONG = {
    **{f"sparsity {s!r}": (dict(sparsity=s), f"Received: sparsity={s!r}") for s in (1.0, 1, -0.1, 1.5, "0.5", True)},
    "sparsity nan": (dict(sparsity=math.nan), "Received: sparsity=nan"),
    "sparsity None": (dict(sparsity=None), "Received: sparsity=None"),
    **{f"rounds {r!r}": (dict(rounds=r), f"Received: rounds={r!r}") for r in (0, -1, 2.5, "3", True)},
    **{f"seed {s!r}": (dict(seed=s), f"Received: seed={s!r}") for s in (-1, 0.5, "1", None)},
    **{f"{kind} name": ({kind: "nonesuch"}, f"Received: {kind}='nonesuch'") for kind in KNOWN},
    **{f"{kind} None": ({kind: None}, f"Received: {kind}=None") for kind in ("criterion", "pattern")},
    **{f"{kind} list": ({kind: ["global"]}, rf"Received: {kind}=\['global'\]") for kind in KNOWN},
    "wrong shape": (dict(criterion=wrong_shape), r"\(8, 12\).*Received: criterion='wrong_shape', shape=\(7, 12\)"),
    "transposed": (dict(criterion=wrong_shape_of_the_last), r"Received: criterion=.*, shape=\(12, 8\)"),
    "missing path": (dict(criterion=missing), r"logits/kernel.*Received: criterion='missing'"),
    "no scores": (dict(criterion=nothing), r"Received: criterion='nothing'"),
    "NaN": (dict(criterion=with_a_nan), r"hidden2/kernel.*Received: criterion='with_a_nan'"),
    "inf": (dict(criterion=with_an_infinity), r"logits/kernel.*Received: criterion='with_an_infinity'"),
    "-inf": (dict(criterion=minus_infinity), r"hidden1/kernel.*Received: criterion='minus_infinity'"),
    "pattern of another shape": (dict(pattern=pattern_of_another_shape), r"\(8, 12\)\. Received: .*shape=\(96,\)"),
    "pattern of numbers": (dict(pattern=pattern_of_numbers), r"Received: .*dtype=float64"),
    "no batches": (dict(batches=0), "Received: batches=0"),
    "batches in words": (dict(batches="a"), "Received: batches='a'"),
    "floor too high": (dict(scope=with_floor("global", 90)), "Received: floor=90"),
}
RAISING = {
    "criterion raises": (dict(criterion=raising), OwnError),
    "criterion raises in round two": (dict(criterion=raising_in_round_two, rounds=3), OwnError),
    "scope raises": (dict(scope=bad_scope), OwnError),
    "scope of too few": (dict(scope=scope_of_too_few), (KeyError, ValueError)),
    "negative scope": (dict(scope=negative_scope), ValueError),
}
START = dict(criterion="magnitude", sparsity=0.9)


@pytest.fixture(scope="module")
def models():
    """A model without masks, and one that is half pruned; whatever is wrong leaves them alone, so they serve all."""
    keras.utils.set_random_seed(0)
    masked = trained()
    kprune.prune(masked, "random", 0.5)
    masked.fit(*data(), batch_size=16, verbose=0)
    return {"plain": trained(), "masked": masked}


@pytest.mark.parametrize("which", ["plain", "masked"])
@pytest.mark.parametrize("case", [*WRONG, *RAISING])
def test_what_is_wrong_leaves_the_model_as_it_was(models, which, case):
    model = models[which]
    before = snapshot(model)
    arguments, expected = {**WRONG, **RAISING}[case]
    with pytest.raises(ValueError if case in WRONG else expected) as error:
        kprune.prune(model, **{**START, **arguments})
    if case in WRONG:
        assert re.search(f"{expected}[^\n]*$", str(error.value)), str(error.value)
    try:
        assert_unchanged(model, before)
        assert bool(kprune.masked_weights(model)) == (which == "masked")
        assert any(isinstance(layer, Masked) for layer in all_layers(model)) == (which == "masked")
    finally:
        if which == "plain" and kprune.masked_weights(model):  # leave a plain model to the other cases
            kprune.strip(model)


@pytest.mark.parametrize("kind", KNOWN)
def test_an_unknown_name_lists_the_right_ones(kind):
    with pytest.raises(ValueError, match=f"{KNOWN[kind]}.*Received: {kind}='nonesuch'$"):
        kprune.prune(mlp(), **{**START, kind: "nonesuch"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("criterion", ["magnitude", "synflow"])
def test_weights_that_are_not_finite_are_named(criterion, value):
    model = mlp()
    kernel = model.get_layer("hidden2").kernel
    kernel.assign(np.where(np.eye(12, dtype=bool), np.float32(value), kernel.numpy()))
    before = snapshot(model)
    # Through SynFlow's products a bad weight spoils the scores of every layer.
    named = "hidden2/kernel" if criterion == "magnitude" else "/kernel"
    with pytest.raises(ValueError, match=rf"{named} are infinite or NaN.*Received: "):
        kprune.prune(model, criterion, 0.5)
    assert_unchanged(model, before)
    assert kprune.masked_weights(model) == []


def test_models_that_cannot_be_pruned():
    with pytest.raises(ValueError, match=r"Received: model=.*unbuilt layers="):
        kprune.prune(keras.Sequential([layers.Dense(3)]), "magnitude", 0.5)
    for model in (keras.Sequential([keras.Input((4,)), layers.Activation("relu")]), mlp(trainable=False)):
        before = snapshot(model)
        with pytest.raises(ValueError, match=f"no weights that can be masked.*Received: model='{model.name}'$"):
            kprune.prune(model, "magnitude", 0.5)
        assert_unchanged(model, before)
    for thing in (None, "model", np.ones(3)):
        with pytest.raises(ValueError, match="Received: model="):
            kprune.prune(thing, "magnitude", 0.5)


@pytest.mark.slow
def test_compiled_functions_still_train_after_a_failure():
    model = trained(jit_compile=True)
    with pytest.raises(OwnError):
        kprune.prune(model, raising, 0.5)
    before = model.get_weights()
    model.fit(*data(), batch_size=16, verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True) if a.ndim == 2)
    kprune.prune(model, "magnitude", 0.5)
    model.fit(*data(), batch_size=16, verbose=0)
    assert_zero(model)


def test_a_sparsity_for_each_group_of_weights():
    model = mlp()
    masks = kprune.prune(model, "magnitude", {"hidden1": 0.25, "hidden": 0.75}, rounds=2)
    assert [int((~mask).sum()) for mask in masks.values()] == [24, 108, 0]  # of 96, 144 and 36
    masks = kprune.prune(model, "magnitude", {"logits|hidden1": 0.5})
    assert sum(int((~mask).sum()) for path, mask in masks.items() if "hidden2" not in path) == 66
    assert zeros(model) == 66 + 108


@pytest.mark.parametrize(
    ("sparsity", "received"),
    [
        ({"lstm": 0.5}, "sparsity='lstm'"),
        ({"hidden": 1.5}, r"sparsity\['hidden'\]=1.5"),
        ({"(": 0.5}, r"expression='\('"),
        ({5: 0.5}, "expression=5"),
        ({}, r"sparsity=\{\}"),
    ],
)
def test_a_group_that_cannot_be_pruned_is_refused_before_anything_changes(sparsity, received):
    model = mlp()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"Received: {received}$"):
        kprune.prune(model, "magnitude", sparsity)
    assert_unchanged(model, before)


def test_a_partial_of_a_criterion_keeps_its_rounds_and_its_name():
    plan = PruningConfig(functools.partial(kprune.criteria.synflow))
    assert (plan.rounds, plan.name) == (100, "synflow")
    assert PruningConfig(functools.partial(functools.partial(kprune.criteria.magnitude))).rounds == 1


@pytest.mark.once
def test_only_weights_that_are_pruned_completely_are_named(caplog):
    model = mlp()
    kprune.prune(model, "random", 0.5, scope="layerwise", verbose=0)
    assert "pruned completely" not in caplog.text
    model = mlp()
    first, *others = kprune.mask(model).masked
    share = kprune.masked_weights(model)[0].size / size(model)
    kprune.prune(
        model, lambda context: {w.path: np.full(w.shape, float(w.path != first)) for w in context.weights}, share
    )
    assert f"1 of {len(others) + 1} weights were pruned completely ({first})" in caplog.text
