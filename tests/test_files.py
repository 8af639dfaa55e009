"""Paths that a user gives: what cannot be one is refused before any work."""

import resource
from pathlib import Path

import pytest
from helpers import mlp
from kprune.callbacks import BackupAndRestore, LotteryTicket, SparsityLogger

import kprune
from kprune.cli import main as cli
from kprune.cli.commands.sensitivity import _write as write_table
from kprune.experiments.lottery_runs import run_lotteries
from kprune.experiments.runs import RunTable
from kprune.experiments.sensitivity import Sensitivity, SensitivityRow
from kprune.experiments.sweep import Sweep, SweepRun, sweep
from kprune.util.plotting import new_axes

pytestmark = pytest.mark.one_session


def refuse(*_):
    raise AssertionError("nothing is to be trained")


DIGITS = kprune.data.load("digits")
WRITERS = {
    "BackupAndRestore": BackupAndRestore,
    "LotteryTicket": lambda path: LotteryTicket(1, 1, path=path),
    "SparsityLogger": SparsityLogger,
    "Ticket.save": kprune.Ticket({}, {}).save,
    "find_ticket": lambda path: kprune.find_ticket(mlp(), refuse, levels=1, folder=path, verbose=False),
    "export": lambda path: kprune.export(mlp(), path),
    "sweep": lambda path: sweep(refuse, DIGITS, ["random"], [10], path=path, verbose=False),
    "run_lotteries": lambda path: run_lotteries(refuse, DIGITS, ["init"], 1, path=path, verbose=False),
    "plot": Sweep((), (), 0.1, {}).plot,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["a\0b.npz", 5])
def test_what_is_no_path(tmp_path, monkeypatch, writer, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"Received: (path|folder|log_dir)="):
        WRITERS[writer](name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [kprune.Ticket.load, lambda path: RunTable(path, SweepRun, {}, {})])
def test_devices_and_pipes_are_not_read(read, tmp_path):
    """They may never end."""
    (tmp_path / "x.npz").symlink_to("/dev/null")
    with pytest.raises(OSError, match=r"^Only a file can be read, .* Received: path='.*x\.npz'$"):
        read(tmp_path / "x.npz")


def test_a_file_larger_than_the_memory(tmp_path, monkeypatch):
    def fails(_):
        raise MemoryError

    (tmp_path / "ticket.npz").write_bytes(b"PK")
    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(OSError, match=r"Cannot allocate memory: '.*ticket\.npz'$"):
        kprune.Ticket.load(tmp_path / "ticket.npz")


@pytest.mark.parametrize("flag", ["train --export_dir", "train --plot", "sweep --out_dir", "lottery --out_dir"])
def test_flags_that_are_no_paths(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    command, option = flag.split()
    assert cli.main([command, f"{option}=a\0b.png"]) == 2
    assert "must not contain NUL characters" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_lacks_a_layers_letters_shows_the_rest(tmp_path, monkeypatch):
    model = mlp()
    model.get_layer("hidden1").name = "größe中"
    model.save(tmp_path / "m.keras")
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert cli.main(["inspect", str(tmp_path / "m.keras")]) == 0
    assert r"gr\xf6\xdfe\u4e2d" in (tmp_path / "out").read_text("ascii")


TABLE = Sensitivity((SensitivityRow("a/kernel", 4, {0.5: 1.0}),), 1.0, "loss")


@pytest.mark.parametrize("write", [Sweep((), (), 0.1, {}).plot, lambda path: write_table(TABLE, path)])
def test_a_full_disk_leaves_the_figure_or_table_that_was_there(tmp_path, monkeypatch, write):
    file, limits = tmp_path / "made.png", resource.getrlimit(resource.RLIMIT_FSIZE)
    file.write_text("old")
    monkeypatch.setattr(Sweep, "_draw", lambda self: new_axes(1, 1)[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/made\.png'$"):
            write(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
