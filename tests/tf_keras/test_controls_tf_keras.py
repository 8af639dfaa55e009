"""Controls on tf_keras models: the same functions, under tfmot's wrappers."""

import numpy as np
import tf_keras
from helpers import EachBatch, assert_zero, data, halve
from tf_keras import layers
from tfk_helpers import masked_mlp

import kprune
from kprune.controls import inverted, matched_epochs, reinitialize, shuffle_masks


def trains_on(model):
    """A further fit moves what is kept, and nothing that is pruned."""
    before, check = {w.path: w.value() for w in kprune.masked_weights(model)}, EachBatch(assert_zero)
    model.fit(*data(seed=1), batch_size=8, verbose=0, callbacks=[check])
    assert check.calls == 4
    # Not all: a relu that no input opens, or that has no way out, moves nothing.
    return all((w.value() != before[w.path])[w.kept()].mean() > 0.3 for w in kprune.masked_weights(model))


def slots(model):
    """The arrays that Adam remembers of each masked weight."""
    optimizer = model.optimizer
    positions = [optimizer._index_dict[optimizer._var_key(w.variable)] for w in kprune.masked_weights(model)]
    return [s[i].numpy() for i in positions for s in (optimizer._momentums, optimizer._velocities)]


def test_inverted_keeps_the_other_half():
    one, other = masked_mlp(half=False), masked_mlp(half=False)
    other.set_weights(one.get_weights())
    kept = kprune.prune(one, "magnitude", 0.5).values()
    for mask, opposite in zip(kept, kprune.prune(other, inverted("magnitude"), 0.5).values(), strict=True):
        np.testing.assert_array_equal(mask, ~opposite)


def test_shuffled_masks_on_the_initial_weights():
    model = masked_mlp("adam", half=False)
    initial = {w.path: w.value() for w in kprune.masked_weights(model)}
    model.fit(*data(), batch_size=8, verbose=0)
    before = kprune.prune(model, "magnitude", 0.7)
    model.fit(*data(), batch_size=8, verbose=0)
    masks = shuffle_masks(model, seed=1, values=initial)
    assert all(masks[path].sum() == mask.sum() for path, mask in before.items())
    assert any((masks[path] != mask).any() for path, mask in before.items())
    for w in kprune.masked_weights(model):
        np.testing.assert_array_equal(w.kept(), masks[w.path])
        np.testing.assert_array_equal(w.value(), np.where(masks[w.path], initial[w.path], 0))
    assert all((slot == 0).all() for slot in slots(model))
    assert trains_on(model)


def test_fresh_values_of_every_kind_of_layer():
    image = tf_keras.Input((6, 6, 3))
    x = layers.SeparableConv2D(4, 3, pointwise_initializer="he_normal")(image)
    x = layers.DepthwiseConv2D(2, depthwise_initializer=tf_keras.initializers.RandomUniform(2.0, 3.0), name="depth")(x)
    x = layers.PReLU()(layers.BatchNormalization()(layers.Conv2D(6, 2)(x)))
    x = layers.LSTM(5, return_sequences=True)(layers.Reshape((-1, 6))(x))
    x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.Dense(7)(layers.GRU(3)(layers.Dropout(0.5)(x)))
    model = kprune.mask(tf_keras.Model(image, x)).model
    rng, masked = np.random.default_rng(5), kprune.masked_weights(model)
    floats = [*model.trainable_weights, *(v for v in model.non_trainable_weights if "moving_" in v.name)]
    built = [v.numpy() for v in floats]

    def disturb():
        for v in floats:
            v.assign(rng.normal(5, 1, size=v.shape))
        halve(model)
        return [v.numpy() for v in floats], {w.path: w.kept() for w in masked}

    drawn = {id(w.variable): w for w in masked}
    assert len(drawn) >= 10
    for chosen in ("masked", "all"):
        before, kept = disturb()
        reinitialize(model, seed=4, weights=chosen)
        for v, start, old in zip(floats, built, before, strict=True):
            if id(v) in drawn:
                w = drawn[id(v)]
                np.testing.assert_array_equal(w.kept(), kept[w.path])
                for other in (start, old):
                    assert (w.value() != other)[w.kept()].all(), w.path
                assert (np.abs(w.value()) < 3).all(), w.path
            elif chosen == "masked":
                np.testing.assert_array_equal(v.numpy(), old, err_msg=v.name)
            elif "depthwise_kernel" not in v.name:
                np.testing.assert_array_equal(v.numpy(), start, err_msg=v.name)
        assert_zero(model)
    depth = next(v.numpy() for v in floats if v.name.startswith("depth/depthwise"))
    assert depth.min() >= 2 and depth.max() <= 3


def test_the_seed_decides_the_values_and_the_optimizer_forgets():
    model = masked_mlp("adam")
    model.fit(*data(), batch_size=8, verbose=0)
    assert all((slot != 0).any() for slot in slots(model))
    values = []
    for seed in (1, 1, 2):
        reinitialize(model, seed)
        values.append(np.concatenate([w.value()[w.kept()] for w in kprune.masked_weights(model)]))
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).all()
    assert all((slot == 0).all() for slot in slots(model))
    assert trains_on(model)


def test_signs_are_kept_and_magnitudes_drawn_or_constant():
    model = masked_mlp("adam")
    ticket = kprune.Ticket.of(model)
    model.fit(*data(), batch_size=8, verbose=0)
    reinitialize(model, seed=2)
    fresh = {w.path: w.value() for w in kprune.masked_weights(model)}
    for constant in (False, True):
        reinitialize(model, seed=2, signs=ticket.weights, constant=constant)
        for w in kprune.masked_weights(model):
            np.testing.assert_array_equal(np.sign(w.value()), np.sign(ticket.weights[w.path]))
            if constant:
                (alpha,) = np.unique(np.abs(w.value()[w.kept()]))
                # Glorot's uniform on (-limit, limit) has standard deviation limit / sqrt(3).
                assert abs(alpha - np.sqrt(2 / sum(w.shape))) < 0.06
            else:
                np.testing.assert_array_equal(np.abs(w.value()), np.abs(fresh[w.path]))
    assert all((slot == 0).all() for slot in slots(model))
    assert trains_on(model)


def test_matched_epochs_of_known_counts():
    model = masked_mlp(half=False)
    assert matched_epochs(model, 5) == 5
    kprune.prune(model, "magnitude", 2 / 3)
    assert matched_epochs(model, 5) == 15  # 276 multiply-adds, of which 92 are left
