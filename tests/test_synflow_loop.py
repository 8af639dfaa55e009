"""SynFlow's rounds in one compiled loop, which a GPU under JAX runs, here on the CPU: the masks are the host's."""

import keras
import numpy as np
import pytest
from helpers import mlp
from keras import layers

import kprune
from kprune.config import PruningConfig
from kprune.criteria.engines import synflow_loop

pytestmark = pytest.mark.optimized

if keras.backend.backend() != "jax":
    pytest.skip("The loop is one of JAX.", allow_module_level=True)


def convolutional():
    """With max pooling, normalization, a stride and a shortcut."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(inputs)
    y = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(6, 3, padding="same", use_bias=False)(layers.MaxPooling2D(2)(y))
    y = layers.Add()([y, layers.Conv2D(6, 1, strides=2, use_bias=False)(x)])
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)))


@pytest.fixture
def looped(monkeypatch):
    """The numbers of rounds that a loop on the first CPU device did; the host's rounds are counted as nothing."""
    import jax

    rounds, run = [], synflow_loop.run_rounds

    def watched(flow, context, n_keep, device, advance):
        return run(flow, context, n_keep, device, lambda n: (rounds.append(n), advance(n)))

    monkeypatch.setattr(synflow_loop, "accelerator", lambda context: jax.local_devices(backend="cpu")[0])
    monkeypatch.setattr(synflow_loop, "run_rounds", watched)
    return rounds


@pytest.mark.parametrize("criterion", ["synflow", "synflow_l2"])
def test_masks_equal_those_of_the_host(looped, criterion):
    model = convolutional()
    kprune.prune(model, "random", 0.2)
    before = [v.numpy() for v in model.variables]
    masks = PruningConfig(criterion, rounds=23).masks(model, 0.9)
    assert looped == [10, 10, 3]
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    host = PruningConfig(criterion, scope=lambda *given: kprune.scopes.global_scope(*given), rounds=23).masks(
        model, 0.9
    )
    assert len(looped) == 3
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, host[path], path)


def test_a_sparser_model_is_left_as_it_is(looped):
    model = mlp()
    kprune.prune(model, "random", 0.8)
    before = {w.path: w.kept() for w in kprune.masked_weights(model)}
    after = kprune.prune(model, "synflow", 0.5, rounds=3, verbose=False)
    assert looped == [3]
    for path, mask in before.items():
        np.testing.assert_array_equal(mask, after[path])


@pytest.mark.parametrize(
    "options", [{"scope": "layerwise"}, {"pattern": "channel"}, {"scope": kprune.scopes.with_floor("global", 1)}]
)
def test_what_the_loop_cannot_do_goes_round_by_round(looped, options):
    model = mlp()
    masks = PruningConfig("synflow", rounds=3, **options).masks(model if kprune.mask(model) else None, 0.5)
    assert looped == [] and all(mask.any() for mask in masks.values())


def test_a_weight_that_scores_nothing_is_refused_as_on_the_host(looped):
    norm = layers.BatchNormalization(gamma_initializer="zeros", beta_initializer="ones")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="before"), norm, layers.Dense(2)])
    with pytest.raises(ValueError, match=r"before/kernel are zero.*gamma"):
        kprune.prune(model, "synflow", 0.5)
    assert looped == [] and kprune.masked_weights(model) == []


def test_a_gain_that_leaves_float64_is_refused_as_on_the_host(looped):
    huge = keras.initializers.Constant(1e38)
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4, kernel_initializer=huge) for _ in range(9))])
    with pytest.raises(ValueError, match=r"dense.*/kernel are infinite or NaN"):
        kprune.prune(model, "synflow", 0.5)
    assert looped == []


def test_the_devices_of_the_host_are_no_accelerator():
    model = mlp()
    kprune.mask(model)
    plain = synflow_loop.accelerator
    assert plain(kprune.criteria.Context(model, kprune.masked_weights(model), {})) is None
