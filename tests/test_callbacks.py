"""The callbacks in `fit`: what they prune and when, what they log, and how they get along."""

import functools
import itertools

import keras
import numpy as np
import pytest
from helpers import EachBatch, assert_zero, data, mlp
from keras import layers
from kprune.callbacks import EarlyBird, GradualPruning, PruneAtInit, SparsityLogger, SynFlow

import kprune
from kprune.flops import kernel_uses
from kprune.report.reached import reached
from kprune.runtime.optimizers import iterations
from kprune.schedules import Constant, PerLayer, PolynomialDecay
from kprune.util.ranking import zeros_for

TOTAL = 8 * 12 + 12 * 12 + 12 * 3


def zeros(model):
    return sum(int((~w.kept()).sum()) for w in kprune.masked_weights(model))


class Recorder(keras.callbacks.Callback):
    """(optimizer steps, zeros) at each batch end; to be listed after the pruning callback."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        model = self.model
        self.seen.append((iterations(model.optimizer), zeros(model)))


def fit(model, callbacks, steps=8, epochs=1, **kwargs):
    x, y = data(n=8 * steps)
    return model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=callbacks, shuffle=False, **kwargs)


def compiled(optimizer="adam", **kwargs):
    model = mlp()
    model.compile(optimizer, "mse", **kwargs)
    return model


@pytest.mark.parametrize("criterion", ["magnitude", "random", "synflow"])
def test_prune_at_init_is_exact_from_the_first_step(criterion):
    model, recorder = compiled(), Recorder()
    fit(model, [PruneAtInit(criterion, 0.83), recorder, EachBatch(assert_zero)])
    assert {z for _, z in recorder.seen} == {zeros_for(TOTAL, 0.83)}


def test_synflow_callback_equals_prune():
    one, other = mlp(), mlp()
    other.set_weights(one.get_weights())
    one.compile("sgd", "mse")
    fit(one, [SynFlow(0.9, rounds=20)])
    expected = kprune.prune(other, "synflow", 0.9, rounds=20, verbose=False)
    for weight, mask in zip(kprune.masked_weights(one), expected.values(), strict=True):
        np.testing.assert_array_equal(weight.kept(), mask)


def test_a_second_fit_goes_on_with_the_masks_it_has():
    model = compiled()
    callback = PruneAtInit("magnitude", 0.5)
    fit(model, [callback])
    first = [w.kept() for w in kprune.masked_weights(model)]
    fit(model, [callback])
    for mask, weight in zip(first, kprune.masked_weights(model), strict=True):
        np.testing.assert_array_equal(mask, weight.kept())


def test_gradual_pruning_follows_its_schedule_step_by_step():
    schedule = PolynomialDecay(0.1, 0.8, begin_step=2, end_step=7, frequency=2)
    model, recorder = compiled(), Recorder()
    fit(model, [GradualPruning(schedule), recorder, EachBatch(assert_zero_if_pruned)], steps=6, epochs=2)
    by_step = {2: schedule(2), 3: schedule(2), 4: schedule(4), 5: schedule(4), 6: schedule(6)}
    expected = [(step, zeros_for(TOTAL, 0 if step < 2 else by_step.get(step, 0.8))) for step in range(1, 13)]
    assert recorder.seen == expected


def assert_zero_if_pruned(model):
    if zeros(model):
        assert_zero(model)


@pytest.mark.parametrize("steps, frequency", [(50, 100), (199, 100), (7, 3)])
def test_the_last_update_lands_on_the_final_sparsity(steps, frequency):
    """tfmot never prunes in the first case and ends at 70 % in the second."""
    model = compiled("sgd")
    schedule = PolynomialDecay(0.0, 0.8, 0, steps, frequency=frequency)
    fit(model, [GradualPruning(schedule)], steps=steps)
    assert zeros(model) == zeros_for(TOTAL, 0.8)


def test_tfmot_schedules_are_taken():
    import tensorflow_model_optimization as tfmot

    for schedule in (
        tfmot.sparsity.keras.PolynomialDecay(0.2, 0.7, begin_step=1, end_step=6),
        tfmot.sparsity.keras.ConstantSparsity(0.7, begin_step=0),
    ):
        model = compiled("sgd")
        fit(model, [GradualPruning(schedule)])
        assert zeros(model) == zeros_for(TOTAL, float(np.float32(0.7)))


@pytest.mark.parametrize(
    "how",
    [
        dict(steps_per_execution=4),
        dict(steps_per_execution=3, jit_compile=True),
        dict(optimizer=lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)),
        dict(optimizer=lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))),
        dict(run_eagerly=True),
    ],
    ids=lambda how: ",".join(how),
)
def test_steps_are_the_optimizers(how):
    how = dict(how)
    model = compiled(how.pop("optimizer", lambda: "sgd")(), **how)
    schedule, recorder = PolynomialDecay(0.0, 0.8, 0, 6, frequency=1), Recorder()
    fit(model, [GradualPruning(schedule), recorder], steps=12)
    assert recorder.seen[-1][0] == (6 if "SGD" in str(how) or model.optimizer.gradient_accumulation_steps else 12)
    for step, count in recorder.seen:
        assert count == zeros_for(TOTAL, schedule(step))
    assert zeros(model) == zeros_for(TOTAL, 0.8)


@pytest.mark.parametrize("start", [0, 3])
def test_the_best_epoch_comes_back_under_the_masks_of_the_last(start):
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["worse"] = epoch

    model, schedule = compiled(), PolynomialDecay(0.0, 0.75, begin_step=10, end_step=16, frequency=2)
    best = keras.callbacks.EarlyStopping("worse", 0, 9, mode="min", restore_best_weights=True, start_from_epoch=start)
    fit(model, [Worse(), GradualPruning(schedule), best], epochs=5)
    assert kprune.summary(model).sparsity == 0.75
    x = data()[0]
    masked = model.predict(x, verbose=0)
    np.testing.assert_array_equal(kprune.strip(model).predict(x, verbose=0), masked)
    assert kprune.summary(model).zeros == zeros_for(TOTAL, 0.75)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "taylor"])
def test_an_option_of_a_criterion_goes_through_partial(criterion):
    def masks(option):
        model = keras.Sequential([keras.Input((8,)), layers.Dense(12), layers.BatchNormalization(), layers.Dense(3)])
        for seed, weight in enumerate(model.trainable_variables):
            weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
        model.compile("sgd", "mse")
        function = functools.partial(getattr(kprune.criteria, criterion), **option)
        fit(model, [PruneAtInit(function, 0.5, data=data())])
        return np.concatenate([w.kept().ravel() for w in kprune.masked_weights(model)])

    plain, inference, training = masks({}), masks({"training": False}), masks({"training": True})
    np.testing.assert_array_equal(plain, inference)
    assert (plain != training).any()


def test_a_resumed_fit_keeps_its_place_in_the_schedule():
    schedule = PolynomialDecay(0.0, 0.8, 0, 16, frequency=2)
    model, recorder = compiled("sgd"), Recorder()
    fit(model, [GradualPruning(schedule), recorder])
    fit(model, [GradualPruning(schedule), recorder])  # a new callback: only the optimizer knows the step
    assert [z for _, z in recorder.seen] == [zeros_for(TOTAL, schedule(step - step % 2)) for step in range(1, 17)]


@pytest.mark.parametrize("epochs, warned", [(1, True), (2, False)])
def test_a_fit_that_is_too_short_is_reported_before_it_starts(epochs, warned, caplog):
    model = compiled()
    with caplog.at_level("WARNING", logger="absl"):
        fit(model, [GradualPruning(PolynomialDecay(0.0, 0.8, 0, 10))], steps=6, epochs=epochs)
    assert ("ends at step 6" in caplog.text and "end_step=10" in caplog.text) == warned


def test_a_fit_that_ends_early_says_what_it_did_not_reach(caplog):
    model = compiled()
    callback = GradualPruning(PolynomialDecay(0.0, 0.8, 8, 12))
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: setattr(model, "stop_training", True))
    with caplog.at_level("WARNING", logger="absl"):
        fit(model, [callback, stop], steps=6, epochs=3)
    said = "training ended at step 6, before the schedule's end_step=12, so the final sparsity is 0 instead of 0.8"
    assert f"{said}. Set end_step to at most 6, or train longer." in caplog.text
    assert caplog.text.count("GradualPruning") == 1
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        fit(model, [GradualPruning(0.8, end=12)], steps=6)  # from step 6 on
    assert "before the schedule's end_step=18" in caplog.text
    assert "Set end to at most 6 steps, or train longer." in caplog.text


# A sparsity alone


def test_a_sparsity_alone_is_reached_between_a_tenth_and_seven_tenths_of_the_fit():
    model, recorder, callback = compiled(), Recorder(), GradualPruning(0.8)
    fit(model, [callback, recorder], steps=10, epochs=2)
    assert callback.schedule == PolynomialDecay(0.0, 0.8, 2, 14, frequency=1)
    assert [z for _, z in recorder.seen] == [zeros_for(TOTAL, callback.schedule(step)) for step in range(1, 21)]


@pytest.mark.parametrize("begin, end, steps", [(2, 0.5, (2, 10)), (0.0, 6, (0, 6)), (0, 1.0, (0, 20)), (3, 5, (3, 5))])
def test_begin_and_end_are_shares_or_steps(begin, end, steps):
    callback = GradualPruning(0.8, begin=begin, end=end, frequency=3)
    fit(compiled(), [callback], steps=10, epochs=2)
    assert callback.schedule == PolynomialDecay(0.0, 0.8, *steps, frequency=3)


def test_a_sparsity_is_reached_anew_in_each_fit():
    """Counted from where the fit starts, also in the middle of the epochs; accumulated gradients are steps."""
    model = compiled(keras.optimizers.Adam(gradient_accumulation_steps=2))
    callback = GradualPruning(0.5)
    fit(model, [callback], steps=10, epochs=2)
    assert callback.schedule == PolynomialDecay(0.0, 0.5, 1, 7, frequency=1)
    again = GradualPruning(0.8)
    for _ in range(2):
        start = iterations(model.optimizer)
        fit(model, [again], steps=10, epochs=6, initial_epoch=2)  # 20 steps
        assert again.schedule == PolynomialDecay(0.0, 0.8, start + 2, start + 14, frequency=1)
    assert zeros(model) == zeros_for(TOTAL, 0.8)


def test_a_sparsity_for_each_group():
    model = compiled()
    fit(model, [GradualPruning({"hidden1": 0.5, "hidden": 0.75})], steps=10)
    assert by_layer(model) == (48, 108, 0)


@pytest.mark.parametrize("schedule", [0.5, {"hidden": 0.5}])
def test_a_share_of_unknown_steps_is_refused_and_nothing_is_changed(schedule):
    model, (x, y) = compiled(), data()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"pass steps_per_epoch to fit\(\).*Received: begin=0.1$"):
        model.fit(((x, y) for _ in range(3)), verbose=0, callbacks=[GradualPruning(schedule)])
    assert not kprune.masked_weights(model)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.fit(((x, y) for _ in range(3)), verbose=0, callbacks=[GradualPruning(schedule, begin=1, end=2)])
    assert zeros(model) == zeros_for(TOTAL if schedule == 0.5 else TOTAL - 36, 0.5)


def test_an_expression_beside_a_sparsity_has_to_be_found():
    model = compiled()
    with pytest.raises(ValueError, match="matches none of these weights"):
        fit(model, [GradualPruning({"convolution": 0.5})])
    assert not kprune.masked_weights(model)


def test_an_end_that_comes_before_the_begin_in_this_fit_is_refused():
    with pytest.raises(
        ValueError,
        match=r"if training ends at step 8, `begin` is step 6 and `end` is step 5\. Received: begin=6, end=0.7$",
    ):
        fit(compiled(), [GradualPruning(0.5, begin=6)])


# What a fit says


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradualPruning(0.5),
        lambda: PruneAtInit("magnitude", 0.5),
        lambda: EarlyBird("magnitude", 0.5, patience=2, threshold=1.0, stop=False),
    ],
)
def test_a_pruning_fit_shows_its_sparsity_and_says_at_its_end_what_was_reached(make, capsys, caplog):
    x, y = data(n=64)
    model = compiled()
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=2, callbacks=[make(), make(), SparsityLogger()])
    assert history.history["sparsity"][-1] == 0.5
    printed = capsys.readouterr().out
    line = "kprune: sparsity 50.00% of 3 masked weights, 45.54% of all 303 parameters; not masked: 3 bias"
    assert printed.count(line) == 1 and "sparsity: 0.5" in printed
    with caplog.at_level("INFO", logger="absl"):
        fit(model, [make()])
    assert caplog.text.count(line) == 1 and not capsys.readouterr().out


def test_what_is_not_masked_is_counted_by_why():
    model = mlp()
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    kprune.mask(model, filters="logits")
    fit(model, [PruneAtInit("magnitude", 0.5)])
    assert reached(model).endswith(
        "of 1 masked weight, 5.94% of all 303 parameters; not masked: 1 frozen kernel, 3 bias, 1 left out kernel"
    )


def test_weights_that_are_pruned_to_nothing_are_said_once_in_a_fit(caplog):
    def last_layer_first(context):
        return {w.path: np.full(w.shape, 0.0 if "logits" in w.path else 1.0) for w in context.weights}

    callback = GradualPruning(PolynomialDecay(0.5, 0.8, 1, 6, frequency=1), last_layer_first)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("WARNING", logger="absl"):
            fit(compiled(), [callback])
        assert caplog.text.count("pruned completely") == 1


def by_layer(model):
    """Zeros of hidden1 (96 weights), hidden2 (144) and logits (36)."""
    return tuple(int((~w.kept()).sum()) for w in kprune.masked_weights(model))


def test_each_group_of_weights_follows_its_own_schedule():
    one = PolynomialDecay(0.0, 0.5, 2, 6, power=1, frequency=2)
    schedule = PerLayer({"hidden1": one, "hidden": Constant(0.75, 3), "nothing more|lstm|logits": Constant(0.0, 1)})
    model, seen = compiled(), []
    fit(model, [GradualPruning(schedule), EachBatch(lambda model: seen.append(by_layer(model)))])
    # hidden1 is 96 weights: 0, 24, 48 zeros from steps 2, 4, 6 on, also where the others update in between.
    assert seen == [(0, 0, 0), (0, 0, 0), (0, 108, 0), (24, 108, 0), (24, 108, 0), *3 * [(48, 108, 0)]]


def test_what_no_expression_of_a_per_layer_matches_is_left_alone_and_groups_share_their_sparsity():
    model = compiled()
    model.get_layer("hidden1").kernel.assign(1e-3 * np.ones((8, 12)))
    schedule = PerLayer({"hidden": Constant(0.4)})
    fit(model, [GradualPruning(schedule, criterion=first_layers_first)])
    assert by_layer(model) == (96, 0, 0)  # of 240 in the group, all of the first layer's
    model = compiled()
    fit(model, [GradualPruning(schedule, criterion=first_layers_first, scope="layerwise")])
    assert by_layer(model) == (38, 57, 0)


def first_layers_first(context):
    return {w.path: np.full(w.shape, float(i)) for i, w in enumerate(context.weights)}


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_a_per_layer_that_matches_nothing_is_refused_before_anything_changes(masked):
    model = compiled()
    if masked:
        kprune.mask(model)
    before = model.get_weights()
    schedule = PerLayer({"hidden": Constant(0.5), "convolution": Constant(0.5, begin_step=5)})
    with pytest.raises(ValueError, match=r"hidden1/kernel, .*Received: expression='convolution'$"):
        fit(model, [GradualPruning(schedule)])
    assert bool(kprune.masked_weights(model)) == masked
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert iterations(model.optimizer) == 0


def test_a_fit_too_short_for_a_member_of_a_per_layer_is_reported(caplog):
    schedule = PerLayer({"hidden": PolynomialDecay(0.0, 0.8, 0, 10), "logits": PolynomialDecay(0.0, 0.5, 0, 6)})
    with caplog.at_level("WARNING", logger="absl"):
        fit(compiled(), [GradualPruning(schedule)], steps=6)
    assert "for 'hidden': training ends at step 6" in caplog.text and "instead of 0.8" in caplog.text
    assert "'logits'" not in caplog.text


def test_an_unknown_number_of_steps_is_reported(caplog):
    x, y = data()

    def batches():
        yield x, y

    with caplog.at_level("WARNING", logger="absl"):
        compiled().fit(batches(), verbose=0, callbacks=[GradualPruning(Constant(0.5))])
    assert "Pass steps_per_epoch" in caplog.text


def test_several_masking_callbacks_the_highest_sparsity_rules():
    schedule = PolynomialDecay(0.0, 0.8, 0, 8, frequency=1)
    model, recorder = compiled(), Recorder()
    fit(model, [PruneAtInit("magnitude", 0.5), GradualPruning(schedule), PruneAtInit("random", 0.3), recorder])
    assert [z for _, z in recorder.seen] == [zeros_for(TOTAL, max(0.5, schedule(step))) for step in range(1, 9)]


def test_masks_only_shrink():
    masks = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks.append(np.concatenate([w.kept().ravel() for w in kprune.masked_weights(self.model)]))

    schedule = PolynomialDecay(0.0, 0.9, 0, 8, frequency=1)
    fit(compiled(), [GradualPruning(schedule, criterion="random"), GradualPruning(schedule, scope="layerwise"), Keep()])
    assert all(not np.any(later & ~earlier) for earlier, later in itertools.pairwise(masks))


def test_sparsity_logger(caplog, tmp_path):
    model = compiled()
    callbacks = [GradualPruning(PolynomialDecay(0.2, 0.8, 0, 8, frequency=8)), SparsityLogger(str(tmp_path / "tb"))]
    csv = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    with caplog.at_level("INFO", logger="absl"):
        history = fit(model, [*callbacks, csv], steps=4, epochs=2)
    assert history.history["sparsity"] == [zeros_for(TOTAL, 0.2) / TOTAL, zeros_for(TOTAL, 0.8) / TOTAL]
    assert "sparsity" in (tmp_path / "log.csv").read_text().splitlines()[0]
    assert "hidden1/kernel" in caplog.text
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert len(events.Tags()["tensors"]) == 2 + 3
    # Beside 276 masked entries there are 27 biases.
    assert history.history["sparsity_of_all"] == [zeros_for(TOTAL, 0.2) / 303, zeros_for(TOTAL, 0.8) / 303]


def test_the_sparsity_logger_traces_the_model_once_in_each_fit(monkeypatch, caplog):
    traced, model, logger = [], compiled(), SparsityLogger()
    for name in ("kprune.callbacks.sparsity_logger.kernel_uses", "kprune.report.summary.kernel_uses"):
        monkeypatch.setattr(name, lambda model: traced.append(model) or kernel_uses(model))
    for _ in range(2):
        traced.clear(), caplog.clear()
        with caplog.at_level("INFO", logger="absl"):
            fit(model, [GradualPruning(PolynomialDecay(0.2, 0.8, 0, 8, frequency=8)), logger], steps=2, epochs=2)
        assert traced == [model]
        assert str(kprune.summary(model)) in caplog.text


def test_the_model_is_masked_without_being_asked():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(4)(inputs)))
    model.compile("sgd", "mse")
    fit(model, [PruneAtInit("magnitude", 0.5)])
    assert len(kprune.masked_weights(model)) == 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PruneAtInit("magnitude", 1.0), r"Received: sparsity=1.0$"),
        (lambda: PruneAtInit("magnitude", 90), r"Received: sparsity=90$"),
        (lambda: PruneAtInit("magnitud", 0.5), r"'magnitude'.*Received: criterion='magnitud'$"),
        (lambda: PruneAtInit("magnitude", 0.5, scope="locl"), r"'layerwise'.*Received: scope='locl'$"),
        (lambda: PruneAtInit("magnitude", 0.5, pattern="2:5:4"), r"'2:4'.*Received: pattern='2:5:4'$"),
        (lambda: SynFlow(0.5, rounds=0), r"Received: rounds=0$"),
        (lambda: GradualPruning("polynomial"), r"Received: schedule='polynomial'$"),
        (lambda: GradualPruning(1.0), r"Received: schedule=1.0$"),
        (lambda: GradualPruning(True), r"Received: schedule=True$"),
        (lambda: GradualPruning({"dense": 80}), r"Received: schedule\['dense'\]=80$"),
        (lambda: GradualPruning({}), r"Received: schedule={}$"),
        (lambda: GradualPruning({"(": 0.5}), r"Received: expression='\('"),
        (lambda: GradualPruning(0.5, begin=0.5, end=0.2), r"Received: begin=0.5, end=0.2$"),
        (lambda: GradualPruning(0.5, end=1.5), r"Received: end=1.5$"),
        (lambda: GradualPruning(0.5, begin=-1), r"Received: begin=-1$"),
        (lambda: GradualPruning(0.5, frequency=0), r"Received: frequency=0$"),
        (lambda: GradualPruning(Constant(0.5), end=0.8), r"Received: schedule=Constant.*end=0.8, frequency=None$"),
        (lambda: GradualPruning(Constant(0.5), criterion=3), r"Received: criterion=3$"),
    ],
)
def test_bad_arguments_answer_when_the_callback_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_wrong_kernel_in_mid_training_is_noticed():
    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weight = kprune.masked_weights(self.model)[1]
            weight.variable.assign(np.ones(weight.shape))

    with pytest.raises(
        RuntimeError, match=r"hidden2/kernel are no longer 0.*average .*mask only the network that is trained"
    ):
        fit(compiled(), [PruneAtInit("magnitude", 0.5), Spoil()])


def test_a_custom_train_step_is_masked_too():
    """A model whose `call` is not what is trained: its layers are, one by one."""

    class TwoParts(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = layers.Dense(6, "relu"), layers.Dense(8)

        def call(self, x):
            return self.decoder(self.encoder(x))

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(self.decoder(self.encoder(2 * x)) - x))

    model = TwoParts()
    model(np.zeros((1, 8), "float32"))
    model.compile("adam")
    x, _ = data(n=64)
    model.fit(x, batch_size=8, epochs=2, verbose=0, callbacks=[PruneAtInit("magnitude", 0.5), EachBatch(assert_zero)])
    assert zeros(model) == 48


def test_a_model_without_weights_is_refused_with_the_remedy():
    """On TensorFlow, `fit` builds a model of unknown input shape only in its first step, on JAX before it."""
    model = keras.Sequential([layers.Dense(3)])
    model.compile("sgd", "mse")
    if keras.backend.backend() == "jax":
        fit(model, [PruneAtInit("magnitude", 0.5)])
        assert zeros(model) == 12
        return
    with pytest.raises(ValueError, match=r"build it first by calling it on a batch"):
        fit(model, [PruneAtInit("magnitude", 0.5)])
