"""Files that version 0.1.0 wrote, on TensorFlow and on JAX: they load on either, and fits go on to the end they had.

Files of weights alone (Keras's own backups are some) are the exception: 0.1.0 named masked layers otherwise in them,
and an error says so, and what to do.
"""

import csv
import dataclasses
import json
import re
import shutil

import keras
import networks_of_0_1_0 as networks
import numpy as np
import pytest
from helpers import assert_zero
from kprune.callbacks import BackupAndRestore, EarlyBird, GradualPruning, LotteryTicket
from networks_of_0_1_0 import BACKED_UP, CHEAP, FIXTURES, SAVED, X, Y, all_weights, assert_stored, held, stored

import kprune
from kprune.experiments.lottery_runs import run_lotteries
from kprune.experiments.sweep import sweep

STORED = {wrote: stored(wrote) for wrote in SAVED}
TABLES = json.loads((FIXTURES / "tables" / "expected.json").read_text())
CLOSE = 1e-4  # another backend, version or processor adds in another order
BACKUPS = [(wrote, kind) for wrote, kinds in BACKED_UP.items() for kind in kinds]


def in_a_copy(path, tmp_path):
    """A fit deletes the backup it has used, a lottery writes on: never in the fixtures."""
    copy = shutil.copytree if path.is_dir() else shutil.copy
    return copy(path, tmp_path / path.name)


def assert_holds(model, name, wrote):
    """Masks and weights bit for bit, outputs but for rounding; what is trained on stays sparse."""
    expected, x = STORED[wrote][name], networks.inputs_for(name)
    model.compile("sgd", "mse", **CHEAP)
    assert_stored(held(model)[0], expected["masks"])
    assert_stored([model.predict(x[:8], verbose=0)], expected["outputs"], atol=CLOSE)
    assert_stored(all_weights(model), expected["weights"])
    model.train_on_batch(x[:8], networks.waves(8, *model.output_shape[1:]))
    assert_zero(model)


@pytest.mark.parametrize(("wrote", "name"), [(wrote, name) for wrote, names in SAVED.items() for name in names])
def test_a_keras_file(wrote, name):
    model = keras.saving.load_model(FIXTURES / wrote / f"{name}.keras")
    if name == "sequential":  # the one whose optimizer has slots
        slots = [np.asarray(v).astype("float64") for v in model.optimizer.variables]
        assert_stored(slots, STORED[wrote][name]["optimizer"])
    assert_holds(model, name, wrote)


REFUSED = r"saved by kprune 0\.1\.0, which used other names for masked layers: load them"


@pytest.mark.parametrize(("name", "wrote"), networks.WEIGHTS_ALONE.items())
def test_weights_alone_are_refused_with_a_way_out(name, wrote):
    model = networks.masked(name)
    with pytest.raises(ValueError, match=REFUSED):
        model.load_weights(FIXTURES / wrote / f"{name}.weights.h5")


def test_keras_own_backup_is_refused_with_a_way_out(tmp_path):
    backup = keras.callbacks.BackupAndRestore(in_a_copy(FIXTURES / "tensorflow" / "movement", tmp_path))
    callback, epochs = callbacks_of("movement")
    with pytest.raises(ValueError, match=REFUSED):
        fit(networks.trainable(), epochs, callback, backup)


@pytest.mark.parametrize(("name", "wrote"), networks.TICKETS.items())
def test_a_ticket(name, wrote):
    ticket = kprune.Ticket.load(FIXTURES / wrote / "ticket.npz")
    assert ticket.sparsity == 0.5 and ticket.about == {"author": "0.1.0"}
    expected = STORED[wrote][name]
    assert_stored(ticket.masks.values(), expected["masks"])
    assert_stored(ticket.weights.values(), expected["weights"])
    model = networks.masked(name)
    ticket.apply(model)
    assert_stored(held(model)[0], expected["masks"])
    assert_stored(all_weights(model), expected["weights"])


class Begun(keras.callbacks.Callback):
    """What a fit begins its first epoch with."""

    def on_epoch_begin(self, epoch, logs=None):
        if not hasattr(self, "epoch"):
            self.epoch, (self.masks, self.values) = epoch, held(self.model)


def fit(model, epochs, *callbacks, **arguments):
    arguments = dict(batch_size=8, shuffle=False, verbose=0, callbacks=list(callbacks), **arguments)
    return model.fit(X, Y, epochs=epochs, **arguments)


def callbacks_of(kind):
    """The callback with which the fit was begun, and its number of epochs: it was killed after half of them."""
    if kind == "lottery":
        return LotteryTicket(levels=2, epochs_per_level=2, rate=0.5, rewind_to=3, scope="layerwise"), 6
    if kind == "early_bird":
        return EarlyBird(sparsity=0.6, patience=3, threshold=0.3, scope="layerwise", stop=False), 6
    schedule = kprune.schedules.PolynomialDecay(0.0, 0.8, begin_step=4, end_step=20, frequency=4)
    return GradualPruning(schedule, criterion=kind, scope="layerwise"), 4


@pytest.mark.parametrize(("wrote", "kind"), BACKUPS)
def test_a_fit_goes_on_from_a_backup(wrote, kind, tmp_path):
    expected = STORED[wrote][kind]
    backup = BackupAndRestore(in_a_copy(FIXTURES / wrote / f"{kind}.npz", tmp_path))
    (callback, epochs), begun = callbacks_of(kind), Begun()
    model = networks.trainable(dropout=0.2 if kind == "lottery" else 0.0)
    fit(model, epochs, callback, backup, begun)
    assert begun.epoch == epochs // 2
    assert_stored(begun.masks, expected["begin_masks"])
    assert_stored(begun.values, expected["begin_values"])
    assert_zero(model)
    if kind == "lottery":
        assert [row["sparsity"] for row in callback.ticket.about["results"]] == pytest.approx([0, 22 / 45, 33 / 45])
    if kind == "lottery" and wrote != keras.backend.backend():
        return  # whose dropout draws other numbers
    assert_stored(held(model)[0], expected["end_masks"])
    assert_stored(all_weights(model), expected["end_weights"], atol=CLOSE)


def test_a_lottery_around_ones_own_fits_goes_on(tmp_path):
    folder, trained = in_a_copy(FIXTURES / "tensorflow" / "find_ticket", tmp_path), []

    def train(model, level):
        trained.append(level.number)
        return fit(model, 2, *level.callbacks, initial_epoch=level.initial_epoch)

    options = dict(levels=2, rate=0.5, rewind_to="epoch:1", scope="layerwise", folder=folder, verbose=False)
    ticket = kprune.find_ticket(networks.trainable(), train, **options)
    assert trained == [2]
    expected = STORED["tensorflow"]["find_ticket"]
    assert_stored(ticket.masks.values(), expected["masks"])
    assert_stored(ticket.weights.values(), expected["weights"])


def renamed(text):
    """By today's words; 0.1.0 called a mode of lotteries otherwise."""
    return re.sub(r'(?<=[",])rewind(?=[",])', "weights", text)


def cells_beside(cells, name, path):
    """The cells beyond those of the file, which must be there as they were written; so must the file's own rows."""
    expected = json.loads(renamed(json.dumps(TABLES[name])))
    old, new = cells[: len(expected)], cells[len(expected) :]
    assert [{key: dataclasses.asdict(cell)[key] for key in expected[0]} for cell in old] == expected
    written = [path.read_text().splitlines() for path in (FIXTURES / "tables" / path.name, path)]
    assert all(now.startswith(renamed(then)) for then, now in zip(*written, strict=False))
    with open(path, newline="") as file:
        assert len(list(csv.DictReader(file))) == len(cells)
    return new


def test_a_sweep_goes_on(tmp_path):
    path, built = in_a_copy(FIXTURES / "tables" / "sweep.csv", tmp_path), []

    def build(seed):
        built.append(seed)
        return networks.classifier(seed)

    options = dict(seeds=[0], epochs=1, path=path, verbose=False)
    report = sweep(build, networks.waves_dataset(), ["magnitude", "random"], [1, 2], **options)
    [new] = cells_beside(report.cells, "sweep", path)
    assert built == [0] and (new.method, new.compression, new.sparsity) == ("random", 2.0, 22 / 45)


def test_lotteries_side_by_side_go_on(tmp_path):
    path = in_a_copy(FIXTURES / "tables" / "lottery.csv", tmp_path)
    in_a_copy(FIXTURES / "tables" / "lottery-levels", tmp_path)
    options = dict(levels=1, rate=0.5, rewind_to="epoch:1", seeds=[0], epochs=2, path=path, verbose=False)
    report = run_lotteries(networks.classifier, networks.waves_dataset(), ["weights", "shuffle"], **options)
    [new] = cells_beside(
        report.cells, "lottery", path
    )  # a control needs the masks and the rewind point beside the file
    assert (new.mode, new.masks_of, new.density) == ("shuffle", "weights", 23 / 45)
