"""Supermask: scores that train in place of the weights, what reads them, and what is left when the fit has ended."""

import copy
import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import CHEAP, data
from keras import layers
from kprune.callbacks import BackupAndRestore, GradualPruning, Supermask, TakeSnapshot
from steps import TracedSteps

import kprune
from kprune.runtime.stand_in import ScoreOptimizer

WEIGHTS = np.array([[2.0, -1.0, 1.0], [1.0, 2.0, -2.0]], "float32")


class Starting(Supermask):
    """Starts from these scores."""

    def _first(self, weight, i):
        scores = np.array([[0.3, 0.1, 0.2], [0.2, 0.4, -0.1]])
        return scores if self.method == "edge_popup" else super()._first(weight, i)


class Watch(keras.callbacks.Callback):
    """What the kernel is after each batch: scores, mask, value, what the layer reads."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        [weight] = kprune.masked_weights(self.model)
        score = np.asarray(self.model.optimizer.parameters(weight.variable)[0])
        self.seen.append((score, weight.kept(), weight.value(), weight.read()))


class Stop(keras.callbacks.Callback):
    """Interrupts the fit as its second epoch begins."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def small():
    dense = layers.Dense(3, use_bias=False, name="dense")
    model = keras.Sequential([keras.Input((2,)), dense], name="net")
    dense.set_weights([WEIGHTS])
    model.compile(keras.optimizers.SGD(0.15), "mse", **CHEAP)
    return model


def compiled(seed=1, optimizer="adam", **options):
    keras.utils.set_random_seed(seed)
    dense = [layers.Dense(6, "relu", name="hidden", **options), layers.Dense(3, name="logits", **options)]
    model = keras.Sequential([keras.Input((8,)), *dense])
    model.compile(optimizer, "mse", **CHEAP)
    return model


def fit(model, *callbacks, epochs=2):
    x, y = data(n=32)
    return model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def kernels(model):
    return [np.asarray(layer.kernel) for layer in model.layers]


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_the_same(one, other):
    for a, b in zip(kprune.masked_weights(one), kprune.masked_weights(other), strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept())
        np.testing.assert_array_equal(a.value(), b.value())


def assert_trains_weights(model, own, steps=4):
    """A plain fit moves all weights, by the model's own optimizer."""
    before, taken = kernels(model), int(own.iterations)
    fit(model, epochs=1)
    assert model.optimizer is own and int(own.iterations) == taken + steps
    assert all((a != b).any() for a, b in zip(before, kernels(model), strict=True))


def step_by_step(callback):
    """Two steps on x = (1, 1), y = 0: of the mean of y_j^2, ds_ij = 2/3 y_j x_i w_ij."""
    model, watch = small(), Watch()
    model.fit(np.ones((2, 2)), np.zeros((2, 3)), batch_size=1, verbose=0, callbacks=[callback, watch])
    np.testing.assert_array_equal(model.get_weights()[0], WEIGHTS)
    for _, mask, value, read in watch.seen:
        np.testing.assert_array_equal(value, WEIGHTS)
        np.testing.assert_array_equal(read, np.where(mask, WEIGHTS, 0))
    return model, watch.seen


def test_two_steps_of_edge_popup():
    model, seen = step_by_step(Starting("edge_popup", 0.5))
    # Kept at first: 0.4, 0.3 and the first 0.2, so y = (2, 2, 1); then y = (0, -1, -1).
    np.testing.assert_allclose(seen[0][0], [[-0.1, 0.3, 0.1], [0.0, 0.0, 0.1]], atol=1e-6)
    np.testing.assert_array_equal(seen[0][1], [[0, 1, 1], [0, 0, 1]])
    np.testing.assert_allclose(seen[1][0], [[-0.1, 0.2, 0.2], [0.0, 0.2, -0.1]], atol=1e-6)
    np.testing.assert_array_equal(seen[1][1], [[0, 1, 1], [0, 1, 0]])
    [weight] = kprune.masked_weights(model)
    np.testing.assert_array_equal(weight.kept(), seen[1][1])
    assert weight.store == "latent" and kprune.summary(model).zeros == 3
    np.testing.assert_array_equal(model.predict(np.eye(2), verbose=0), np.where(weight.kept(), WEIGHTS, 0))


def test_two_steps_of_bernoulli():
    model, seen = step_by_step(Supermask("bernoulli", seed=3))
    scores = np.zeros((2, 3))
    mask = np.random.default_rng([3, 0, 0]).random((2, 3)) < 0.5
    for step, (value, drawn, _, _) in enumerate(seen, 1):
        slope = 1 / (1 + np.exp(-scores)) / (1 + np.exp(scores))  # 1/4 at 0
        scores = scores - 0.15 * 2 / 3 * (WEIGHTS * mask).sum(0) * WEIGHTS * slope
        np.testing.assert_allclose(value, scores, atol=1e-6)
        mask = np.random.default_rng([3, 0, step]).random((2, 3)) < 1 / (1 + np.exp(-scores))
        np.testing.assert_array_equal(drawn, mask)
    np.testing.assert_array_equal(kprune.masked_weights(model)[0].kept(), scores > 0)


def test_signed_constants():
    model, callback = small(), Supermask(signed_constant=True)
    model.fit(np.ones((2, 2)), np.zeros((2, 3)), verbose=0, callbacks=[callback])
    [made] = model.get_weights()
    np.testing.assert_allclose(made, np.sign(WEIGHTS) * np.sqrt(15 / 6), rtol=1e-6)  # the mean of the squares
    model.fit(np.ones((2, 2)), np.zeros((2, 3)), verbose=0, callbacks=[Supermask(signed_constant=True)])
    np.testing.assert_array_equal(model.get_weights()[0], made)


@pytest.mark.parametrize("then", ["fit", "train_on_batch", "compile", "Supermask"])
def test_an_interrupted_fit_loses_nothing(then, caplog):
    model = compiled()
    initial, own = kernels(model), model.optimizer
    with pytest.raises(KeyboardInterrupt):
        fit(model, Supermask(sparsity=0.7), Stop())
    assert_equal(kernels(model), initial)
    assert kprune.summary(model).sparsity == 45 / 66
    outputs = np.asarray(model(data()[0]))
    if then == "train_on_batch":
        model.train_on_batch(*data(n=8))
        assert int(own.iterations) == 1
    elif then == "compile":
        model.compile("sgd", "mse", **CHEAP)
        own = model.optimizer
    elif then == "Supermask":
        fit(model, Supermask(sparsity=0.7), epochs=1)
        assert_equal(kernels(model), initial)
    else:
        kprune.strip(model)
        np.testing.assert_array_equal(np.asarray(model(data()[0])), outputs)
    assert_trains_weights(model, own)
    assert ("model.optimizer is the compiled optimizer again" in caplog.text) == (then != "Supermask")


def test_momentum_of_scores_moves_no_weight_later():
    model = compiled(optimizer=keras.optimizers.SGD(1.0, momentum=0.9))
    fit(model, epochs=1)
    own, before = model.optimizer, [np.asarray(v) for v in model.optimizer.variables]
    masks = kprune.mask(model, store="latent").masked
    initial = kernels(model)
    fit(model, Supermask())
    assert_equal(kernels(model), initial)
    assert model.optimizer is own and len(masks) == 2
    assert_equal([np.asarray(v) for v in own.variables], before)  # of weights, as an earlier fit has left it


class Saves(keras.callbacks.Callback):
    """Saves and clones the model in the middle of a fit, and notes what it predicts then."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        self.outputs = np.asarray(self.model(data()[0]))
        self.model.save(self.folder / "model.keras")
        self.model.save_weights(self.folder / "model.weights.h5")
        self.clone = keras.models.clone_model(self.model)
        self.clone.set_weights(self.model.get_weights())


def test_files_and_clones_of_the_middle_of_a_fit_hold_weights_and_masks(tmp_path):
    model, saves = compiled(), Saves(tmp_path)
    fit(model, epochs=1)
    kprune.mask(model, store="latent")
    initial, state = kernels(model), [np.asarray(v) for v in model.optimizer.variables]
    fit(model, Supermask(sparsity=0.7), saves, epochs=1)
    loaded, other = keras.models.load_model(tmp_path / "model.keras"), compiled(seed=2)
    kprune.mask(other, store="latent")
    other.load_weights(tmp_path / "model.weights.h5")
    for one in (loaded, other, saves.clone):
        assert_equal(kernels(one), initial)
        np.testing.assert_array_equal(np.asarray(one(data()[0])), saves.outputs)
    assert_equal([np.asarray(v) for v in loaded.optimizer.variables], state)


def test_weights_that_are_loaded_in_the_middle_of_a_fit_are_trained_over(tmp_path):
    model, other = compiled(), compiled(seed=7)
    kprune.mask(other, store="latent")
    other.save_weights(tmp_path / "other.weights.h5")
    wanted = kernels(other)
    file = tmp_path / "other.weights.h5"
    load = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch and model.load_weights(file))
    fit(model, Supermask(sparsity=0.5), load)
    assert_equal(kernels(model), wanted)
    assert kprune.summary(model).sparsity == pytest.approx(0.5, abs=0.01)


class Fails(keras.callbacks.Callback):
    def set_model(self, model):
        raise RuntimeError("no model for me")


@pytest.mark.parametrize("order", [1, -1])
def test_a_fit_that_fails_before_it_begins_leaves_the_model_its_optimizer(order):
    model = compiled()
    own, initial = model.optimizer, kernels(model)
    with pytest.raises(RuntimeError, match="no model for me"):
        fit(model, *[Supermask(), Fails()][::order])
    assert_equal(kernels(model), initial)
    assert_trains_weights(model, own)


@keras.saving.register_keras_serializable("test_supermask")
class NotAgain(keras.optimizers.SGD):
    @classmethod
    def from_config(cls, config):
        raise ValueError("there is one of me")


def test_a_failure_in_set_model_leaves_the_model_as_it_was():
    model = compiled(optimizer=NotAgain(0.1))
    with pytest.raises(ValueError, match=r"there is one of me\. .*Received: optimizer='\w+'$"):
        fit(model, Supermask())
    assert kprune.masked_weights(model) == []
    assert_trains_weights(model, model.optimizer)


def test_evaluate_leaves_the_model_as_it_was():
    model = compiled()
    own = model.optimizer
    model.evaluate(*data(), verbose=0, callbacks=[Supermask()])
    model.predict(data()[0], verbose=0, callbacks=[Supermask()])
    assert kprune.masked_weights(model) == [] and model.optimizer is own and "make_train_function" not in vars(model)


@pytest.mark.parametrize(
    ("method", "order", "library"),
    [("edge_popup", 1, "kprune"), ("bernoulli", -1, "kprune"), ("bernoulli", 1, "keras")],
)
def test_it_goes_on_from_a_backup_to_the_bit(method, order, library, tmp_path):
    def callbacks():
        backup = BackupAndRestore(tmp_path / "b.npz") if library == "kprune" else None
        backup = backup or keras.callbacks.BackupAndRestore(str(tmp_path / "keras"))
        return [Supermask(method, frequency=3), backup][::order]

    whole, killed, resumed = compiled(), compiled(), compiled(seed=5)
    for model in (whole, killed, resumed):
        kprune.mask(model, store="latent")  # or the first callback masks it, as it does by default
    fit(whole, callbacks()[::order][0])
    with pytest.raises(KeyboardInterrupt):
        fit(killed, *callbacks(), Stop())
    fit(resumed, *callbacks())
    assert_the_same(whole, resumed)
    assert_equal(whole.get_weights(), resumed.get_weights())  # biases, too


def test_a_fit_traces_once_although_another_has_traced_before():
    model = compiled()
    kprune.mask(model, store="latent")
    fit(model, epochs=1)  # has made a train function for the weights
    initial, steps = kernels(model), TracedSteps(model)
    fit(model, Supermask(), steps.count)
    assert_equal(kernels(model), initial)
    assert steps.counts[-1] - steps.counts[0] == 0
    assert_trains_weights(model, model.optimizer)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow's tf.function")
def test_a_train_step_that_is_a_tf_function_is_traced_anew():
    import tensorflow as tf

    class Traced(keras.Sequential):
        @tf.function
        def train_step(self, data):
            return super().train_step(data)

    model = Traced([keras.Input((8,)), *compiled().layers])
    model.compile("adam", "mse", **CHEAP)
    fit(model, epochs=1)
    initial = kernels(model)
    fit(model, Supermask(), epochs=1)
    assert_equal(kernels(model), initial)
    assert_trains_weights(model, model.optimizer)


def test_a_further_fit_continues_from_the_scores_and_another_model_does_not():
    # Without slots two fits are one.
    callback, model, whole = Supermask(frequency=4), compiled(optimizer="sgd"), compiled(optimizer="sgd")
    fit(model, callback, epochs=1)
    fit(model, callback, epochs=1)
    fit(whole, Supermask(frequency=4))
    assert_the_same(model, whole)
    other, fresh = compiled(seed=4, optimizer="sgd"), compiled(seed=4, optimizer="sgd")
    fit(other, callback, epochs=1)
    fit(fresh, Supermask(frequency=4), epochs=1)
    assert_the_same(other, fresh)


def test_each_fit_draws_anew_and_one_of_no_epoch_keeps_its_masks():
    callback, model, draws = Supermask("bernoulli"), compiled(optimizer=keras.optimizers.SGD(1e-9)), []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: draws.append(kprune.masked_weights(model)[0].kept())
    )
    for epochs in (1, 1, 0):
        fit(model, callback, note, epochs=epochs)
    assert (draws[0] != draws[1]).any()
    assert 0.2 < kprune.summary(model).sparsity < 0.8


@pytest.mark.private_api
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_excluded_from_weight_decay_stays_excluded(scaled):
    own = keras.optimizers.SGD(0.1, weight_decay=0.5)
    own.exclude_from_weight_decay(var_names=["kernel"])
    model, inner = compiled(optimizer=keras.optimizers.LossScaleOptimizer(own) if scaled else own), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: inner.append(model.optimizer.inner()))
    fit(model, Supermask(), note, epochs=1)
    leaf = inner[0].inner_optimizer if scaled else inner[0]
    excluded = {v.path.split("/", 1)[1] for v in leaf._trainable_variables if not leaf._use_weight_decay(v)}
    assert excluded == {"hidden/kernel_score", "logits/kernel_score"}


def test_frozen_weights_keep_mask_and_value():
    model = compiled()
    masks = kprune.mask(model, store="latent") and kprune.prune(model, "magnitude", 0.5, verbose=0)
    model.get_layer("hidden").trainable = False
    model.compile("sgd", "mse", **CHEAP)
    initial = kernels(model)
    fit(model, Supermask(sparsity=0.25), epochs=1)
    hidden, logits = kprune.masked_weights(model)
    assert_equal(kernels(model), initial)
    np.testing.assert_array_equal(hidden.kept(), masks[hidden.path])
    assert (~logits.kept()).sum() == 4  # of 18: 4.5, so 4 or 5 by the scope's rounding


OPTIMIZERS = {
    "accumulates": lambda: keras.optimizers.SGD(1.0, gradient_accumulation_steps=2),
    "averages": lambda: keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5),
    "scales": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0, momentum=0.9), initial_scale=8.0),
    "decays": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 8), weight_decay=0.1),
    "clips": lambda: keras.optimizers.Lion(0.1, clipnorm=1.0),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_moves_scores_and_no_weight(kind):
    model = compiled(optimizer=OPTIMIZERS[kind]())
    own, initial, scores = model.optimizer, kernels(model), []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: scores.append(
            [np.asarray(model.optimizer.parameters(w.variable)[0]) for w in kprune.masked_weights(model)]
        )
    )
    fit(model, Supermask(sparsity=0.6), note)
    assert_equal(kernels(model), initial)
    assert all((one != other).any() for one, other in zip(*scores, strict=True))
    assert model.optimizer is own and int(own.iterations) == 0


def test_an_interrupted_model_is_freed_and_a_callback_can_be_copied():
    callback, model = Supermask(), compiled()
    with pytest.raises(KeyboardInterrupt):
        fit(model, callback, Stop())
    known = weakref.ref(model)
    del model, callback
    gc.collect()
    assert known() is None
    callback, model = Supermask(sparsity=0.75), compiled()
    fit(model, callback, epochs=1)
    again = copy.deepcopy(callback)
    fit(compiled(), again, epochs=1)
    assert again.sparsity == 0.75


def test_skipped_steps_of_a_loss_scale_are_no_other_optimizers(caplog):
    model, (x, y) = compiled(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))), data(n=32)
    model.fit(x, y * 1e37, batch_size=8, verbose=0, callbacks=[Supermask()])  # no gradient is finite
    assert "has taken no steps" not in caplog.text


def test_a_learning_rate_that_a_callback_sets_is_that_of_scores():
    model = compiled(optimizer=keras.optimizers.SGD(0.5))
    rates = []
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rates.append(rate) or 0.0)
    first = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: first.append([w.kept() for w in kprune.masked_weights(model)])
    )
    fit(model, Supermask(), schedule, note)
    assert rates == [0.5, 0.0]
    assert_equal(*first)  # nothing moves at a rate of 0


def refused(model, *callbacks, match, error=ValueError):
    before = model.get_weights()
    with pytest.raises(error, match=match):
        fit(model, *callbacks)
    assert_equal(model.get_weights(), before)
    assert not isinstance(model.optimizer, ScoreOptimizer)


def test_what_it_cannot_do_is_refused():
    for others in ([GradualPruning(0.5)], [Supermask()]):
        model = compiled()
        refused(model, Supermask(), *others, match=r"Supermask trains scores.*Received: other=\w+$")
        assert kprune.masked_weights(model) == []
    refused(compiled(), Supermask(), TakeSnapshot(1), match=r"Received: other=TakeSnapshot$")
    model = compiled()
    model.critic = keras.optimizers.Adam()
    refused(model, Supermask(), match=r"Received: optimizers=\['adam\w*', 'adam\w*'\]$")
    model = compiled()
    kprune.mask(model, store="latent", gradient="masked")
    refused(model, Supermask(), match=r"Received: gradient='masked'$")
    model = compiled()
    kprune.mask(model)
    refused(model, Supermask(), match=r"store='latent'")


def test_another_optimizer_in_the_middle_of_a_fit_is_an_error():
    model = compiled()
    own = model.optimizer
    back = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: setattr(model, "optimizer", own))
    with pytest.raises(RuntimeError, match=r"Supermask can no longer train, because its optimizer was replaced"):
        fit(model, back, Supermask())
    assert_trains_weights(model, own)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(method="edge"),
        dict(method="bernoulli", sparsity=0.5),
        dict(sparsity=1.0),
        dict(scope="layer"),
        dict(signed_constant=1),
        dict(frequency=0),
        dict(seed=-1),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        Supermask(**wrong)


class OwnRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1

    def get_config(self):
        return {}


@keras.saving.register_keras_serializable("test_supermask")
class Forgets(keras.optimizers.SGD):
    @classmethod
    def from_config(cls, config):
        return cls(0.5)


def mapped():
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1), {".*bias": keras.optimizers.Adam(0.1)})
    )


NOT_ANEW = {
    "a schedule of one's own": (
        lambda: keras.optimizers.SGD(OwnRate()),
        r"Register custom classes.*Received: optimizer='sgd'$",
    ),
    "a lambda": (lambda: keras.optimizers.SGD(lambda: 0.1), r"Register custom classes.*Received: optimizer='sgd'$"),
    "another config": (lambda: Forgets(0.1), r"a different config\. Register.*Received: optimizer='forgets'$"),
    "a map": (mapped, r"a MultiOptimizer chooses.*Received: optimizer="),
}


@pytest.mark.parametrize("kind", NOT_ANEW)
def test_an_optimizer_that_cannot_be_made_anew_is_refused(kind):
    make, match = NOT_ANEW[kind]
    if kind == "a map" and not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has none")
    refused(compiled(optimizer=make()), Supermask(), match=match)


@pytest.mark.parametrize("wrap", [lambda stop: stop, kprune.AfterPruning], ids=["itself", "AfterPruning"])
def test_a_callback_that_restores_an_epoch_is_refused(wrap):
    stop = wrap(keras.callbacks.EarlyStopping("loss", restore_best_weights=True))
    refused(compiled(), stop, Supermask(), match=r"Received: other=(EarlyStopping|AfterPruning)$")
    fit(compiled(), wrap(keras.callbacks.EarlyStopping("loss")), Supermask(), epochs=1)


def test_a_step_that_raises_leaves_the_model_its_optimizer_at_once():
    model = compiled()
    own, initial = model.optimizer, kernels(model)
    wrong = np.zeros((32, 9), "float32")  # a batch that the model cannot take
    kprune.mask(model, store="latent")
    with pytest.raises(Exception, match=r"shape|incompatible"):
        model.fit(wrong, data(n=32)[1], batch_size=8, verbose=0, callbacks=[Supermask()])
    assert model.optimizer is own
    assert_equal(kernels(model), initial)
    assert_trains_weights(model, own)


def test_the_optimizer_of_scores_steps_in_its_own_fit_only():
    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        fit(model, Supermask(), Stop())
    initial, gradients = model.get_weights(), [np.ones(v.shape, "float32") for v in model.trainable_variables]
    with pytest.raises(RuntimeError, match=r"interrupted.*Received: optimizer='adam'$"):
        model.optimizer.apply(gradients, model.trainable_variables)
    assert_equal(model.get_weights(), initial)
    taken = kprune.snapshot(model)
    assert_trains_weights(model, model.optimizer.own())
    kprune.rewind(model, taken)
    assert int(model.optimizer.iterations) == 0
    assert_equal(model.get_weights(), initial)


def test_a_loop_of_ones_own_is_refused():
    model, callback = compiled(), Supermask()
    callback.set_model(model)
    callback.set_params({"epochs": 1})
    with pytest.raises(ValueError, match=r"custom training loops.*Received: model="):
        callback.on_train_begin()
    assert not isinstance(model.optimizer, ScoreOptimizer)


def test_a_constant_of_a_weight_of_0_is_positive():
    model = small()
    model.set_weights([np.array([[0.0, -3.0, 3.0], [0.0, 0.0, 0.0]], "float32")])
    model.fit(np.ones((2, 2)), np.zeros((2, 3)), verbose=0, callbacks=[Supermask(signed_constant=True)])
    root = np.sqrt(18 / 6)
    np.testing.assert_allclose(model.get_weights()[0], [[root, -root, root], [root] * 3], rtol=1e-6)


def test_scores_that_diverge_are_an_error():
    model = compiled(optimizer=keras.optimizers.SGD(0.1))
    x, y = data(n=32)
    with pytest.raises(ValueError, match=r"infinite or NaN.*lower the learning rate"):
        model.fit(x, np.full_like(y, np.inf), batch_size=8, verbose=0, callbacks=[Supermask("bernoulli")])


def test_a_fit_of_no_epoch_draws_no_masks():
    model = compiled()
    fit(model, Supermask("bernoulli"), epochs=0)
    assert kprune.summary(model).zeros == 0


def test_a_backup_holds_the_state_of_the_models_own_optimizer(tmp_path):
    def begun(seed):
        model = compiled(seed, optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        kprune.mask(model, store="latent")
        return model

    def callbacks():
        return [Supermask(), BackupAndRestore(tmp_path / "b.npz")]

    killed, resumed = begun(1), begun(5)
    fit(killed, epochs=1)
    state = [np.asarray(v) for v in killed.optimizer.variables]
    with pytest.raises(KeyboardInterrupt):
        fit(killed, *callbacks(), Stop())
    fit(resumed, *callbacks())
    assert_equal([np.asarray(v) for v in resumed.optimizer.variables], state)
