"""What was compiled before the masks: other models that hold a masked layer, their optimizers, steps of one's own."""

import keras
import numpy as np
import pytest
from helpers import CHEAP, assert_zero, data, mlp
from keras import layers
from kprune.callbacks import GradualPruning, PruneAtInit

import kprune
from kprune.masks.holders import live

X, Y = data()
TENSORFLOW = keras.backend.backend() == "tensorflow"


def pair(optimizer="adam"):
    """A network, and a second model that holds it, both compiled and trained."""
    inner = mlp(outputs=8)
    inputs = keras.Input((8,))
    outer = keras.Model(inputs, layers.Dense(3)(inner(inputs)))
    for model in (inner, outer):
        model.compile(optimizer, "mse", **CHEAP)
    inner.train_on_batch(X, X)
    outer.train_on_batch(X, Y)
    return inner, outer


def test_live_objects_are_found_with_those_of_derived_classes():
    class Own(keras.Model):
        pass

    model, own, optimizer = mlp(), Own(), keras.optimizers.SGD()
    found = {id(one) for one in live(keras.Model)}
    assert {id(model), id(own)} <= found and id(optimizer) not in found
    assert [id(one) for one in live(Own)] == [id(own)]


@pytest.mark.parametrize("pruned, trained", [(0, 1), (1, 0)])
def test_the_other_model_of_a_pair_trains_with_the_masks(pruned, trained):
    models = pair()
    kprune.prune(models[pruned], "magnitude", 0.5, verbose=False)
    for _ in range(2):
        models[trained].train_on_batch(X, X if trained == 0 else Y)
        assert kprune.masks.moved_weights(models[pruned]) == []
    assert kprune.summary(models[0]).zeros > 0


def test_the_other_model_predicts_by_the_masks_and_trains_densely_once_they_are_stripped():
    inner, outer = pair()
    outer.predict(X, verbose=0)
    kprune.prune(inner, "magnitude", 0.5, verbose=False)
    np.testing.assert_allclose(outer.predict(X, verbose=0), np.asarray(outer(X)), rtol=1e-5, atol=1e-6)
    outer.train_on_batch(X, Y)
    pruned = [(weight.variable, ~weight.kept()) for weight in kprune.masked_weights(inner)]
    kprune.strip(inner)
    outer.train_on_batch(X, Y)
    assert all(np.any(keras.ops.convert_to_numpy(v)[where] != 0) for v, where in pruned)


def test_slots_of_every_optimizer_that_trains_the_weight_are_reset():
    inner, outer = pair()
    loose = keras.optimizers.SGD(0.1, momentum=0.9)
    loose.build(inner.trainable_variables)
    loose.apply([keras.ops.ones(v.shape) for v in inner.trainable_variables], inner.trainable_variables)
    stranger = keras.optimizers.SGD(0.1, momentum=0.9)
    stranger.build(mlp().trainable_variables)
    kprune.prune(inner, "magnitude", 0.5, verbose=False)
    shapes = [weight.shape for weight in kprune.masked_weights(inner)]
    for optimizer in (inner.optimizer, outer.optimizer, loose):
        slots = [v for v in optimizer.variables if v.path.endswith("momentum") and tuple(v.shape) in shapes]
        for weight, slot in zip(kprune.masked_weights(inner), slots[: len(shapes)], strict=True):
            value = keras.ops.convert_to_numpy(slot)
            assert np.all(value[~weight.kept()] == 0) and np.any(value[weight.kept()] != 0)


def test_after_a_fit_that_ctrl_c_ended_the_optimizers_are_looked_for_anew():
    class CtrlC(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = mlp()
    model.compile("adam", "mse", **CHEAP)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=[PruneAtInit("magnitude", 0.2), CtrlC()])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **CHEAP)
    model.train_on_batch(X, Y)
    kprune.prune(model, "magnitude", 0.8, verbose=0)
    [momentum] = [v for v in model.optimizer.variables if "hidden_kernel_momentum" in v.path or v.shape == (8, 12)][:1]
    kept = kprune.masked_weights(model)[0].kept()
    value = keras.ops.convert_to_numpy(momentum)
    assert value.shape == kept.shape and np.any(value[kept]) and not np.any(value[~kept])


def test_what_is_refused_leaves_the_slots_of_other_models_too():
    inner, outer = pair()
    before = [keras.ops.convert_to_numpy(v) for v in outer.optimizer.variables]

    class Refuse(PruneAtInit):
        def on_train_begin(self, logs=None):
            with self.undone():
                super().on_train_begin(logs)
                raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        inner.fit(X, X, verbose=0, callbacks=[Refuse("magnitude", 0.5)])
    for v, value in zip(outer.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(v), value)


class Foreign(keras.Model):
    """Trains its kernels by functions of its own, compiled when first called, which know nothing of masks."""

    def __init__(self, momentum=0.0):
        super().__init__()
        self.net = mlp()
        self.compile(keras.optimizers.SGD(0.1), "mse")

    def call(self, x):
        return self.net(x)

    def step(self):
        """One step of plain gradient descent on the kernels alone."""
        kernels = [layer.kernel for layer in self.net.layers]
        if TENSORFLOW:
            import tensorflow as tf

            if not hasattr(self, "own"):

                @tf.function
                def own(x):
                    for v in kernels:
                        v.assign(v.value - 0.1)
                    return tf.reduce_sum(x)

                self.own = own
            self.own(X)
        else:
            import jax

            if not hasattr(self, "own"):
                self.own = jax.jit(lambda values: [value - 0.1 for value in values])
            for v, value in zip(kernels, self.own([v.value for v in kernels]), strict=True):
                v.assign(value)


def trained_by_a_stranger():
    model = Foreign()
    model(X)
    model.step()
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    assert kprune.masks.moved_weights(model) == []
    model.step()
    return model


CALLS = {
    "mask": kprune.mask,
    "prune": lambda model: kprune.prune(model, "magnitude", 0.6, verbose=False),
    "set_masks": lambda model: kprune.set_masks(model, {}),
    "summary": kprune.summary,
    "strip": kprune.strip,
    "fit": lambda model: model.fit(X, Y, verbose=0, callbacks=[PruneAtInit("magnitude", 0.6)]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_step_of_ones_own_that_was_compiled_before_is_named_by_the_next_call(call):
    model = trained_by_a_stranger()
    assert len(kprune.masks.moved_weights(model)) == 3
    before = model.get_weights()
    with pytest.raises(
        RuntimeError,
        match=r"no longer 0. The likely cause is that a function compiled before .* before the function is first "
        "traced",
    ):
        CALLS[call](model)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    model.set_weights(model.get_weights())  # as the error says
    assert_zero(model)
    CALLS[call](model)


@pytest.mark.parametrize("callback", ["at initialization", "gradual"])
def test_a_step_of_ones_own_is_named_within_one_step_of_a_fit(callback):
    class Step(keras.callbacks.Callback):
        taken = 0

        def on_train_batch_end(self, batch, logs=None):
            self.model.step()
            self.taken += 1

    schedule = kprune.schedules.PolynomialDecay(0.0, 0.5, begin_step=3, end_step=5, frequency=2)
    callbacks = {"at initialization": PruneAtInit("magnitude", 0.5), "gradual": GradualPruning(schedule)}
    model, step = Foreign(), Step()
    model(X)
    with pytest.raises(RuntimeError, match="before the function is first traced"):
        model.fit(X, Y, batch_size=2, verbose=0, callbacks=[callbacks[callback], step])
    assert step.taken == {"at initialization": 1, "gradual": 6}[callback]


@pytest.mark.private_api
@pytest.mark.parametrize("kind", ["set_weights", "of a model around", "assign"])
def test_values_that_the_user_gives_are_no_leak(kind):
    inner, outer = pair("sgd")
    kprune.prune(inner, "magnitude", 0.5, verbose=False)
    if kind == "assign":
        for weight in kprune.masked_weights(inner):
            weight.variable.assign(np.ones(weight.shape))
    else:
        model = inner if kind == "set_weights" else outer
        model.set_weights([np.ones_like(value) for value in model.get_weights()])
        assert_zero(inner)
        assert all((w.value()[w.kept()] == 1).all() for w in kprune.masked_weights(inner))
    kprune.prune(inner, "magnitude", 0.6, verbose=False)
    assert_zero(inner)


def test_stripped_weights_take_any_values():
    model = mlp()
    kinds = [type(v) for v in model.weights]
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    kprune.strip(model)
    assert [type(v) for v in model.weights] == kinds
    model.set_weights([np.ones_like(value) for value in model.get_weights()])
    assert all((value == 1).all() for value in model.get_weights())


@pytest.mark.private_api
@pytest.mark.skipif(not TENSORFLOW, reason="tf.function is TensorFlow's")
@pytest.mark.parametrize("method", ["call", "train_step", "call of the layer"])
def test_methods_that_are_a_tf_function_are_traced_anew(method):
    import tensorflow as tf

    class Own(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

        def call(self, x):
            return keras.ops.matmul(x, self.kernel)

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.net, self.own = mlp(), Own()

        def call(self, x):
            return self.net(x) + self.own(x)

        def train_step(self, data):
            return super().train_step(data)

    compiled = Own if method == "call of the layer" else Net
    name = method.split()[0]
    setattr(compiled, name, tf.function(getattr(compiled, name)))
    model = Net()
    model(X)
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, Y, verbose=0)
    kprune.prune(model, "magnitude", 0.5, verbose=False)
    model.fit(X, Y, batch_size=8, verbose=0)
    assert_zero(model)
    np.testing.assert_allclose(np.asarray(model(X)), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
    zeros = kprune.summary(kprune.strip(model)).zeros
    model.fit(X, Y, verbose=0)
    assert kprune.summary(model).zeros < zeros
