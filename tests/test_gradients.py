"""Criteria that ask the loss, against the SynFlow authors' code, finite differences and sums done by hand."""

import functools
import importlib
import itertools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from golden_networks import NAMES, build, float64, load
from helpers import assert_finite_differences, data, mlp
from keras import layers, ops
from marks import with_slow
from test_prune import assert_unchanged, snapshot

import kprune
from kprune.config import PruningConfig
from kprune.criteria import Context, fisher, grasp, snip, taylor
from kprune.criteria.engines.derivatives import Gradients
from kprune.criteria.engines.precision import patched_attributes
from kprune.data.batches import balanced_sample, take_batches
from kprune.pruning import Pruner

CRITERIA = {"snip": snip, "grasp": grasp}
MODES = [(name, mode) for name in NAMES for mode in ("eval", "train") if (name, mode) != ("mlp3", "train")]
DEEP = ("resnet20_w8", "train")


@pytest.fixture(autouse=True)
def products_of_default_precision():
    """Scores must not depend on it; the rest of the tests may be run in another (`make test-gpu`)."""
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("default"):
            yield
    else:
        yield


def context_of(model, batch, **arguments):
    kprune.mask(model)
    weights = kprune.masked_weights(model)
    return Context(model, weights, {w.path: w.kept() for w in weights}, data=take_batches(batch, None), **arguments)


def golden_model(golden, softmax=False, library=keras):
    model = build(golden, library)
    if softmax:
        model = keras.Model(model.input, layers.Softmax()(model.output))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    model.compile("sgd", loss)
    return model


def assert_close(scores, golden, criterion, mode, tolerance):
    """The scores are the authors', up to this share of the largest."""
    reference = golden.scores(f"{criterion}_{mode}")
    assert [path.split("/")[-2] for path in scores] == list(reference)
    if criterion == "grasp":
        # The sum of the scores, by which they are divided, all but cancels: its rounding scales them all alike.
        scale, expected = (largest(found) for found in (scores, reference))
        assert scale == pytest.approx(expected, rel=1e-2 if (golden.meta["case"], mode) == DEEP else 1e-4)
        scores = {path: score * expected / scale for path, score in scores.items()}
    for score, expected in zip(scores.values(), reference.values(), strict=True):
        np.testing.assert_allclose(score, expected, rtol=0, atol=tolerance * largest(reference))


def largest(scores):
    return max(np.abs(score).max() for score in scores.values())


@pytest.mark.parametrize(("name", "mode"), [one for one in MODES if one != DEEP])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_equal_the_authors(criterion, name, mode):
    golden = load(name)
    scores = CRITERIA[criterion](context_of(golden_model(golden), (golden.x, golden.y)), training=mode == "train")
    # Their float32 is as far from float64 where the softmax saturates: 8e-5, 2.4e-5 (tests/golden/README.md).
    assert_close(scores, golden, criterion, mode, 1e-4 if name == "resnet20_w8" else 5e-6)


on_tensorflow = pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64 by default")


@on_tensorflow
@pytest.mark.parametrize("criterion", with_slow(["snip"], ["grasp"]))
def test_scores_of_a_deep_network_in_training_mode_equal_the_authors_in_float64(criterion):
    golden = load(DEEP[0])
    with float64():
        context = context_of(golden_model(golden), (golden.x, golden.y))
        assert context.dtype() == "float64"
        scores = CRITERIA[criterion](context, training=True)
    # What is left is the rounding of their float32: 9e-7, 2e-6, and 2e-4 in the sum of GraSP's.
    assert_close(scores, golden, criterion, "train", 3e-6)
    assert largest(scores) == pytest.approx(largest(golden.scores(f"{criterion}_train")), rel=1.7e-3)


@pytest.mark.parametrize("criterion", with_slow(["snip"], ["grasp"]))
def test_scores_of_a_deep_network_in_training_mode_in_float32(criterion):
    golden = load(DEEP[0])
    scores = CRITERIA[criterion](context_of(golden_model(golden), (golden.x, golden.y)), training=True)
    # 2e-6 on JAX. On TensorFlow one input of a ReLU, of 1.5 million, is -6e-7 where it is 1.8e-6 in float64: 4.4e-3,
    # and nothing else differs, as the next test shows.
    assert_close(scores, golden, criterion, "train", 5e-3)


class Side(layers.Layer):
    """A ReLU that is told which of its inputs are positive."""

    def __init__(self, positive, **kwargs):
        super().__init__(**kwargs)
        self.positive = positive

    def call(self, x):
        return x * ops.cast(self.positive[: x.shape[0]], x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


@on_tensorflow
def test_float32_is_off_by_the_side_of_a_relu_and_by_nothing_else():
    golden = load(DEEP[0])
    relus = {node["id"]: node["in"][0] for node in golden.meta["graph"] if node["op"] == "ReLU"}
    with float64():
        wide = build(golden, keras)
        inputs = keras.Model(wide.input, [wide.get_layer(name).output for name in relus.values()])
        positive = dict(zip(relus, (np.asarray(x) > 0 for x in inputs(golden.x, training=True)), strict=True))
    shim = SimpleNamespace(**{**vars(layers), "ReLU": lambda name: Side(positive[name], name=name)})
    model = golden_model(golden, library=SimpleNamespace(Input=keras.Input, Model=keras.Model, layers=shim))
    scores = grasp(context_of(model, (golden.x, golden.y)), training=True)
    assert_close(scores, golden, "grasp", "train", 1e-5)


def products_are_in_full():
    if keras.backend.backend() == "jax":
        import jax

        return jax.config.jax_default_matmul_precision == "highest"
    import tensorflow as tf

    return not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_products_are_in_full_precision_while_a_model_is_scored_and_only_then(criterion):
    seen, breaks = [], []

    class Watching(layers.Layer):
        def call(self, x):
            seen.append(products_are_in_full())
            if breaks and seen[-1]:
                raise RuntimeError("broken")
            return x

    model = keras.Sequential([keras.Input((8,)), layers.Dense(6), Watching(), layers.Dense(3)])
    model.compile("sgd", "mse")
    context = context_of(model, data())
    assert not products_are_in_full() and not any(seen)
    CRITERIA[criterion](context)
    assert seen[-1] and not products_are_in_full()
    breaks.append(True)
    with pytest.raises(RuntimeError, match="broken"):
        CRITERIA[criterion](context_of(model, data()))
    assert not products_are_in_full()


def test_a_loss_of_probabilities_gives_grasp_the_same_temperature():
    golden = load("mlp3")
    scores = [grasp(context_of(golden_model(golden, softmax), (golden.x, golden.y))) for softmax in (False, True)]
    for logits, probabilities in zip(*(list(s.values()) for s in scores), strict=True):
        np.testing.assert_allclose(probabilities, logits, rtol=1e-2, atol=1e-4 * np.abs(logits).max())


def test_the_hessian_product_is_that_of_finite_differences():
    model = mlp(activity_regularizer=None)
    model.compile("sgd", "mse")
    for w in model.trainable_variables:
        w.assign(np.random.default_rng(1).normal(size=w.shape))
    for layer in model.layers:
        layer.activation = keras.activations.tanh
    batch = (*data(), None)
    context = context_of(model, batch[:2])
    derivatives, values = Gradients(context), context.kept_values()
    vectors = [np.random.default_rng(2).normal(size=v.shape).astype("float32") for v in values]
    product = derivatives.curvature(values, vectors, batch)

    # In float64 by hand: tanh layers, mean squared error.
    biases = [layer.bias.numpy().astype("float64") for layer in model.layers]

    def gradient(kernels):
        hidden = [batch[0].astype("float64")]
        for kernel, bias in zip(kernels, biases, strict=True):
            hidden.append(np.tanh(hidden[-1] @ kernel + bias))
        back, found = 2 * (hidden[-1] - batch[1]) / batch[1].size, []
        for i in reversed(range(3)):
            back = back * (1 - hidden[i + 1] ** 2)
            found.insert(0, hidden[i].T @ back)
            back = back @ kernels[i].T
        return found

    step = 1e-5
    wide = [v.astype("float64") for v in values]
    up, down = (gradient([v + s * d for v, d in zip(wide, vectors, strict=True)]) for s in (step, -step))
    for found, high, low in zip(product, up, down, strict=True):
        np.testing.assert_allclose(found, (high - low) / (2 * step), rtol=1e-4, atol=1e-5)
    for found, expected in zip(derivatives.gradient(values, batch), gradient(wide), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@on_tensorflow
@pytest.mark.parametrize(
    "norm",
    [
        lambda: layers.BatchNormalization(),
        lambda: layers.LayerNormalization(),
        lambda: layers.LayerNormalization(axis=1),
        lambda: layers.GroupNormalization(2),
    ],
)
def test_the_hessian_product_sees_through_normalisation(norm):
    with float64():
        stack = [layers.Dense(12, "tanh"), layers.Reshape((3, 4)), norm(), layers.Flatten(), layers.Dense(3)]
        model = keras.Sequential([keras.Input((8,)), *stack])
        model.compile("sgd", "mse")
        for v in model.trainable_variables:
            v.assign(np.random.default_rng(1).normal(size=v.shape))
        assert_finite_differences(context_of(model, data()))


def linear():
    """y = x . w with w = (1, 2), under the squared error."""
    dense = layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.set_weights([np.array([[1.0], [2.0]])])
    model.compile("sgd", "mse")
    return model


X, Y = np.array([[3.0, 1.0], [1.0, -1.0]], "float32"), np.array([[0.0], [0.0]], "float32")
# Outputs 5 and -1; gradients of the squared errors by w: 10 * (3, 1) and -2 * (1, -1).


def test_by_hand():
    one_batch = context_of(linear(), (X, Y))
    [score] = snip(one_batch).values()  # mean gradient (14, 6), times w: 14, 12
    np.testing.assert_allclose(score[:, 0], [14 / 26, 12 / 26], rtol=1e-6)
    two = context_of(linear(), [(X[:1], Y[:1]), (X[1:], Y[1:])])
    [score] = snip(two).values()  # summed (28, 12)
    np.testing.assert_allclose(score[:, 0], [28 / 52, 24 / 52], rtol=1e-6)
    [score] = taylor(two).values()  # mean of |30|, |-2| and of |20|, |4|
    np.testing.assert_allclose(score[:, 0], [16, 12], rtol=1e-6)
    [score] = fisher(one_batch).values()  # 1 * (900 + 4) / 2 / 2, 4 * (100 + 4) / 2 / 2
    np.testing.assert_allclose(score[:, 0], [226, 104], rtol=1e-6)
    [score] = grasp(one_batch, temperature=1.0).values()  # H = (10, 2; 2, 2): H (14, 6) = (152, 40)
    np.testing.assert_allclose(score[:, 0], [152 / 232, 80 / 232], rtol=1e-6)


def test_grasp_counts_no_gradient_of_a_pruned_weight():
    dense = layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((3,)), dense])
    dense.set_weights([np.array([[0.5], [1.0], [1.0]])])
    model.compile("sgd", "mse")
    kprune.prune(model, "magnitude", 0.34)  # w = (pruned, 1, 1)
    x = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], "float32")
    [score] = grasp(context_of(model, (x, Y)), temperature=1.0).values()
    # H = x1 x1' + x2 x2', g = H w = (1, 1, 1), of which (0, 1, 1) counts: H g = (1, 1, 1); of all of g it is (2, 2, 1).
    np.testing.assert_allclose(score[:, 0], [0, 0.5, 0.5], rtol=1e-6)


@kprune.criteria.assume_homogeneous
class Noting(layers.Layer):
    """Updates a variable, and draws a random number, in inference too."""

    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(3)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + 0 * keras.random.uniform((), dtype=x.dtype, seed=self.seed)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "taylor", "fisher", "synflow"])
def test_what_a_layer_updates_in_inference_is_left_alone(criterion):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(6, "relu"), Noting(), layers.Dense(3)])
    model.compile("sgd", "mse")
    kprune.mask(model)
    before = snapshot(model)
    PruningConfig(criterion, rounds=2).masks(model, 0.5, data=data())
    assert_unchanged(model, before)


@pytest.mark.private_api
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_keras_promotes_dtypes_as_before(criterion, broken, monkeypatch):
    model = mlp()
    model.compile("sgd", "mse")
    table = importlib.import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE
    before = dict(table)
    plan = Pruner(PruningConfig(criterion, rounds=1), data())
    kprune.mask(model)
    if broken:
        monkeypatch.setattr(layers.Dense, "call", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plan.masks(model, 0.5)
    else:
        plan.masks(model, 0.5)
    assert table == before


def test_patches_are_taken_back_the_last_first():
    class Layer:
        kind = "of the class"

    layer = Layer()
    layer.name = "first"
    with pytest.raises(ZeroDivisionError), patched_attributes() as patch:
        for name in ("name", "kind"):
            patch(layer, name, "second")
            patch(layer, name, "third")
        assert vars(layer) == {"name": "third", "kind": "third"}
        raise ZeroDivisionError
    assert vars(layer) == {"name": "first"}


def test_force_lets_a_weight_return_and_snip_does_not():
    kept = {}
    for name in ("iterative_snip", "force"):
        seen = []

        def criterion(context, name=name, seen=seen):
            seen.append({path: mask.copy() for path, mask in context.masks.items()})
            return kprune.criteria.CRITERIA.get(name)(context)

        criterion.revives, criterion.needs = name == "force", ("data",)
        model = mlp()
        model.compile("sgd", "mse")
        masks = kprune.prune(model, criterion, 0.9, rounds=12, data=data())
        rounds = [np.concatenate([m.ravel() for m in m_of.values()]) for m_of in [*seen, masks]]
        kept[name] = any(np.any(b & ~a) for a, b in itertools.pairwise(rounds))
        assert sum(int(m.sum()) for m in masks.values()) == 276 - 248
    assert kept == {"iterative_snip": False, "force": True}


def test_force_never_revives_what_the_model_had_pruned():
    model = mlp()
    model.compile("sgd", "mse")
    before = kprune.prune(model, "random", 0.5)
    after = kprune.prune(model, "force", 0.8, rounds=10, data=data())
    assert not any(np.any(after[path] & ~before[path]) for path in after)


@pytest.mark.private_api
def test_a_model_that_was_never_trained_with_two_outputs():
    one = keras.Input((8,))
    x = layers.Dense(6, "relu")(one)
    model = keras.Model(one, [layers.Dense(3)(x), layers.Dense(1)(x)])
    model.compile("sgd", ["mse", "mae"], loss_weights=[1.0, 0.0])
    x, y = data()
    kprune.mask(model)
    before = snapshot(model)
    *_, ignored = snip(context_of(model, (x, [y, y[:, :1]]))).values()
    np.testing.assert_array_equal(ignored, 0.0)
    assert_unchanged(model, before)


def test_partial_arguments_and_kinds_of_data():
    tf = pytest.importorskip("tensorflow")
    x, y = data(n=300)
    sources = {
        "arrays": (x, y),
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(256),
        "generator": ((x[i : i + 256], y[i : i + 256]) for i in (0, 256)),
        "list": [(x[:256], y[:256])],
    }
    found = []
    for source in sources.values():
        model = mlp()
        keras.utils.set_random_seed(0)
        for v in model.trainable_variables:
            v.assign(np.random.default_rng(0).normal(size=v.shape))
        model.compile("sgd", "mse")
        found.append(list(kprune.prune(model, functools.partial(snip, training=True), 0.5, data=source).values()))
    for masks in found[1:]:
        for one, other in zip(masks, found[0], strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_is_missing_is_said_before_anything_changes():
    model = mlp()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"pass data=\(x, y\)\. Received: data=None$"):
        kprune.prune(model, "snip", 0.5)
    with pytest.raises(ValueError, match=r"cannot be used\. Received: model='.*'$"):
        kprune.prune(model, "snip", 0.5, data=data())
    with pytest.raises(
        ValueError, match=r"needs a tracker, InitialWeights, that records.*in `trackers`.*Received: trackers=None$"
    ):
        kprune.prune(model, "large_init", 0.5)
    for wrong, received in [
        ((np.ones(3),) * 4, "length=4"),
        ([], "data=list"),
        (3, "data=int"),
    ]:
        with pytest.raises(ValueError, match=f"Received: {received}$"):
            kprune.prune(model, "snip", 0.5, data=wrong)
    with pytest.raises(ValueError, match=r"Received: batches=0$"):
        kprune.prune(model, "snip", 0.5, data=data(), batches=0)
    assert_unchanged(model, before)
    model.compile("sgd", "mse")
    before = snapshot(model)
    for inputs_alone in (np.ones((2, 8)), (np.ones((2, 8)),), [(np.ones((2, 8)),)]):
        with pytest.raises(ValueError, match=r"compiled loss needs targets.*Received: y=None$"):
            kprune.prune(model, "snip", 0.5, data=inputs_alone)
    assert_unchanged(model, before)


def test_all_of_data_without_end_is_refused(monkeypatch):
    """Nothing may run forever and fill the memory: data that say that they repeat, and those that never end."""
    batch = (np.ones((4, 8)), np.ones((4, 2)))

    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index):
            return batch

    monkeypatch.setattr("kprune.data.batches.MOST_BATCHES", 5)
    endless = [Endless(), itertools.repeat(batch)]
    if keras.backend.backend() == "tensorflow":
        endless.append(importlib.import_module("tensorflow").data.Dataset.from_tensors(batch).repeat())
    for source in endless:
        with pytest.raises(ValueError, match=r"(how many|the number of).*Received: batches=None$"):
            take_batches(source, None)
        assert len(take_batches(source, 3)) == 3
    assert len(take_batches([batch] * 7, None)) == 7, "a list says how long it is"
    assert len(take_batches(itertools.repeat(batch, 5), None)) == 5
    monkeypatch.setattr("kprune.data.batches.MOST_BYTES", 2 * sum(part.nbytes for part in batch))
    assert len(take_batches(itertools.repeat(batch, 2), None)) == 2
    with pytest.raises(ValueError, match=r"exceeds.*Received: batches=None$"):
        take_batches(itertools.repeat(batch, 3), None)


class Reconstruction(keras.Model):
    """An autoencoder whose loss needs no targets; written before `compute_loss` had `training`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, x, y_pred, sample_weight) if self.loss else ops.mean(ops.square(y_pred - x))


class Penalty(layers.Layer):
    """Adds the mean of its squared inputs to the loss."""

    def call(self, x):
        self.add_loss(ops.mean(ops.square(x)))
        return x


@pytest.mark.parametrize(
    ("criterion", "loss"),
    [*((name, None) for name in ("snip", "grasp", "taylor", "fisher", "force")), ("snip", "mse"), ("grasp", "mse")],
)
def test_a_loss_of_the_models_own_needs_no_targets(criterion, loss):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    outputs = layers.Dense(3)(layers.Dense(4, "relu")(inputs))
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    own, given = Reconstruction(inputs, outputs), keras.Model(inputs, outputs)
    own.compile("sgd", loss)
    given.compile("sgd", "mse")
    kprune.mask(given)
    expected = PruningConfig(criterion).masks(given, 0.5, data=(x, x))
    # In what form the inputs are given is no criterion's business.
    for given_as in (x, (x,), [(x,)], [(x, None)]) if criterion == "snip" else ([(x,)],):
        found = PruningConfig(criterion).masks(own, 0.5, data=given_as)
        for path, mask in expected.items():
            np.testing.assert_array_equal(found[path], mask)


def test_a_loss_that_layers_add_is_the_loss():
    """dL/dw of mean((x w)^2) at x = (3, 1), w = (1, 2): 2 * 5 * x = (30, 10), so |w dL/dw| = (30, 20) / 50."""
    dense = layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense, Penalty()])
    dense.set_weights([np.array([[1.0], [2.0]])])
    model.compile("sgd")
    context = context_of(model, np.array([[3.0, 1.0]], "float32"))
    np.testing.assert_allclose(*map(list, (snip(context)[context.weights[0].path].ravel(), (0.6, 0.4))), rtol=1e-6)
    bare = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    bare.compile("sgd")
    with pytest.raises(ValueError, match=r"`compute_loss` or `add_loss`.*cannot be used\. Received: model='.*'$"):
        kprune.prune(bare, "snip", 0.5, data=np.ones((2, 2)))


class Keeping(keras.Model):
    """Its call keeps a tensor for its loss, which is twice the squared error and needs targets."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1, use_bias=False)
        self.dense.build((None, 2))
        self.built = True

    def call(self, inputs):
        self.kept = self.dense(inputs)
        return {"output": self.kept, "name": "not a tensor"} if self.loss is None else self.kept

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if self.loss is None:
            return 2 * ops.mean(ops.square(self.kept - y))
        return super().compute_loss(x, x[:, :1] * 0.0 if y is None else y, y_pred, sample_weight, training)


@pytest.mark.parametrize("how", ["compiled", "compiled, without targets", "own"])
def test_a_loss_may_read_what_the_call_keeps(how):
    """As test_by_hand: dL/dw of 2 (3 w1 + w2)^2 at (1, 2) is 4 * 5 * (3, 1)."""
    model, x, y = Keeping(), np.array([[3.0, 1.0]], "float32"), np.zeros((1, 1), "float32")
    model.dense.set_weights([np.array([[1.0], [2.0]])])
    loss = None if how == "own" else lambda y, p: ops.mean(ops.square(p - y) + ops.square(model.kept - y))
    model.compile("sgd", loss)
    context = context_of(model, (x,) if "without" in how else (x, y))
    (scores,) = kprune.criteria.gradient(context).values()
    np.testing.assert_allclose(scores, [[60.0], [20.0]], rtol=1e-6)


def test_a_convolution_may_have_its_own_idea_of_its_shape():
    class Vague(layers.Conv2D):
        def compute_output_shape(self, input_shape):
            return (None, None, None, self.filters)

    model = keras.Sequential([keras.Input((2, 2, 1)), Vague(2, 3, padding="same"), layers.GlobalAveragePooling2D()])
    model.compile("sgd", "mse")
    plain = keras.Sequential([keras.Input((2, 2, 1)), layers.Conv2D(2, 3, padding="same"), *model.layers[1:]])
    plain.set_weights(model.get_weights())
    plain.compile("sgd", "mse")
    batch = (np.random.default_rng(0).normal(size=(4, 2, 2, 1)).astype("float32"), np.ones((4, 2), "float32"))
    (scores,), (expected,) = (snip(context_of(one, batch)).values() for one in (model, plain))
    np.testing.assert_array_equal(scores, expected)


def test_balanced_sample():
    x, y = np.arange(10), np.array([0] * 6 + [1] * 3 + [2])
    drawn, classes = balanced_sample(x, y, per_class=2)
    assert classes.tolist() == [0, 0, 1, 1, 2] and (y[drawn] == classes).all() and len(set(drawn)) == 5
    one_hot = np.eye(3)[y]
    np.testing.assert_array_equal(balanced_sample(x, one_hot, per_class=2)[0], drawn)
    for wrong, received in (
        ((x, 5), "shapes="),
        ((x, y[:3]), "shapes="),
        ((x, y, 0), "per_class=0"),
        ((x, y, 1.5), "per"),
    ):
        with pytest.raises(ValueError, match=f"Received: {received}"):
            balanced_sample(*wrong)
    assert balanced_sample(x, y, 2, seed=1)[0].tolist() != drawn.tolist()


def test_parts_of_a_batch_may_differ_in_length_where_the_data_come_in_batches():
    """Nodes, edges and graphs of a graph network; Keras asks no more of a Dataset."""
    nodes, edges, graphs = np.ones((4, 2)), np.ones((7, 2)), np.ones(2)
    ((x, y, weight),) = take_batches([((nodes, edges), graphs)])
    assert (len(x[0]), len(x[1]), len(y), weight) == (4, 7, 2, None)
    with pytest.raises(ValueError, match=r"lengths=\[2, 4, 7\]"):
        take_batches(((nodes, edges), graphs))
