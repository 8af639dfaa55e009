"""Shrink: small networks whose channels are counted by hand, what must stay, what is refused."""

import keras
import numpy as np
import pytest
from helpers import halve, mlp
from keras import layers

import kprune


def values(model, *, zero=()):
    """Random values for all weights, and zeros where {weight's path: index} says."""
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.uniform(0.5, 1.5, v.shape) if "variance" in v.path else rng.normal(size=v.shape))
    for path, index in dict(zero).items():
        [v] = [v for v in model.weights if f"/{v.path}".endswith(f"/{path}")]
        value = np.array(v)
        value[index] = 0
        v.assign(value)
    return model


def given_weights(model, *weights):
    model.set_weights([np.array(w, "float32") for w in weights])


def functional(inputs, *steps):
    x = given = keras.Input(inputs)
    for step in steps:
        x = step(x)
    return keras.Model(given, x)


def agree(model, small, shape, tolerance=1e-5):
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype("float32")
    expected, actual = (np.array(m(x, training=False)) for m in (model, small))
    assert np.abs(expected - actual).max() <= tolerance * np.abs(expected).max()


OUT, IN = (..., [1, 3]), ([1, 3],)  # channels 1 and 3 of a kernel's last axis; of a dense kernel's first


def test_a_channel_that_nothing_reads_goes():
    model = functional((4,), layers.Dense(6, "relu", name="a"), layers.Dense(3, name="b"))
    small = kprune.shrink(values(model, zero={"b/kernel": IN}))
    assert small.get_layer("a").units == 4
    a, b = model.get_layer("a"), small.get_layer("a")
    np.testing.assert_array_equal(np.array(b.kernel), np.array(a.kernel)[:, [0, 2, 4, 5]])
    agree(model, small, (4,))


def test_a_constant_goes_into_the_next_bias():
    model = functional((2,), layers.Dense(2, "relu", name="a"), layers.Dense(1, name="b"))
    given_weights(model, [[1, 0], [1, 0]], [0, 3], [[2], [5]], [1])
    small = kprune.shrink(model)
    assert [w.tolist() for w in small.get_weights()] == [[[1], [1]], [0], [[2]], [16]]  # 1 + 5 * relu(3)


def test_a_bias_is_made_where_there_is_none():
    model = functional((2,), layers.Dense(2, name="a"), layers.Dense(1, use_bias=False, name="b"))
    given_weights(model, [[1, 0], [1, 0]], [0, 3], [[2], [5]])
    small = kprune.shrink(model)
    assert small.get_layer("b").use_bias
    assert [w.tolist() for w in small.get_weights()] == [[[1], [1]], [0], [[2]], [15]]


@pytest.mark.slow_on_jax
def test_constants_before_zero_padding_become_one():
    steps = layers.Conv2D(6, 3, name="a"), layers.BatchNormalization(), layers.Conv2D(3, 3, padding="same", name="b")
    model = values(functional((6, 6, 2), *steps, layers.GlobalAveragePooling2D()), zero={"a/kernel": OUT})
    small = kprune.shrink(model)
    assert small.get_layer("a").filters == 5  # one of the two constants stands for both
    agree(model, small, (6, 6, 2))


@pytest.mark.slow_on_jax
def test_constants_fold_where_nothing_pads():
    steps = layers.Conv2D(6, 3, name="a"), layers.BatchNormalization(), layers.Conv2D(3, 3, name="b")
    model = values(functional((6, 6, 2), *steps, layers.Flatten(), layers.Dense(2)), zero={"a/kernel": OUT})
    small = kprune.shrink(model)
    assert small.get_layer("a").filters == 4
    agree(model, small, (6, 6, 2))


def test_flatten_leads_a_channel_to_all_its_positions():
    steps = layers.Conv2D(4, 3, activation="relu", name="a"), layers.Flatten(), layers.Dense(3, name="b")
    model = values(functional((4, 4, 2), *steps), zero={"a/kernel": OUT})
    small = kprune.shrink(model)
    assert small.get_layer("a").filters == 2 and small.get_layer("b").kernel.shape == (8, 3)
    agree(model, small, (4, 4, 2))


def residual():
    given = keras.Input((4,))
    x = layers.Dense(6, name="a")(given)
    y = layers.Dense(6, name="b")(x)
    return keras.Model(given, layers.Dense(2, name="c")(layers.Add()([x, y])))


def test_partners_of_an_addition_go_together():
    small = kprune.shrink(values(residual(), zero={"b/kernel": OUT, "b/bias": ([1, 3],)}))
    assert small.get_layer("a").units == 6  # the other partner lives
    model = values(residual(), zero={"b/kernel": IN, "c/kernel": IN})
    small = kprune.shrink(model)
    assert small.get_layer("a").units == small.get_layer("b").units == 4
    agree(model, small, (4,))


@pytest.mark.slow_on_jax
def test_a_depthwise_convolution_follows():
    steps = [layers.Conv2D(4, 1, name="a"), layers.DepthwiseConv2D(3, depth_multiplier=2, name="d")]
    model = functional((5, 5, 2), *steps, layers.Conv2D(3, 1, name="b"))
    values(model, zero={"b/kernel": (slice(None), slice(None), [2, 3, 4])})  # of channels 1 (both) and 2 (one of two)
    small = kprune.shrink(model)
    assert small.get_layer("a").filters == 3 and small.get_layer("d").kernel.shape == (3, 3, 3, 2)
    agree(model, small, (5, 5, 2))


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_units_of_a_recurrent_layer_go_only_where_nothing_reads_them(kind):
    model = functional((5, 3), kind(4, name="r"), layers.Dense(2, name="b"))
    kernel, recurrent, *_ = (v.path for v in model.weights)
    values(model, zero={kernel: ...})
    assert kprune.shrink(model).get_layer("r").units == 4  # no input, yet its state evolves
    values(model, zero={"b/kernel": IN, recurrent: IN})
    small = kprune.shrink(model)
    assert small.get_layer("r").units == 2
    agree(model, small, (5, 3))


@pytest.mark.slow_on_jax
def test_heads_that_nothing_reads_go():
    given = keras.Input((5, 6))
    model = keras.Model(given, layers.MultiHeadAttention(3, 2, name="m")(given, given))
    values(model, zero={"attention_output/kernel": ([1],)})
    small = kprune.shrink(model)
    assert small.get_layer("m").num_heads == 2
    agree(model, small, (5, 6))


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(
    "barrier",
    [layers.LayerNormalization, layers.Softmax, lambda: layers.GroupNormalization(2), layers.UnitNormalization],
)
def test_a_layer_that_looks_across_channels_keeps_them(barrier):
    model = functional((4,), layers.Dense(6, name="a"), barrier(), layers.Dense(3, name="b"))
    values(model, zero={"a/kernel": OUT, "b/kernel": IN})
    assert kprune.shrink(model).get_layer("a").units == 6


def test_a_softmax_inside_a_layer_keeps_its_channels():
    model = functional((4,), layers.Dense(6, "softmax", name="a"), layers.Dense(3, name="b"))
    assert kprune.shrink(values(model, zero={"b/kernel": IN})).get_layer("a").units == 6


def test_operations_on_tensors_and_numbers():
    given = keras.Input((4,))
    x = layers.Dense(6, name="a")(given)
    x = x * keras.ops.relu(x + 3.0)
    model = keras.Model(given, layers.Dense(2, name="b")(x))
    small = kprune.shrink(values(model, zero={"b/kernel": IN}))
    assert small.get_layer("a").units == 4
    agree(model, small, (4,))
    # 0 + 3 is no dead channel, and the product of both is 0.
    values(model, zero={"a/kernel": OUT, "a/bias": ([1, 3],)})
    assert kprune.shrink(model).get_layer("a").units == 4


def test_inputs_and_outputs_stay():
    model = functional((4,), layers.Dense(3, name="a"))
    assert kprune.shrink(values(model, zero={"a/kernel": ...})).get_layer("a").kernel.shape == (4, 3)


def test_nested_and_shared_models():
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, "relu", name="i"), layers.Dense(6, name="o")], name="in"
    )
    given = keras.Input((4,))
    first = inner(layers.Dense(6, name="a")(given))
    model = keras.Model(given, layers.Dense(2, name="b")(layers.Concatenate()([first, inner(first)])))
    # Unit 1 of "i" is read by nothing; channel 3 of "a" and "o" neither: the second call's are columns 6 to 11.
    zero = {"o/kernel": ([1],), "i/kernel": ([3],), "b/kernel": ([3, 9],)}
    small = kprune.shrink(values(model, zero=zero))
    assert (small.get_layer("a").units, *(layer.units for layer in small.get_layer("in").layers)) == (5, 5, 5)
    agree(model, small, (4,))


def test_a_dead_layer_keeps_a_channel():
    model = functional((4,), layers.Dense(6, name="a"), layers.Dense(6, name="b"), layers.Dense(2, name="c"))
    small = kprune.shrink(values(model, zero={"b/kernel": ...}))
    assert small.get_layer("a").units == small.get_layer("b").units == 1
    agree(model, small, (4,))


def test_the_channel_that_a_dead_layer_keeps_is_still_right():
    steps = layers.Dense(2, name="a"), layers.EinsumDense("abd,de->abe", (3, 2), name="b"), layers.Dense(1, name="c")
    model = functional((3, 2), *steps)
    given_weights(model, np.zeros((2, 2)), [3, 1], [[2, 1], [4, 1]], [[1], [1]], [0])
    small = kprune.shrink(model)
    # All is constant: b makes 10 and 4, of which c takes the 4 into its bias; b has none for what a makes.
    assert [w.tolist() for w in small.get_weights()] == [[[0], [0]], [3], [[pytest.approx(10 / 3)]], [[1]], [4]]
    agree(model, small, (3, 2))


def test_counts_in_multiples():
    model = functional((4,), layers.Dense(13, name="a"), layers.Dense(2, name="b"))
    values(model, zero={"b/kernel": ([0, 1, 2, 3, 4, 5, 6, 7],)})
    assert [kprune.shrink(model, divisible_by=d).get_layer("a").units for d in (1, 4, 6, 8, 16)] == [5, 8, 6, 8, 13]


def test_masks_stay_with_what_stays():
    model = mlp()
    kprune.mask(model)
    columns = np.arange(12) % 3 > 0
    first, second, _ = (w.path for w in kprune.masked_weights(model))
    kprune.set_masks(model, {first: np.broadcast_to(columns, (8, 12)), second: np.arange(144).reshape(12, 12) % 5 > 0})
    small = kprune.shrink(model)
    before, after = (kprune.masked_weights(m) for m in (model, small))
    assert [w.shape for w in after] == [(8, 8), (8, 12), (12, 3)]
    np.testing.assert_array_equal(after[1].kept(), before[1].kept()[columns])
    assert kprune.masked_weights(kprune.shrink(model, keep_masks=False)) == []
    assert type(kprune.shrink(model, keep_masks=False).layers[0]) is layers.Dense


def test_the_model_stays_as_it_is():
    model = mlp()
    kprune.mask(model)
    halve(model)
    before, masks = model.get_weights(), [w.kept() for w in kprune.masked_weights(model)]
    kprune.shrink(model)
    for one, other in zip(
        [*before, *masks], [*model.get_weights(), *(w.kept() for w in kprune.masked_weights(model))], strict=True
    ):
        np.testing.assert_array_equal(one, other)


class Subclassed(keras.Model):
    """`use`, a function of the model and of its inputs, comes between its layers."""

    def __init__(self, use):
        super().__init__()
        self.a, self.norm, self.b = layers.Dense(6, name="a"), layers.BatchNormalization(), layers.Dense(3, name="b")
        self.use = use

    def call(self, inputs, training=False):
        x = self.norm(self.a(inputs), training=training)
        return self.b(self.use(self, keras.ops.relu(x)))


@pytest.mark.parametrize("masked", [False, True])
def test_a_subclassed_model_is_followed_through_its_call(masked):
    model = Subclassed(lambda self, x: x)
    model(np.zeros((1, 4), "float32"))
    values(model, zero={"b/kernel": IN})
    if masked:
        kprune.prune(model, "magnitude", 0.5, groups="channels", verbose=0)
    small = kprune.shrink(model)
    assert small.get_layer("a").units == (3 if masked else 4)
    agree(model, small, (4,))
    small.compile("sgd", "mse")
    before = np.array(small.get_layer("batch_normalization").moving_mean)
    small.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    assert not np.array_equal(before, np.array(small.get_layer("batch_normalization").moving_mean))


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda self, x: x if float(keras.ops.sum(x)) > 0 else -x, "without an input shape"),
        (lambda self, x: x * self.a.bias, "(`call` raises TypeError|uses a tensor or variable)"),
        (lambda self, x: self.norm(x, training=False), "is called with a fixed `training`"),
        (lambda self, x: [x[:, :n] for n in range(7)][6 if x.shape[0] else 5], "`call` raises ValueError"),
    ],
    ids=[
        "a choice by value",
        "a weight outside of its layer",
        "a layer that never trains",
        "a choice by the size of the batch",
    ],
)
def test_a_call_that_cannot_be_followed_is_refused(use, reason):
    model = Subclassed(use)
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match=rf"subclassed.*{reason}.*class=Subclassed"):
        kprune.prune(model, "magnitude", 0.5, groups="channels")
    assert kprune.masked_weights(model) == []


def test_a_flag_of_a_subclassed_model_is_asked_again():
    model = Subclassed(lambda self, x: keras.ops.softmax(x) if self.skip else x)
    model.skip = False
    model(np.zeros((1, 4), "float32"))
    values(model, zero={"b/kernel": IN})
    assert kprune.shrink(model).get_layer("a").units == 4
    model.skip = True
    assert kprune.shrink(model).get_layer("a").units == 6  # what softmax reads stays


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_a_subclassed_model_keeps_its_precision(policy):
    class Residual(keras.Model):
        def __init__(self):
            super().__init__(dtype=policy)
            self.a, self.b = (layers.Dense(n, name=name, dtype=policy) for n, name in ((6, "a"), (3, "b")))

        def call(self, x):
            return self.b(keras.ops.relu(self.a(x)) + keras.ops.sum(x, -1, keepdims=True))

    model = Residual()
    model(np.zeros((1, 4), "float32"))
    values(model, zero={"b/kernel": IN})
    kprune.shrink(model)


def test_what_a_subclassed_model_looks_up_is_not_rounded():
    class Words(keras.Model):
        def __init__(self):
            super().__init__(dtype="mixed_float16")
            self.table, self.a, self.b = layers.Embedding(5000, 4), layers.Dense(6, "relu"), layers.Dense(2)

        def call(self, x):
            return self.b(self.a(self.table(x)))

    model = Words()
    model(np.zeros((1, 3), "int32"))
    small = kprune.shrink(values(model, zero={"dense_1/kernel": IN}), inputs=np.array([[4999, 4097, 2049]]))
    assert small.layers[-2].units == 4


def test_what_is_not_built_is_refused():
    with pytest.raises(ValueError, match="build it with"):
        kprune.shrink(keras.Sequential([layers.Dense(3)]))
    for wrong in ({"divisible_by": 0}, {"divisible_by": 1.0}, {"keep_masks": 1}, {"tolerance": -1}):
        with pytest.raises(ValueError, match=f"Received: {next(iter(wrong))}="):
            kprune.shrink(mlp(), **wrong)


def test_a_difference_is_an_error():
    model = values(functional((4,), layers.Dense(6, name="a"), layers.Dense(3, name="b")))
    kprune.mask(model)
    model.get_layer("a").kernel.assign(np.full((4, 6), np.nan))
    with pytest.raises(RuntimeError, match="produce different outputs"):
        kprune.shrink(model)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("mode", ["concat", "sum", "ave", "mul"])
def test_units_of_two_directions_go_together(mode):
    given = keras.Input((5, 3))
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True), merge_mode=mode, name="both")(given)
    x = layers.Bidirectional(layers.GRU(4), merge_mode="concat", name="last")(x)
    model = keras.Model(given, layers.Dense(2, name="out")(x))
    kprune.prune(model, "magnitude", 0.6, groups="channels", verbose=0)
    small = kprune.shrink(model)
    both, last = small.get_layer("both"), small.get_layer("last")
    assert both.forward_layer.units == both.backward_layer.units
    assert last.forward_layer.units == last.backward_layer.units
    assert both.forward_layer.units + last.forward_layer.units < 10
    assert all(w.kept().all() for w in kprune.masked_weights(small))


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("bias", [True, False])
def test_what_runs_at_each_time_step(bias):
    given = keras.Input((4, 6, 6, 2))
    x = layers.TimeDistributed(layers.Conv2D(8, 3, padding="same", use_bias=bias), name="conv")(given)
    x = layers.TimeDistributed(layers.BatchNormalization(), name="norm")(x)
    x = layers.TimeDistributed(layers.Activation("relu"))(x)
    x = layers.TimeDistributed(layers.Flatten())(layers.TimeDistributed(layers.MaxPooling2D(2))(x))
    x = layers.TimeDistributed(layers.Dense(8, use_bias=bias), name="dense")(x)
    model = keras.Model(given, layers.Dense(2)(layers.LSTM(3)(x)))
    kprune.prune(model, "magnitude", 0.5, groups="channels", verbose=0)
    small = kprune.shrink(model)
    assert small.get_layer("conv").layer.filters < 8 or small.get_layer("dense").layer.units < 8
    assert all(w.kept().all() for w in kprune.masked_weights(small))


@pytest.mark.parametrize("both", [False, True])
def test_a_unit_that_only_the_state_reads_stays(both):
    rnn = layers.SimpleRNN(3, name="rnn")
    given = keras.Input((4, 2))
    x = layers.Bidirectional(rnn, merge_mode="sum", name="rnn")(given) if both else rnn(given)
    model = values(keras.Model(given, layers.Dense(2, name="out")(x)), zero={"out/kernel": [0]})
    assert kprune.shrink(model).count_params() == model.count_params()


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(
    ("first", "second", "given", "axis"),
    [
        (("ab,bc->ac", 8, "c"), ("ab,bc->ac", 3, "c"), (4,), 0),
        (("abc,cd->abd", (5, 8), "d"), ("abc,dc->abd", (5, 3), "d"), (5, 4), 1),
        (("...x,xy->...y", 8, "y"), ("...x,xy->...y", 3, "y"), (5, 4), 0),
        (("abc,cd->abd", (5, 8), "d"), ("abc,bcd->ad", 3, "d"), (5, 4), 1),  # the steps are summed over, too
        (("abc,bd->acd", (4, 8), "d"), ("abc,cd->abd", (4, 3), "d"), (5, 4), 0),  # neurons that mix the steps
    ],
)
@pytest.mark.parametrize("folds", [True, False])
def test_neurons_of_einsum_dense(first, second, given, axis, folds):
    inputs = keras.Input(given)
    x = layers.EinsumDense(first[0], first[1], bias_axes=first[2], activation="relu", name="a")(inputs)
    x = layers.EinsumDense(second[0], second[1], bias_axes=second[2] if folds else None, name="b")(x)
    model = keras.Model(inputs, x)
    a = model.get_layer("a")
    values(model, zero={"b/kernel": (*[slice(None)] * axis, [1, 3]), "a/kernel": (..., [5])})
    a.bias.assign(np.arange(8) - 3.0)  # nothing leads to neuron 5: it is the constant 2
    small = kprune.shrink(model)
    assert small.get_layer("a").kernel.shape[-1] == (5 if folds else 6)
    agree(model, small, given)


def test_neurons_along_another_axis_than_the_last():
    inputs = keras.Input((5, 4))
    x = layers.EinsumDense("abc,bd->adc", (8, 4), activation="relu", name="a")(inputs)
    model = keras.Model(inputs, layers.EinsumDense("abc,bd->adc", (3, 4), name="b")(x))
    small = kprune.shrink(values(model, zero={"b/kernel": IN}))
    assert small.get_layer("a").output.shape == (None, 6, 4)
    agree(model, small, (5, 4))


@pytest.mark.parametrize(
    ("equation", "shape", "bias"),
    [("abc,cde->abde", (5, 2, 3), None), ("abc,bcd->abd", (5, 3), None), ("abc,cd->abd", (5, 3), "bd")],
)
def test_what_an_einsum_dense_does_beyond_a_product_is_a_barrier(equation, shape, bias):
    inputs = keras.Input((5, 4))
    x = layers.EinsumDense(equation, shape, bias_axes=bias, name="e")(layers.Dense(4, name="a")(inputs))
    model = keras.Model(inputs, x)
    small = kprune.shrink(values(model, zero={"e/kernel": (*[slice(None)] * equation.split(",")[1].index("c"), [1])}))
    assert small.get_layer("a").units == 4 and kprune.channels.channel_graph(model).barriers.keys() == {"e"}


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("causal", [False, True])
def test_heads_that_share_a_key_go_together(causal):
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.GroupQueryAttention(2, 6, 3, name="g")(inputs, inputs, use_causal_mask=causal))
    # Heads 2 and 3 share a key, and nothing reads them; of heads 4 and 5 only one.
    small = kprune.shrink(values(model, zero={"attention_output/kernel": ([2, 3, 4],)}))
    layer = small.get_layer("g")
    assert (layer.num_query_heads, layer.num_key_value_heads) == (4, 2)
    agree(model, small, (5, 6))
    kprune.prune(model, "magnitude", 0.7, groups="channels", verbose=0)
    assert kprune.shrink(model).get_layer("g").num_key_value_heads == 1
