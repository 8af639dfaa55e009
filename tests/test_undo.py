"""What is refused, or fails while it begins, leaves the model as it was, bit for bit."""

import logging
import signal

import keras
import numpy as np
import pytest
from helpers import CHEAP, data, halve
from keras import layers
from kprune.callbacks import BackupAndRestore, GradualPruning, LotteryTicket, PruneAtInit
from kprune.callbacks._carrier import carrier_of
from kprune.callbacks.base import check_zeros

import kprune
from kprune.masks.below import all_layers
from kprune.runtime.files import pack, unpack
from kprune.runtime.optimizers import all_variables
from kprune.schedules import PolynomialDecay


def network(masked=False):
    keras.utils.set_random_seed(1)
    hidden = layers.Dense(6, "relu", kernel_regularizer="l2", name="hidden")
    model = keras.Sequential([keras.Input((8,)), hidden, layers.Dropout(0.2), layers.Dense(3, name="logits")])
    model.compile(keras.optimizers.Adam(1e-2), "mse", **CHEAP)
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables[2:]:
        slot.assign(np.full(slot.shape, 0.5, "float32"))
    if masked:
        kprune.mask(model)
        halve(model)
    return model


def state(model):
    """All that must stay: values with their names, and what the layers are."""
    values = [(v.name, v.numpy().tobytes()) for v in [*model.variables, *all_variables(model.optimizer)]]
    return values, [type(layer) for layer in all_layers(model)], [type(v.regularizer) for v in model.weights]


def fit(model, *callbacks, epochs=2):
    return model.fit(*data(), batch_size=16, epochs=epochs, verbose=0, callbacks=list(callbacks))


def fails(context):
    raise KeyboardInterrupt


def prunes():
    return PruneAtInit("magnitude", 0.7, verbose=False)


def gradual(**options):
    return GradualPruning(PolynomialDecay(0.6, 0.7, 0, 4), criterion="magnitude_increase", **options)


def lottery(path=None):
    return LotteryTicket(levels=1, epochs_per_level=1, rate=0.5, path=path)


@pytest.fixture(scope="module")
def backup(tmp_path_factory):
    """The bytes of a backup of a fit like those below."""
    path = tmp_path_factory.mktemp("backup") / "b.npz"
    fit(network(), prunes(), BackupAndRestore(path, delete=False), lottery())
    return path.read_bytes()


def _replace(part, value):
    def change(arrays, about):
        key = next(key for key in arrays if key.startswith(part))
        arrays[key] = value(arrays[key])

    return change


def _fewer_callbacks(arrays, about):
    del about["callbacks"]["holders"][-1]


def _no_epoch(arrays, about):
    about["callbacks"]["epoch"] = "x"


WRONG = {
    "state of a callback": _replace("callbacks/3 LotteryTicket/progress", lambda a: a[:5]),
    "seeds": _replace("callbacks/seeds/", lambda a: a[:1]),
    "dtype of seeds": _replace("callbacks/seeds/", lambda a: a.astype("complex64")),
    "epoch of the states": _no_epoch,
    "dtype of a weight": _replace("now/weights", lambda a: a.astype("complex64")),
    "dtype of a slot": _replace("now/optimizer/2", lambda a: a.astype("int32")),
    "dtype of a mask": _replace("mask/", lambda a: a.astype("float32")),
    "shape of a weight": _replace("now/weights", lambda a: a.T),
    "callbacks": _fewer_callbacks,
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wrong", ["damaged", *WRONG])
def test_a_backup_that_is_refused_changes_nothing(wrong, masked, backup, tmp_path):
    path = tmp_path / "b.npz"
    if wrong == "damaged":
        path.write_bytes(backup[:-100])
    else:
        arrays, about = unpack(backup, "backup")
        WRONG[wrong](arrays, about)
        path.write_bytes(pack(arrays, about))
    model = network(masked)
    before = state(model)
    ticket = tmp_path / "ticket.npz"
    for _ in range(2):  # as soon as it is refused, its locks are free
        with pytest.raises(ValueError, match=r"Received: .*(file|path)='.*b.npz'"):
            fit(model, prunes(), BackupAndRestore(path), lottery(ticket))
        assert state(model) == before
        assert carrier_of(model) is None
        assert not [file for file in tmp_path.iterdir() if file.name.startswith(".lock")]
    assert model._initial_epoch is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "last, error",
    [
        (lambda: PruneAtInit(fails, 0.9, verbose=False), KeyboardInterrupt),
        (lambda: PruneAtInit(lambda context: {}, 0.9, verbose=False), ValueError),
        (lambda: LotteryTicket(levels=3, epochs_per_level=1), ValueError),
        (lambda: kprune.callbacks.TakeSnapshot(1000), ValueError),
        (lambda: kprune.callbacks.GradualPruning(PolynomialDecay(0.8, 0.9, 0, 4), "movement"), ValueError),
    ],
)
def test_whatever_fails_as_a_fit_begins_undoes_the_callbacks_before_it(last, error, masked):
    model = network(masked)
    before = state(model)
    with pytest.raises(error):
        fit(model, prunes(), gradual(), last())
    assert state(model) == before
    assert carrier_of(model) is None


def test_a_fit_that_begins_too_late_changes_nothing():
    model = network()
    before = state(model)
    with pytest.raises(ValueError, match="middle of a lottery"):
        model.fit(*data(), epochs=2, initial_epoch=1, verbose=0, callbacks=[prunes(), lottery()])
    assert state(model) == before


def test_all_callbacks_are_asked_before_the_first_one_scores(tmp_path):
    asked, path = [], tmp_path / "b.npz"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="truncated or damaged"):
        fit(network(), PruneAtInit(asked.append, 0.5, verbose=False), BackupAndRestore(path))
    assert asked == []


@pytest.mark.parametrize("masked", [False, True])
def test_evaluate_and_predict_leave_no_masks(masked):
    model = network(masked)
    x, y = data()
    model.evaluate(x, y, verbose=0)  # makes the metrics
    before = state(model)
    wanted = model.predict(x, verbose=0)
    assert model.evaluate(x, y, verbose=0, callbacks=[prunes(), gradual()]) == model.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0, callbacks=[prunes()]), wanted)
    assert state(model) == before
    assert carrier_of(model) is None


def test_masks_stay_where_a_fit_evaluates():
    model, callback = network(), prunes()
    model.fit(*data(), epochs=2, verbose=0, validation_data=data(), callbacks=[callback])
    assert kprune.summary(model).sparsity == pytest.approx(0.7, abs=0.02)
    model.evaluate(*data(), verbose=0, callbacks=[callback])
    assert kprune.summary(model).sparsity == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "where", ["api.slots", "types.keep_where"]
)  # before a mask is set; and after, before the zeros
@pytest.mark.parametrize("apply", [False, True])
def test_what_is_interrupted_changes_nothing(apply, where, masked, monkeypatch):
    model, other = network(masked), network(True)
    kprune.prune(other, "magnitude", 0.7, verbose=False)
    ticket = kprune.Ticket.of(other)
    before = state(model)
    monkeypatch.setattr(f"kprune.masks.{where}", lambda *args, **kwargs: fails(None))
    with pytest.raises(KeyboardInterrupt):
        if apply:
            ticket.apply(model)
        else:
            kprune.prune(model, "magnitude", 0.7, verbose=False)
    monkeypatch.undo()
    assert state(model) == before


def test_ctrl_c_comes_when_all_masks_are_set(monkeypatch):
    model, write = network(True), kprune.MaskedWeight.write
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(*arguments, **more):
        write(*arguments, **more)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.undo()

    monkeypatch.setattr(kprune.MaskedWeight, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kprune.set_masks(model, {w.path: np.zeros(w.shape, bool) for w in kprune.masked_weights(model)})
    assert not any(w.kept().any() for w in kprune.masked_weights(model))
    assert not any(w.variable.numpy().any() for w in kprune.masked_weights(model))
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_a_strip_that_is_interrupted_loses_nothing_behind_the_masks(monkeypatch):
    model, read, done = network(), kprune.MaskedWeight.read, []
    kprune.mask(model, store="latent")
    kprune.prune(model, "magnitude", 0.7, verbose=False)
    before = state(model)
    monkeypatch.setattr(kprune.MaskedWeight, "read", lambda w: fails(w) if done else (done.append(w), read(w))[1])
    with pytest.raises(KeyboardInterrupt):
        kprune.strip(model)
    assert state(model) == before


@pytest.mark.parametrize("masked", [False, True])
def test_a_ticket_whose_masks_are_not_bool_changes_nothing(masked):
    model, other = network(masked), network(True)
    weights = {path: value + 1 for path, value in kprune.Ticket.of(other).weights.items()}
    ticket = kprune.Ticket({path: mask.astype(int) for path, mask in kprune.Ticket.of(other).masks.items()}, weights)
    before = state(model)
    with pytest.raises(ValueError, match=r"must be a bool array.*Received.*dtype=int64"):
        ticket.apply(model)
    assert state(model) == before


def test_nan_is_called_nan(caplog):
    model = network(True)
    ticket = kprune.Ticket.of(model)
    ticket.weights[next(iter(ticket.weights))][0, 0] = np.nan
    with caplog.at_level(logging.WARNING, "absl"):
        ticket.apply(model)
    assert "The ticket contains NaN in sequential" in caplog.text
    weight = kprune.masked_weights(model)[0]
    weight.variable.assign(np.full(weight.shape, np.nan, "float32"))
    with pytest.raises(RuntimeError, match=f"^{weight.path} became NaN: training has diverged"):
        check_zeros(model)
