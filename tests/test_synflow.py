"""SynFlow against the authors' own code, against its theory, and on networks that are hard for it."""

import functools
import itertools

import keras
import numpy as np
import pytest
from golden_networks import NAMES, build, load
from helpers import mlp
from keras import layers
from marks import with_slow

import kprune
from kprune.config import PruningConfig
from kprune.criteria import Context, synflow, synflow_l2
from kprune.data.batches import take_batches
from kprune.masks import mask_for_pruning


def scores_of(model, criterion=synflow, data=None):
    mask_for_pruning(model)
    weights = kprune.masked_weights(model)
    batches = [] if data is None else take_batches(data, None)
    return criterion(Context(model, weights, {w.path: w.kept() for w in weights}, data=batches))


def by_layer(arrays):
    """Keyed by the layer's name, as the golden data are."""
    return {path.split("/")[-2]: array for path, array in arrays.items()}


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_authors(name):
    golden = load(name)
    scores = by_layer(scores_of(build(golden, keras)))
    reference = golden.scores("synflow_r0")
    assert scores.keys() == reference.keys()
    for layer in reference:
        np.testing.assert_allclose(scores[layer], reference[layer], rtol=1e-5)


def two_paths():
    """A 1-2-1 network."""
    first, second = layers.Dense(2, "relu", use_bias=False), layers.Dense(1, "softmax", use_bias=False)
    model = keras.Sequential([keras.Input((1,)), first, second])
    first.set_weights([np.array([[2.0, -1.0]])])
    second.set_weights([np.array([[-3.0], [4.0]])])
    return model


@pytest.mark.parametrize(("criterion", "one", "other"), [(synflow, 6.0, 4.0), (synflow_l2, 36.0, 16.0)])
def test_hand_computed(criterion, one, other):
    """R = |2|*|3| + |-1|*|4| for the two paths, or that of the squares; each weight scores the flow through it."""
    scores = list(scores_of(two_paths(), criterion).values())
    np.testing.assert_array_equal(scores[0], [[one, other]])
    np.testing.assert_array_equal(scores[1], [[one], [other]])


def test_squares_of_biases_and_statistics_by_hand():
    """x -> 3 x - 2 -> (. - 5) * -2 / sqrt(v) + 7 -> 0.5 ., every number squared: v too."""
    first, norm, last = layers.Dense(1), layers.BatchNormalization(epsilon=1e-3), layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((1,)), first, norm, last])
    first.set_weights([np.array([[3.0]]), np.array([-2.0])])
    norm.set_weights([np.array([value]) for value in (-2.0, 7.0, -5.0, 1.5)])
    last.set_weights([np.array([[0.5]])])
    one, other = (float(score.squeeze()) for score in scores_of(model, synflow_l2).values())
    gain = 4 / np.sqrt(1.5**2 + 1e-3)
    assert one == pytest.approx(9 * gain * 0.25, rel=1e-6)
    assert other == pytest.approx(((9 + 4 - 25) * gain + 49) * 0.25, rel=1e-6)


def weighted_sum():
    """y = 1 * (2 a - 3 b)."""
    first, last = layers.Dense(1, use_bias=False), layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), first, last])
    model.compile("sgd", "mse")
    first.set_weights([np.array([[2.0], [-3.0]])])
    last.set_weights([np.array([[1.0]])])
    return model


X, Y = np.array([[-3.0, 1.0], [2.0, 1.0], [-2.0, -0.5]], "float32"), np.zeros((3, 1), "float32")  # of mean (-1, 0.5)


@pytest.mark.parametrize(("criterion", "expected"), [(synflow, [2.0, 1.5, 3.5]), (synflow_l2, [4.0, 4.5, 8.5])])
def test_the_absolute_mean_of_the_data_as_input_by_hand(criterion, expected):
    mean = functools.partial(criterion, inputs="mean")
    for data in ((X, Y), [(X[:1], Y[:1]), (X[1:], Y[1:])]):
        first, last = scores_of(weighted_sum(), mean, data).values()
        np.testing.assert_allclose([*first[:, 0], *last[:, 0]], expected, rtol=1e-6)


def test_a_partial_of_synflow_prunes_by_the_mean_of_the_data():
    mean, models = functools.partial(synflow, inputs="mean"), [weighted_sum() for _ in range(3)]
    kprune.prune(models[0], "synflow", 0.5)
    kprune.prune(models[1], mean, 0.5, data=(X, Y))
    models[2].fit(X, Y, verbose=0, callbacks=[kprune.callbacks.PruneAtInit(mean, 0.5, data=(X, Y))])
    kept = [[w.kept().ravel().tolist() for w in kprune.masked_weights(model)] for model in models]
    assert kept == [[[False, True], [True]], *2 * [[[True, False], [True]]]]


@pytest.mark.parametrize("inputs", ["mean", "zeros", None])
def test_inputs_that_are_not_there_are_refused(inputs):
    model = weighted_sum()
    with pytest.raises(ValueError, match=rf"or 'mean', and 'mean' requires `data`\. Received: inputs={inputs!r}$"):
        kprune.prune(model, functools.partial(synflow, inputs=inputs), 0.5)
    assert kprune.masked_weights(model) == []


def test_flow_is_conserved_from_layer_to_layer():
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for filters in (4, 6, 8):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D(2)(x)
    model = keras.Model(inputs, layers.Dense(5, use_bias=False)(layers.Flatten()(x)))
    scores = scores_of(model)
    totals = [score.sum() for score in scores.values()]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-12)
    # and from the inputs of a neuron to its outputs
    kernels = list(scores.values())
    np.testing.assert_allclose(kernels[0].sum(axis=(0, 1, 2)), kernels[1].sum(axis=(0, 1, 3)), rtol=1e-12)


def test_no_layer_collapses_before_the_budget_leaves_no_choice():
    """Maximal critical compression: as many weights as the widest chain of one weight per layer needs."""
    sizes = (8, 16, 16, 3)
    model = keras.Sequential([keras.Input((sizes[0],)), *(layers.Dense(n, "relu", use_bias=False) for n in sizes[1:])])
    total = sum(a * b for a, b in itertools.pairwise(sizes))
    masks = kprune.prune(model, "synflow", 1 - 3 / total, verbose=False)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


class MultipleBranches(keras.Model):
    """Subclassed, with a shortcut, dropout, and its own softmax layer."""

    def __init__(self):
        super().__init__()
        self.body = [layers.Dense(8, "gelu"), layers.Dense(8, "tanh")]
        self.drop, self.add, self.out = layers.Dropout(0.5), layers.Add(), layers.Dense(3, "softmax")

    def call(self, x, training=None):
        y = x
        for layer in self.body:
            y = layer(y)
        return self.out(self.drop(self.add([x, y]), training=training))


def test_activations_are_linearised_in_a_subclassed_model():
    model = MultipleBranches()
    model(np.zeros((1, 8), "float32"))
    scores = list(scores_of(model).values())
    kernels = [np.abs(w.value()).astype("float64") for w in kprune.masked_weights(model)]
    ones = np.ones((1, 8))
    hidden = ones @ kernels[0]
    joined = ones + hidden @ kernels[1]
    np.testing.assert_allclose(scores[2], joined.T * kernels[2], rtol=1e-6)
    np.testing.assert_allclose(scores[1], hidden.T * kernels[1] * kernels[2].sum(1), rtol=1e-6)


def test_a_gate_is_linearised_to_the_geometric_mean():
    inputs = keras.Input((2,))
    a = layers.Dense(1, "swish", use_bias=False, kernel_initializer="ones")(inputs)
    b = layers.Dense(1, "sigmoid", use_bias=False, kernel_initializer=keras.initializers.Constant(4.0))(inputs)
    model = keras.Model(inputs, layers.Multiply()([a, b]))
    one, other = scores_of(model).values()  # R = sqrt(2) * sqrt(8) = 4, half of it through each factor
    np.testing.assert_allclose(one, [[1.0], [1.0]])
    np.testing.assert_allclose(other, [[1.0], [1.0]])


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.LSTM(3), (4, 5)),
        (layers.LayerNormalization(), (6,)),
        (layers.Bidirectional(layers.GRU(3)), (4, 5)),
        (layers.Lambda(lambda x: x), (6,)),
        (layers.Embedding(5, 4), (6,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_that_cannot_be_linearised_is_named(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer, layers.Flatten(), layers.Dense(2)])
    before = [w.copy() for w in model.get_weights()]
    says = f"when its input and its biases double, .* Received: layer='.*', class={type(layer).__name__}$"
    with pytest.raises(ValueError, match=says):
        kprune.prune(model, "synflow", 0.5)
    assert kprune.masked_weights(model) == []
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_attention_is_named():
    inputs = keras.Input((4, 5))
    model = keras.Model(inputs, layers.Dense(2)(layers.MultiHeadAttention(2, 3)(inputs, inputs)))
    with pytest.raises(ValueError, match=r"class=MultiHeadAttention$"):
        kprune.prune(model, "synflow", 0.5)


def test_an_operation_that_cannot_be_seen_through_is_named():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(keras.ops.sin(inputs)))
    with pytest.raises(ValueError, match=r"Received: operation=Sin"):
        kprune.prune(model, "synflow", 0.5)


def test_a_layer_of_ones_own_is_taken_once_vouched_for():
    class Doubling(layers.Layer):
        def call(self, x):
            return 2 * x

    model = keras.Sequential([keras.Input((4,)), Doubling(), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"assume_homogeneous\(Doubling\)"):
        kprune.prune(model, "synflow", 0.5)
    kprune.criteria.assume_homogeneous(Doubling)
    assert sum(m.sum() for m in kprune.prune(model, "synflow", 0.5, verbose=False).values()) == 4


def test_zero_gammas_are_named():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="before"),
            layers.BatchNormalization(gamma_initializer="zeros", beta_initializer="ones"),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match=r"before/kernel are zero.*gamma"):
        kprune.prune(model, "synflow", 0.5)


@pytest.mark.private_api
def test_a_gain_beyond_float32_is_scored():
    block = [layers.Dense(4, kernel_initializer=keras.initializers.Constant(1e30)), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *block, layers.Dense(4, kernel_initializer="ones"), layers.ReLU()])
    model.layers[2].kernel.assign(np.full((4, 4), 1e30))
    scores = scores_of(model)
    gain = 4 * 4 * 4 * 1e30 * 1e30 / np.sqrt(1.001)
    for score in scores.values():
        assert score.sum() == pytest.approx(gain, rel=1e-6)


def test_weights_beyond_float64_are_refused_by_name():
    model = keras.Sequential(
        [keras.Input((4,)), *(layers.Dense(4, kernel_initializer=keras.initializers.Constant(1e38)) for _ in range(9))]
    )
    with pytest.raises(ValueError, match=r"dense.*/kernel are infinite or NaN"):
        kprune.prune(model, "synflow", 0.5)


@pytest.mark.parametrize(("scale", "depth"), [(1e-30, 10), (1e-37, 12)])
def test_a_gain_below_float64_is_not_blamed_on_a_missing_path(scale, depth):
    """R = 8 (8 * scale)^k of k layers: at 1e-290 the scores begin to lose their digits, then all are zero."""
    initializer = keras.initializers.Constant(scale)
    hidden = [layers.Dense(8, "relu", kernel_initializer=initializer) for _ in range(depth)]
    model = keras.Sequential([keras.Input((8,)), *hidden])
    with pytest.raises(ValueError, match=r"scores for .*dense.*/kernel are all 0: .* gain \(.*\) underflows float64"):
        kprune.prune(model, "synflow", 0.5, rounds=2)


@pytest.mark.private_api
def test_products_with_positive_constants_scale_the_scores():
    keras.utils.set_random_seed(0)
    inputs, dense = keras.Input((4,)), layers.Dense(3, use_bias=False)
    for scaled, gain in ((lambda x: x * 0.5, 0.5), (lambda x: 0.5 * x, 0.5), (lambda x: x / 4, 0.25)):
        (score,) = scores_of(keras.Model(inputs, scaled(dense(inputs)))).values()
        np.testing.assert_allclose(score, gain * np.abs(dense.kernel.numpy()), rtol=1e-6)
    for wrong in (lambda x: x * -0.5, lambda x: 4 / x, lambda x: x * x):
        with pytest.raises(ValueError, match=r"Received: operation=(Multiply|TrueDivide|Divide), name="):
            scores_of(keras.Model(inputs, wrong(layers.Dense(3)(inputs))))


def test_an_open_input_shape_is_refused():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.Conv1D(4, 3)(inputs))
    with pytest.raises(ValueError, match=r"unknown dimension.*Received: model=.*input_shape=\(None, None, 3\)"):
        kprune.prune(model, "synflow", 0.5)


def test_biases_are_warned_of(caplog):
    model = mlp()
    for layer in model.layers:
        layer.bias.assign(np.ones(layer.bias.shape))
    with caplog.at_level("WARNING", logger="absl"):
        kprune.prune(model, "synflow", 0.5, verbose=False)
    assert "3 biases are not zero" in caplog.text


def test_mixed_precision_models_score_as_float32_ones():
    keras.utils.set_random_seed(1)
    plain = scores_of(mlp())
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = scores_of(mlp())
    for a, b in zip(plain.values(), mixed.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_trace_serves_all_rounds():
    traces = []

    class Counting(layers.Dense):
        def call(self, x, training=None):
            traces.append(1)
            return super().call(x, training=training)

    model = keras.Sequential([keras.Input((8,)), Counting(6, "relu"), layers.Dense(3)])
    mask_for_pruning(model)
    traces.clear()
    PruningConfig("synflow", rounds=20).masks(model, 0.9)
    assert len(traces) == 1


SMALL = {"input_shape": (32, 32, 3)}
# One of each kind of block; the deep ones take as long as all other tests of this file.
NETWORKS, DEEP = ["conv-6", "resnet-20", "wide-resnet"], ["vgg-11", "vgg-19", "resnet-18", "resnet-50", "resnet-110"]
APPLICATIONS, DEEP_APPLICATIONS = ["MobileNetV2"], ["ResNet50", "VGG16", "EfficientNetB0"]


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("name", with_slow(NETWORKS, DEEP))
def test_reference_networks_of_each_kind_at_a_quarter_of_their_width(name):
    width = 1.0 if name == "wide-resnet" else 0.25
    extra = {"depth": 10} if name == "wide-resnet" else {}
    model = kprune.models.get(name)(**SMALL, width=width, **extra)
    masks = kprune.prune(model, "synflow", 0.8, rounds=10, verbose=False)
    # A shortcut carries less flow than its block and may be pruned to nothing, in the authors' code too (b3_short of
    # the golden ResNet-20); the block then carries everything.
    assert [path for path, mask in masks.items() if not mask.any() and "shortcut" not in path] == []


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("name", with_slow(APPLICATIONS, DEEP_APPLICATIONS))
def test_keras_applications(name):
    top = {"include_top": name != "VGG16", "classes": 10} if name != "VGG16" else {"include_top": False}
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), **top)
    scores = scores_of(model)
    for path, score in scores.items():
        assert np.isfinite(score).all() and score.any(), path


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="about JAX's devices")
def test_a_jax_without_the_cpu_is_an_error_that_names_the_variable(monkeypatch):
    import jax

    def absent(**_):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", absent)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    model = mlp()
    with pytest.raises(ValueError, match=r"set it to 'tpu,cpu' before.*JAX_PLATFORMS='tpu'"):
        kprune.prune(model, "synflow", sparsity=0.5, verbose=False)
    assert kprune.summary(model).zeros == 0
