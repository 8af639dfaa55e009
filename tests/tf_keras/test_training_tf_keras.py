"""Invariants 1 and 7 on tf_keras: pruned weights are exactly 0 after every step, whatever trains them."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers import EachBatch, assert_zero, data, halve
from tf_keras import layers, optimizers
from tfk_helpers import assert_same, masked_mlp, mlp, outputs, pruned_fraction, sequential

import kprune
from kprune.runtime.optimizers import _slots, inner_optimizers, iterations

OPTIMIZERS = {
    "SGD": lambda **k: optimizers.SGD(0.1, momentum=0.9, nesterov=True, **k),
    "Adam": lambda **k: optimizers.Adam(0.01, amsgrad=True, **k),
    "AdamW": lambda **k: optimizers.AdamW(0.01, **{"weight_decay": 0.1, **k}),
    "Adadelta": lambda **k: optimizers.Adadelta(1.0, **k),
    "Adafactor": lambda **k: optimizers.Adafactor(0.01, **k),
    "Adagrad": lambda **k: optimizers.Adagrad(0.1, **k),
    "Adamax": lambda **k: optimizers.Adamax(0.01, **k),
    "Ftrl": lambda **k: optimizers.Ftrl(0.1, l1_regularization_strength=1e-3, **k),
    "Lion": lambda **k: optimizers.Lion(0.001, **k),
    "Nadam": lambda **k: optimizers.Nadam(0.01, **k),
    "RMSprop": lambda **k: optimizers.RMSprop(0.01, momentum=0.9, centered=True, **k),
    "LossScale": lambda **k: tf_keras.mixed_precision.LossScaleOptimizer(optimizers.Adam(0.01, **k)),
    "legacy SGD": lambda **k: optimizers.legacy.SGD(0.1, momentum=0.9, nesterov=True, **k),
    "legacy Adam": lambda **k: optimizers.legacy.Adam(0.01, **k),
    "legacy Adagrad": lambda **k: optimizers.legacy.Adagrad(0.1, **k),
}
SETTINGS = {
    "weight_decay": dict(weight_decay=0.1),
    "clipnorm": dict(clipnorm=0.5),
    "global_clipnorm": dict(global_clipnorm=0.5),
    "clipvalue": dict(clipvalue=0.1),
    "use_ema": dict(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
    "ema at the end": dict(use_ema=True, ema_momentum=0.9),
}


def test_every_builtin_optimizer_is_listed():
    known = {name for name in dir(optimizers) if isinstance(getattr(optimizers, name), type)}
    assert known - {"Optimizer"} <= set(OPTIMIZERS)


class Orthogonal(tf_keras.regularizers.Regularizer):
    """Has a gradient where the weight is 0."""

    def __call__(self, w):
        return 0.1 * tf.reduce_sum(tf.square(tf.matmul(w, w, transpose_a=True) - 1.0))


class HalveAfterTwoEpochs(tf_keras.callbacks.Callback):
    """By then every slot holds something everywhere. From there on no pruned weight may move."""

    checks = 0

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            halve(self.model)
            self.before = self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self, "before"):
            assert_zero(self.model)
            self.checks += 1


def dense_then_pruned(optimizer, regularizer="l1_l2", **compile_args):
    model = kprune.mask(mlp(kernel_regularizer=regularizer)).model
    model.compile(optimizer, "mse", **compile_args)
    halve_then_check = HalveAfterTwoEpochs()
    model.fit(*data(), batch_size=8, epochs=4, verbose=0, callbacks=[halve_then_check])
    assert halve_then_check.checks > 0
    assert_zero(model)  # also after the fit, which overwrites weights with their averages
    assert any(np.any(a != b) for a, b in zip(halve_then_check.before, model.get_weights(), strict=True))
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_leaks(name):
    dense_then_pruned(OPTIMIZERS[name](), run_eagerly=True)


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_leaks(setting):
    dense_then_pruned(OPTIMIZERS["AdamW"](**SETTINGS[setting]), run_eagerly=True)


COMPILED = {
    "jit": dict(jit_compile=True),
    "plain": dict(jit_compile=False),
    "several steps": dict(steps_per_execution=4),
    "several steps, jit": dict(steps_per_execution=3, jit_compile=True),
}


@pytest.mark.parametrize("name, how", [*(("AdamW", how) for how in COMPILED), ("legacy Adam", "jit")])
def test_no_way_to_compile_leaks(name, how):
    dense_then_pruned(OPTIMIZERS[name](), **COMPILED[how])


@pytest.mark.parametrize("policy, jit", [("mixed_bfloat16", False), ("mixed_float16", True), ("float64", False)])
def test_mixed_precision(policy, jit):
    tf_keras.mixed_precision.set_global_policy(policy)
    # The regularizer's gradient moves pruned weights, so that only the constraint holds them.
    model = dense_then_pruned(optimizers.SGD(0.05, momentum=0.9), Orthogonal(), jit_compile=jit)
    assert (type(model.optimizer).__name__ == "LossScaleOptimizerV3") == (policy == "mixed_float16")
    assert {w.value().dtype.name for w in kprune.masked_weights(model)} == {
        policy.replace("mixed_", "").replace("bfloat16", "float32").replace("float16", "float32")
    }
    x, _ = data()
    expected = outputs(model, x)
    assert_same(outputs(kprune.strip(model), x), expected)


def test_the_averages_of_pruned_weights_are_zero():
    """tf_keras averages the weights before it applies constraints, so a constraint alone is not enough."""
    model = masked_mlp(optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9))
    model.fit(*data(), batch_size=8, epochs=2, verbose=0)
    for weight in kprune.masked_weights(model):
        average = next(v for v in model.optimizer.variables if "average/" + weight.path in v.name)
        assert not average.numpy()[~weight.kept()].any() and average.numpy()[weight.kept()].all()


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "LossScale", "RMSprop", "legacy SGD", "legacy Adagrad"])
def test_slots_of_dropped_and_regrown_weights_are_reset(name):
    model = dense_then_pruned(OPTIMIZERS[name](**({} if "legacy" in name else dict(use_ema=True))), run_eagerly=True)
    weight = kprune.masked_weights(model)[0]
    old = weight.kept()
    new = np.roll(old, 1, axis=0)
    kprune.set_masks(model, {weight.path: new})
    changed, kept = ~new | (new != old), new & old
    assert changed.any() and kept.any() and (new & ~old).any()
    slots = [s for inner in inner_optimizers(model.optimizer) for s in _slots(inner, weight.variable)]
    assert len(slots) >= (1 if "legacy" in name else 2)
    for slot, initial in slots:
        np.testing.assert_array_equal(slot.numpy()[changed], np.float32(initial))
        assert initial == (0.1 if "accumulator" in slot.name and "Adagrad" in name else 0.0)
    assert any((slot.numpy()[kept] != np.float32(initial)).any() for slot, initial in slots)


def test_train_on_batch_keeps_zeros():
    model = masked_mlp("adam", run_eagerly=True)
    for _ in range(3):
        model.train_on_batch(*data())
        assert_zero(model)


@pytest.mark.parametrize("name, jit", [("SGD", True), ("legacy Adam", False)])
def test_a_custom_loop_keeps_zeros(name, jit):
    model = kprune.mask(mlp()).model
    kprune.prune(model, "magnitude", 0.5)
    optimizer = OPTIMIZERS[name]()
    x, y = data()

    @tf.function(jit_compile=jit)
    def train():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    before = model.get_weights()
    with tf.init_scope():
        if hasattr(optimizer, "build"):
            optimizer.build(model.trainable_variables)
        else:
            optimizer._create_all_weights(model.trainable_variables)
    for step in range(4):
        train()
        assert_zero(model)
        if step == 1:
            kprune.prune(model, "magnitude", 0.75, optimizer=optimizer)
    assert pruned_fraction(model) == pytest.approx(0.75, abs=0.005)
    assert any((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", optimizers.legacy.Adam])
def test_the_sparse_gradients_of_an_embedding(optimizer):
    model = sequential((5,), layers.Embedding(7, 4), layers.Flatten(), layers.Dense(2))
    model = kprune.mask(model, weights=("embeddings", "kernel")).model
    model.compile(optimizer if isinstance(optimizer, str) else optimizer(0.01), "mse")
    halve(model)
    ids = np.random.default_rng(0).integers(0, 7, (8, 5))
    model.fit(ids, np.ones((8, 2)), batch_size=4, verbose=0, callbacks=[EachBatch(assert_zero)])


def test_a_regularizer_with_a_gradient_at_zero():
    dense_then_pruned(OPTIMIZERS["AdamW"](), Orthogonal(), run_eagerly=True)


def test_changing_a_mask_does_not_retrace():
    traces = []

    class Counting(layers.Dense):
        def get_prunable_weights(self):
            return [self.kernel]

        def call(self, x):
            traces.append(1)
            return super().call(x)

    model = kprune.mask(sequential((8,), Counting(6), layers.Dense(3))).model
    model.compile("adam", "mse", jit_compile=True)
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0)
    compiled, fractions = len(traces), []

    def change(model):
        assert_zero(model) if fractions else None
        kprune.prune(model, "magnitude", 0.2 * (len(fractions) + 1), verbose=False)
        fractions.append(pruned_fraction(model))

    model.fit(x, y, batch_size=8, verbose=0, callbacks=[EachBatch(change)])
    assert len(traces) == compiled
    assert fractions == sorted(fractions) and fractions[0] < 0.25 < 0.75 < fractions[-1]


@pytest.mark.parametrize("jit", [False, True])
def test_stripped_equals_masked_in_compiled_predictions(jit):
    model = masked_mlp("adam", jit_compile=jit)
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0)
    expected = model.predict(x, verbose=0)
    stripped = kprune.strip(model)
    stripped.compile(jit_compile=jit)
    np.testing.assert_array_equal(stripped.predict(x, verbose=0), expected)
    assert sum((w.numpy() == 0).sum() for w in stripped.trainable_weights) > 100


def test_under_a_distribution_strategy():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = kprune.mask(mlp()).model
        model.compile(OPTIMIZERS["AdamW"](use_ema=True), "mse")
    halve(model)
    check = EachBatch(assert_zero)
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[check])
    assert_zero(model)
    assert check.calls == 4


def test_checkpoints_at_any_moment_are_sparse(tmp_path):
    model = kprune.mask(mlp()).model
    model.compile(OPTIMIZERS["AdamW"](), "mse")
    schedule = kprune.schedules.PolynomialDecay(0.2, 0.8, 0, 6, frequency=2)
    saves = tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "{batch:02d}.keras"), save_freq=1)
    x, y = data(n=64)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[kprune.callbacks.GradualPruning(schedule), saves])
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    fractions = []
    for file in files:
        other = tf_keras.models.load_model(file)
        assert_zero(other)
        fractions.append(pruned_fraction(other))
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(0.8, abs=0.003)
    assert iterations(other.optimizer) == 8  # the optimizer is in the file as well


def test_a_loaded_model_goes_on_like_the_one_that_was_saved(tmp_path):
    model = masked_mlp("adam", run_eagerly=True)
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    model.save(tmp_path / "masked.keras")
    loaded = kprune.mask(tf_keras.models.load_model(tmp_path / "masked.keras")).model
    loaded.run_eagerly = True
    for m in (model, loaded):
        m.fit(x, y, batch_size=8, verbose=0, shuffle=False, callbacks=[EachBatch(assert_zero)])
    assert_same(outputs(loaded, x), outputs(model, x))


def test_the_other_model_of_a_pair_keeps_the_zeros_and_is_dense_again_after_strip():
    inner = mlp()
    inputs = tf_keras.Input(inner.input_shape[1:])
    outer = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(inner(inputs)))
    outer.compile("adam", "mse")
    x = np.ones((4, *inner.input_shape[1:]), "float32")
    outer.train_on_batch(x, np.zeros((4, 2)))
    masked = kprune.mask(inner).model
    halve(masked)
    for _ in range(2):
        outer.train_on_batch(x, np.zeros((4, 2)))
        assert_zero(masked)
    pruned = [(weight.variable, ~weight.kept()) for weight in kprune.masked_weights(masked)]
    kprune.strip(masked)
    outer.train_on_batch(x, np.zeros((4, 2)))
    assert any(np.any(variable.numpy()[where] != 0) for variable, where in pruned)


def test_a_step_of_ones_own_that_was_compiled_before_is_named(caplog):
    model = mlp()
    kernels = [layer.kernel for layer in model.layers]

    @tf.function
    def step():
        for kernel in kernels:
            kernel.assign_sub(0.1 * tf.ones_like(kernel))

    step()
    masked = kprune.mask(model).model
    halve(masked)
    step()
    with caplog.at_level("WARNING"):
        kprune.set_masks(masked, kprune.masks.current_masks(masked))
    assert "a function compiled before the model was masked" in caplog.text
    assert_zero(masked)

    class Step(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            step()

    masked.compile("sgd", "mse")
    x, y = np.ones((8, *masked.input_shape[1:])), np.ones((8, *masked.output_shape[1:]))
    with pytest.raises(RuntimeError, match="before the function is first traced"):
        masked.fit(x, y, batch_size=2, verbose=0, callbacks=[kprune.callbacks.TakeSnapshot("init"), Step()])
