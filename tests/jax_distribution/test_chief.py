"""Of several processes only the first writes files. (`test_processes.py` has several; here one is told its place.)"""

import jax
import numpy as np
import pytest
from small import BATCH, data, network

import kprune
from kprune import callbacks
from kprune.runtime import files
from kprune.runtime.distribution import is_chief

WRITING = {
    "BackupAndRestore": lambda folder: callbacks.BackupAndRestore(folder / "backup.npz", delete=False),
    "LotteryTicket": lambda folder: callbacks.LotteryTicket(1, epochs_per_level=1, path=folder / "ticket.npz"),
    # TensorFlow, which writes the logs, cannot be imported here: only the chief would want it.
    "SparsityLogger": lambda folder: callbacks.SparsityLogger(str(folder / "logs")),
}


def fit(callback):
    model = network()
    kprune.mask(model)
    model.fit(*data(), batch_size=BATCH, epochs=2, verbose=0, callbacks=[callback])
    return model


@pytest.fixture
def second(monkeypatch):
    """This process is not the chief."""
    assert is_chief()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert not is_chief()


@pytest.mark.parametrize("name", WRITING)
def test_another_process_writes_nothing(name, tmp_path, second):
    fit(WRITING[name](tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITING)
def test_the_chief_does(name, tmp_path):
    if name == "SparsityLogger":
        with pytest.raises(ImportError, match="tensorflow"):
            fit(WRITING[name](tmp_path))
    else:
        fit(WRITING[name](tmp_path))
        assert list(tmp_path.iterdir())


def test_another_process_leaves_the_backup_to_the_chief(tmp_path, monkeypatch):
    path = tmp_path / "backup.npz"
    path.write_bytes(b"of the chief")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    backup = callbacks.BackupAndRestore(path)
    fit(backup)
    assert path.read_bytes() == b"of the chief"


def test_find_ticket_writes_nothing_elsewhere(tmp_path, second):
    model = network()

    def train(model, level):
        return model.fit(*data(), batch_size=BATCH, callbacks=level.callbacks, verbose=0)

    kprune.find_ticket(model, train, levels=1, folder=tmp_path, verbose=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_read_is_what_was_written(tmp_path):
    assert files.read(tmp_path / "none") is None
    files.write(tmp_path / "some", b"bytes")
    assert files.read(tmp_path / "some") == b"bytes"
    assert np.frombuffer(files.read(tmp_path / "some"), np.uint8).size == 5
