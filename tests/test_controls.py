"""Controls: the least salient weights, shuffled masks, fresh values."""

import functools

import keras
import numpy as np
import pytest
from helpers import CHEAP, EachBatch, assert_zero, built, data, halve, mlp, steady
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from keras import layers
from test_prune import assert_unchanged, snapshot

import kprune
from kprune.config import PruningConfig
from kprune.controls import inverted, matched_epochs, reinitialize, shuffle_masks, shuffled

pytestmark = pytest.mark.one_session


def masks_of(model):
    return {w.path: w.kept() for w in kprune.masked_weights(model)}


def values_of(model):
    return {w.path: w.value() for w in kprune.masked_weights(model)}


def counts(masks):
    return {path: int(mask.sum()) for path, mask in masks.items()}


def slots(model):
    """path -> the arrays that Adam remembers of each masked weight."""
    positions = {v.path: i for i, v in enumerate(model.optimizer._trainable_variables)}
    return {
        w.path: [s[positions[w.path]].numpy() for s in (model.optimizer._momentums, model.optimizer._velocities)]
        for w in kprune.masked_weights(model)
    }


def fitted(half=True):
    """A masked mlp that Adam has trained for a few steps."""
    model = mlp()
    model.compile(keras.optimizers.Adam(0.01), "mse", **CHEAP)
    built(model)
    kprune.mask(model)
    if half:
        halve(model)
    model.fit(*data(), batch_size=8, verbose=0)
    return model


def trains_on(model):
    """A further fit moves all that is kept, and nothing that is pruned."""
    before, check = values_of(model), EachBatch(assert_zero)
    model.fit(*data(seed=1), batch_size=8, verbose=0, callbacks=[check])
    assert check.calls == 4
    # Not all: a relu that no input opens, or that has no way out, moves nothing.
    return all((w.value() != before[w.path])[w.kept()].mean() > 0.3 for w in kprune.masked_weights(model))


# inverted


def test_inverted_keeps_the_other_half():
    one, other = mlp(), mlp()
    kprune.mask(one)
    kprune.mask(other)
    other.set_weights(one.get_weights())
    kept = list(kprune.prune(one, "magnitude", 0.5).values())
    for mask, opposite in zip(kept, kprune.prune(other, inverted("magnitude"), 0.5).values(), strict=True):
        np.testing.assert_array_equal(mask, ~opposite)  # 276 weights of different sizes: no tie in the middle
    assert_zero(other)


def test_inverted_in_rounds_keeps_the_smallest_of_all():
    model = mlp()
    values = np.sort(np.concatenate([np.abs(layer.kernel.numpy()).reshape(-1) for layer in model.layers]))
    kprune.prune(model, inverted("magnitude"), 0.75, rounds=3)
    kept = np.concatenate([np.abs(w.value()[w.kept()]) for w in kprune.masked_weights(model)])
    np.testing.assert_array_equal(np.sort(kept), values[:69])


def test_inverted_takes_over_what_the_criterion_is_like():
    assert PruningConfig(inverted("synflow")).rounds == PruningConfig("synflow").rounds == 100
    assert PruningConfig(inverted("magnitude")).rounds == 1
    assert PruningConfig(inverted("synflow")).name == "inverted synflow"

    def mine(context, sign=1):
        return {w.path: np.arange(w.size).reshape(w.shape) * sign >= 2 for w in context.weights}

    mine.default_rounds = 7
    for criterion in (mine, functools.partial(mine, sign=1)):
        opposite = inverted(criterion)
        assert opposite.default_rounds == 7
        context = type("Context", (), {"weights": kprune.masked_weights(fitted())[2:]})
        (scores,) = opposite(context).values()
        assert scores.shape == (12, 3) and scores.reshape(-1)[:3].tolist() == [0.0, 0.0, -1.0]
        assert mine.__name__ == "mine" and "inverted" in opposite.__name__
    assert not any(name.startswith("inverted") for name in kprune.criteria.CRITERIA)


def test_inverted_twice_is_the_criterion():
    model = mlp()
    kprune.mask(model)
    kept = PruningConfig("magnitude").masks(model, 0.7)
    again = PruningConfig(inverted(inverted("magnitude"))).masks(model, 0.7)
    for path in kept:
        np.testing.assert_array_equal(kept[path], again[path])


@pytest.mark.parametrize("criterion", ["magnetude", 3, None], ids=repr)
def test_inverted_of_nothing_known(criterion):
    with pytest.raises(ValueError, match=f"Received: criterion={criterion!r}$"):
        inverted(criterion)


# shuffled

MASKS = st.lists(arrays(bool, array_shapes(min_dims=1, max_dims=4, max_side=5)), min_size=1, max_size=4).map(
    lambda found: {f"layer{i}/kernel": mask for i, mask in enumerate(found)}
)


@steady
@given(MASKS, st.integers(0, 2**40))
def test_shuffled_keeps_the_counts(masks, seed):
    copies = {path: mask.copy() for path, mask in masks.items()}
    new = shuffled(masks, seed)
    assert list(new) == list(masks) and counts(new) == counts(masks)
    again = shuffled(dict(list(masks.items())[:2]), seed)
    for path, mask in masks.items():
        assert new[path].shape == mask.shape and new[path].dtype == np.bool_
        np.testing.assert_array_equal(mask, copies[path])
        if path in again:  # and do not depend on the weights that come after
            np.testing.assert_array_equal(new[path], again[path])


def test_shuffled_gives_each_entry_the_same_chance():
    mask = {"a": np.arange(12).reshape(3, 4) < 3, "b": np.arange(12).reshape(3, 4) < 3}
    draws = [shuffled(mask, seed) for seed in range(600)]
    for path in mask:
        often = sum(draw[path].astype(int) for draw in draws)
        assert often.min() > 105 and often.max() < 195  # 150 expected, standard deviation 10.6
    assert sum(np.array_equal(draw["a"], draw["b"]) for draw in draws) < 20  # 1 of 220 expected
    assert len({draw["a"].tobytes() for draw in draws}) > 180  # of 220 that there are


# shuffle_masks


@pytest.mark.slow_on_jax
def test_shuffled_masks_on_the_initial_weights():
    model = mlp(units=40)
    model.compile(keras.optimizers.Adam(0.01), "mse", **CHEAP)
    built(model)
    kprune.mask(model)
    initial, biases = values_of(model), [layer.bias for layer in model.layers]
    model.fit(*data(), batch_size=8, verbose=0)
    before = kprune.prune(model, "magnitude", 0.8)
    model.fit(*data(), batch_size=8, verbose=0)
    trained = [bias.numpy() for bias in biases]
    masks = shuffle_masks(model, seed=1, values=initial)
    assert counts(masks) == counts(before) == counts(masks_of(model))
    overlap = sum(int((masks[path] & before[path]).sum()) for path in masks) / sum(counts(masks).values())
    assert overlap < 0.5  # by chance 0.2 or a little more, as the layers differ in density
    for w in kprune.masked_weights(model):
        np.testing.assert_array_equal(masks[w.path], w.kept())
        np.testing.assert_array_equal(w.value(), np.where(masks[w.path], initial[w.path], 0))
        assert all((slot == 0).all() for slot in slots(model)[w.path])
    for bias, value in zip(biases, trained, strict=True):
        np.testing.assert_array_equal(bias.numpy(), value)
    assert trains_on(model)


def test_shuffled_masks_without_values():
    model = fitted()
    before, old, state = values_of(model), masks_of(model), slots(model)
    assert all((slot[old[path]] != 0).any() for path, kinds in state.items() for slot in kinds)
    masks = shuffle_masks(model)
    for w in kprune.masked_weights(model):
        both = old[w.path] & masks[w.path]
        assert 0 < both.sum() < old[w.path].sum()
        np.testing.assert_array_equal(w.value(), np.where(both, before[w.path], 0))
        for new_slot, slot in zip(slots(model)[w.path], state[w.path], strict=True):
            np.testing.assert_array_equal(new_slot, np.where(both, slot, 0))
    assert trains_on(model)


def test_the_seed_decides_the_shuffle():
    model = fitted()
    start = masks_of(model)

    def drawn(seed):
        kprune.set_masks(model, start)
        return np.concatenate([mask.reshape(-1) for mask in shuffle_masks(model, seed).values()])

    np.testing.assert_array_equal(drawn(3), drawn(3))
    assert (drawn(3) != drawn(4)).any()


def test_a_bad_shuffle_changes_nothing():
    model = fitted()
    before, values = snapshot(model), values_of(model)
    first, *others = values
    for arguments, message in [
        (dict(seed=-1), "Received: seed=-1$"),
        (dict(seed=1.5), "Received: seed=1.5$"),
        (
            dict(values={path: values[path] for path in others}),
            r"exactly one array per masked weight.*Received: values=",
        ),
        (dict(values={**values, "z": values[first]}), r"Received: values=\[.*'z'\]$"),
        (dict(values=5), r"Received: values=5$"),
        (dict(values={**values, first: values[first].T}), r"has shape \(8, 12\). Received: shape=\(12, 8\)$"),
        (dict(values={**values, first: values[first].astype(str)}), r"must be a NumPy array of numbers. Received: "),
        (dict(values={**values, first: [1.0]}), r"has shape \(8, 12\). Received: shape=\(1,\)$"),
    ]:
        with pytest.raises(ValueError, match=message):
            shuffle_masks(model, **arguments)
        assert_unchanged(model, before)
    for control in (shuffle_masks, reinitialize):
        with pytest.raises(ValueError, match=r"has no masks: .* Received: model='plain'$"):
            control(keras.Sequential([keras.Input((2,)), layers.Dense(2)], name="plain"))


@pytest.mark.parametrize(
    "control",
    [
        lambda model: shuffle_masks(model, 1, values_of(model)),
        lambda model: reinitialize(model, 1, "all"),
        lambda model: reinitialize(model, 1, entries="pruned"),
    ],
)
def test_a_control_that_is_interrupted_changes_nothing(control, monkeypatch):
    model = fitted()
    before, done = snapshot(model), []

    def interrupted(*_):
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(kprune.controls, "reset_slots", interrupted)
    with pytest.raises(KeyboardInterrupt):
        control(model)
    assert_unchanged(model, before)


# reinitialize


def zoo():
    """Every way in which Keras's layers call a weight and its initializer."""
    image = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(4, 3, pointwise_initializer="he_normal")(image)
    x = layers.DepthwiseConv2D(3, depthwise_initializer=keras.initializers.RandomUniform(2.0, 3.0), name="depth")(x)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3)(x))
    x = layers.PReLU()(layers.GroupNormalization(2)(x))
    x = layers.LSTM(5, return_sequences=True, name="lstm")(layers.Reshape((-1, 6))(x))
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.Dropout(0.5)(x)
    x = layers.RNN(layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(3)]))(x)
    model = keras.Model(image, layers.Dense(7, name="logits")(x))
    kprune.mask(model, weights=("kernel", "recurrent_kernel", "pointwise_kernel", "depthwise_kernel"))
    return model


def disturb(model):
    """Other values in all weights but the masks and the seeds of dropout."""
    rng = np.random.default_rng(5)
    for v in model.weights:
        if v.dtype == "float32":
            v.assign(rng.normal(5, 1, size=v.shape))


@pytest.mark.slow_on_jax
def test_masked_weights_are_drawn_anew():
    model = zoo()
    disturb(model)
    halve(model)
    before, old = snapshot(model), masks_of(model)
    reinitialize(model, seed=4)
    drawn = {id(w.variable): w for w in kprune.masked_weights(model)}
    assert len(drawn) == 19
    for v, path, value in before["weights"]:
        if id(v) not in drawn:
            np.testing.assert_array_equal(v.numpy(), value, err_msg=path)
            continue
        w = drawn[id(v)]
        np.testing.assert_array_equal(w.kept(), old[w.path])
        assert (w.value()[w.kept()] != value[w.kept()]).all() and w.value().dtype == value.dtype
        assert (np.abs(w.value()[w.kept()]) < 3).all() and (w.value()[w.kept()] != 0).all()
    assert_zero(model)


def test_pruned_entries_come_back_with_the_values_of_a_fresh_draw():
    model = fitted()
    old, kept = values_of(model), masks_of(model)
    reinitialize(model, seed=4, entries="pruned")
    now = values_of(model)
    assert all(mask.all() for mask in masks_of(model).values())
    assert all(not slot.any() for found in slots(model).values() for slot in found)
    reinitialize(model, seed=4)  # of the network that is dense now
    fresh = values_of(model)
    for path, mask in kept.items():
        np.testing.assert_array_equal(now[path], np.where(mask, old[path], fresh[path]))
        assert 0 < mask.sum() < mask.size and (fresh[path] != old[path])[~mask].all()
    model.fit(*data(seed=1), batch_size=8, verbose=0)
    assert all((value != fresh[path]).any() for path, value in values_of(model).items())


@pytest.mark.slow_on_jax
def test_each_layers_own_initializer_draws():
    model = mlp(units=300)
    for layer, initializer in zip(
        model.layers, ["he_normal", "orthogonal", keras.initializers.RandomUniform(2, 3)], strict=True
    ):
        layer.kernel_initializer = keras.initializers.get(initializer)
    kprune.mask(model)
    reinitialize(model, seed=4)
    he, orthogonal, uniform = values_of(model).values()
    assert abs(he.std() / np.sqrt(2 / 8) - 1) < 0.05 and abs(he.mean()) < 0.05
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(300), atol=1e-4)
    assert uniform.min() >= 2 and uniform.max() <= 3 and abs(uniform.mean() - 2.5) < 0.05


@pytest.mark.slow_on_jax
def test_all_weights_are_drawn_anew():
    model = zoo()
    built = {w.path: w.numpy() for w in model.weights}
    disturb(model)
    halve(model)
    old = masks_of(model)
    reinitialize(model, seed=4, weights="all")
    kept = {id(w.variable): w.kept() for w in kprune.masked_weights(model)}
    plain = 0
    for v in model.weights:
        if id(v) in kept:
            assert (v.numpy() != built[v.path])[kept[id(v)]].all()
        elif "float" in v.dtype:
            # Biases (an LSTM's ones included), scales and statistics have constant initializers.
            np.testing.assert_array_equal(v.numpy(), built[v.path], err_msg=v.path)
            plain += 1
    assert plain == 22
    lstm = model.get_layer("lstm").cell.bias.numpy()
    np.testing.assert_array_equal(lstm, np.repeat([0, 1, 0, 0], 5))
    for path, mask in masks_of(model).items():
        np.testing.assert_array_equal(mask, old[path])
    assert_zero(model)


def test_all_leaves_frozen_layers_alone():
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, name="frozen"), layers.BatchNormalization(), layers.Dense(3)]
    )
    for layer in model.layers[:2]:
        layer.trainable = False
    kprune.mask(model)
    disturb(model)
    before = [v.numpy() for layer in model.layers[:2] for v in layer.weights]
    bias = model.layers[2].bias
    reinitialize(model, weights="all")
    for v, value in zip([v for layer in model.layers[:2] for v in layer.weights], before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)
    np.testing.assert_array_equal(bias.numpy(), 0)


def test_the_seed_decides_the_values():
    # One initializer with a seed of its own for all layers, as Keras warns against.
    shared = keras.initializers.GlorotUniform(seed=1)
    model = mlp(outputs=12, kernel_initializer=shared)
    kprune.mask(model)
    built = list(values_of(model).values())

    def drawn(seed):
        disturb(model)
        reinitialize(model, seed)
        return list(values_of(model).values())

    one, again, other = drawn(1), drawn(1), drawn(2)
    for a, b, c, start in zip(one, again, other, built, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).mean() > 0.99 and (a != start).mean() > 0.99
    assert one[1].shape == one[2].shape and (one[1] != one[2]).mean() > 0.99
    np.testing.assert_array_equal(built[1], built[2])


def test_the_optimizer_forgets_and_the_model_trains_on():
    model = fitted()
    biases = [layer.bias for layer in model.layers]
    positions = {v.path: i for i, v in enumerate(model.optimizer._trainable_variables)}
    momentum = model.optimizer._momentums[positions[biases[0].path]]
    remembered = momentum.numpy()
    assert (remembered != 0).any() and all((slot != 0).any() for kinds in slots(model).values() for slot in kinds)
    steps = int(model.optimizer.iterations)
    reinitialize(model)
    assert all((slot == 0).all() for kinds in slots(model).values() for slot in kinds)
    np.testing.assert_array_equal(momentum.numpy(), remembered)
    assert int(model.optimizer.iterations) == steps
    assert trains_on(model)
    reinitialize(model, weights="all")
    np.testing.assert_array_equal(momentum.numpy(), 0)
    assert trains_on(model)


@keras.saving.register_keras_serializable("kprune_tests")
class Own(layers.Layer):
    """A layer whose weight no attribute `kernel_initializer` can draw."""

    def __init__(self, initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.kernel_initializer = initializer

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 3))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


@pytest.mark.parametrize(
    "initializer", [None, lambda shape, dtype=None: keras.ops.ones(shape)], ids=["none", "function"]
)
def test_a_layer_without_an_initializer_is_named(initializer):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), Own(initializer, name="mine")])
    kprune.mask(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"Cannot reinitialize .*mine/kernel.*Received: layer='mine', initializer="):
        reinitialize(model)
    assert_unchanged(model, before)
    model.get_layer("mine").kernel_initializer = keras.initializers.Ones()
    reinitialize(model)
    np.testing.assert_array_equal(model.get_layer("mine").kernel.numpy(), 1)


def test_a_bad_reinitialization_changes_nothing():
    model = fitted()
    before = snapshot(model)
    for arguments, message in [
        (dict(seed=-1), "Received: seed=-1$"),
        (dict(seed=True), "Received: seed=True$"),
        (dict(weights="kernel"), "Received: weights='kernel'$"),
        (dict(entries="all"), "Received: entries='all', weights='masked'$"),
        (dict(entries="pruned", weights="all"), "Received: entries='pruned', weights='all'$"),
    ]:
        with pytest.raises(ValueError, match=message):
            reinitialize(model, **arguments)
        assert_unchanged(model, before)


# Signs


@keras.saving.register_keras_serializable("kprune_tests")
class Known(keras.initializers.Initializer):
    """3, -1, 3, -1 ...: mean 1, standard deviation 2."""

    def __call__(self, shape, dtype=None):
        return keras.ops.reshape(keras.ops.tile(keras.ops.array([3.0, -1.0], dtype), int(np.prod(shape)) // 2), shape)


def known():
    """A masked model with one weight of 2 x 4, of which (0, 2) and (1, 3) are pruned, and a bias."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(4, kernel_initializer=Known(), name="known")])
    model.compile("adam", "mse", **CHEAP)
    kprune.mask(model)
    (weight,) = kprune.masked_weights(model)
    kprune.set_masks(model, {weight.path: np.array([[True, True, False, True], [True, True, True, False]])})
    model.layers[0].bias.assign([1.0, 2.0, 3.0, 4.0])
    signs = {weight.path: np.array([[-0.1, -7.0, 5.0, 0.2], [0.3, 0.0, -1.0, 1.0]])}
    return model, weight, signs


@pytest.mark.parametrize(
    ("signs", "constant", "expected"),
    [
        (True, False, [[-3.0, -1.0, 0.0, 1.0], [3.0, 0.0, -3.0, 0.0]]),
        (True, True, [[-2.0, -2.0, 0.0, 2.0], [2.0, 0.0, -2.0, 0.0]]),
        (False, True, [[2.0, -2.0, 0.0, -2.0], [2.0, -2.0, 2.0, 0.0]]),
        (False, False, [[3.0, -1.0, 0.0, -1.0], [3.0, -1.0, 3.0, 0.0]]),
    ],
)
def test_signs_and_constants_by_hand(signs, constant, expected):
    model, weight, given_signs = known()
    mask, bias = weight.kept(), model.layers[0].bias.numpy()
    reinitialize(model, signs=given_signs if signs else None, constant=constant)
    np.testing.assert_array_equal(weight.value(), expected)
    np.testing.assert_array_equal(weight.kept(), mask)
    np.testing.assert_array_equal(model.layers[0].bias.numpy(), bias)
    reinitialize(model, weights="all", signs=given_signs if signs else None, constant=constant)
    np.testing.assert_array_equal(weight.value(), expected)
    np.testing.assert_array_equal(model.layers[0].bias.numpy(), 0)


def test_the_signs_of_a_ticket_and_the_magnitudes_of_a_fresh_draw():
    model = fitted()
    ticket = kprune.Ticket.of(model)
    reinitialize(model, seed=3)
    fresh = values_of(model)
    model.fit(*data(), batch_size=8, verbose=0)
    # A ticket finds the weights of a model whose layers have other names, by their order; so do its signs.
    renamed = {path.replace("hidden", "dense"): array for path, array in ticket.weights.items()}
    for signs in (ticket.weights, renamed):
        reinitialize(model, seed=3, signs=signs)
        assert all((slot == 0).all() for kinds in slots(model).values() for slot in kinds)
        for w in kprune.masked_weights(model):
            np.testing.assert_array_equal(np.abs(w.value()), np.abs(fresh[w.path]))
            np.testing.assert_array_equal(np.sign(w.value()), np.sign(ticket.weights[w.path]))
            assert (w.value() != fresh[w.path]).any()
    assert trains_on(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_signed_constants_in_half_precision(dtype):
    keras.config.set_dtype_policy(dtype)
    model = mlp(units=64, kernel_initializer=keras.initializers.RandomNormal(stddev=0.25))
    kprune.mask(model)
    halve(model)
    signs = values_of(model)
    reinitialize(model, signs=signs, constant=True)
    for w in kprune.masked_weights(model):
        assert w.value().dtype.name == dtype
        np.testing.assert_array_equal(np.sign(w.value()), np.sign(signs[w.path]))
        (alpha,) = np.unique(np.abs(w.value()[w.kept()]))
        assert float(alpha) == pytest.approx(0.25, rel=0.15)


def test_bad_signs_change_nothing():
    model, weight, signs = known()
    before = snapshot(model)
    for given_signs, message in [
        ([1.0], r"as ticket\.weights does\. Received: signs=\[1\.0\]$"),
        ({}, r"as ticket\.weights does.*0 arrays for 2 variables.*Received: .*signs=\[\]$"),
        ({weight.path: signs[weight.path].T}, r"has shape \(2, 4\). Received: shape=\(4, 2\), signs=\['"),
    ]:
        with pytest.raises(ValueError, match=message):
            reinitialize(model, signs=given_signs)
        assert_unchanged(model, before)
    model.layers[0].kernel_initializer = keras.initializers.Ones()
    with pytest.raises(ValueError, match=r"known/kernel draws the same value.*Received: constant=True$"):
        reinitialize(model, signs=signs, constant=True)
    assert_unchanged(model, before)
    reinitialize(model, signs=signs)
    np.testing.assert_array_equal(weight.value(), [[-1, -1, 0, 1], [1, 0, -1, 0]])


# Matched epochs


def test_matched_epochs_of_known_counts():
    # 8 * 10 multiply-adds, of which 60 stay; 10 * 3 without a mask, which count on both sides.
    model = keras.Sequential([keras.Input((8,)), layers.Dense(10, name="hidden"), layers.Dense(3, name="logits")])
    kprune.mask(model, filters="hidden")
    assert matched_epochs(model, 7) == 7
    (weight,) = kprune.masked_weights(model)
    kprune.set_masks(model, {weight.path: np.arange(80).reshape(8, 10) < 60})
    assert [matched_epochs(model, epochs) for epochs in (1, 4, 9, 90)] == [1, 4, 11, 110]  # times 110 / 90
    kprune.set_masks(model, {weight.path: np.zeros((8, 10), bool)})
    assert matched_epochs(model, 3) == 11  # 3 * 110 / 30


def test_matched_epochs_count_uses_not_weights():
    # 6 * 6 pixels use each of the 9 * 4 weights of the one layer, only one pixel those of the other.
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(9, name="dense")(layers.GlobalAveragePooling2D()(x)))
    kprune.mask(model)
    conv, dense = kprune.masked_weights(model)
    kprune.set_masks(model, {dense.path: np.zeros(dense.shape, bool)})
    assert matched_epochs(model, 36) == 37  # * (36 * 36 + 36) / (36 * 36)
    kprune.set_masks(model, {dense.path: np.ones(dense.shape, bool), conv.path: np.zeros(conv.shape, bool)})
    assert matched_epochs(model, 1) == 37


def test_no_matched_epochs():
    model = mlp()
    with pytest.raises(ValueError, match=r"no masks.*Received: model="):
        matched_epochs(model, 2)
    kprune.mask(model)
    for epochs in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"Received: epochs={epochs}$"):
            matched_epochs(model, epochs)
    kprune.set_masks(model, {w.path: np.zeros(w.shape, bool) for w in kprune.masked_weights(model)})
    with pytest.raises(ValueError, match=r"no multiply-adds remain\. Received: .*effective_flops=0, other_flops=0$"):
        matched_epochs(model, 2)
    images = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3)])
    kprune.mask(images)
    with pytest.raises(
        ValueError,
        match=r"multiply-adds are unknown\. Cause: .*[^ .]\. Received: model=[^=]*, input_shape=[^=]*, epochs=2$",
    ):
        matched_epochs(images, 2)
