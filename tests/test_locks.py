"""Two processes on one path: files are whole at any time, and what a run owns is owned by one process."""

import errno
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import data, mlp
from kprune.callbacks import BackupAndRestore, LotteryTicket

import kprune
from kprune.experiments.lottery_runs import run_lotteries
from kprune.experiments.runs import RunTable
from kprune.experiments.sweep import SweepRun, sweep
from kprune.runtime import files, locks
from kprune.runtime.locks import Lock
from kprune.util import temporary

pytestmark = pytest.mark.one_session


@contextmanager
def child(work):
    """A forked process that calls `work` and waits to be killed; yields its id when `work` has returned."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
            os.write(tell, b"done")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(told, 4) == b"done"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)


def refused(path):
    """What a child does to find the path owned."""
    with pytest.raises(OSError, match="is in use by process"):
        Lock(path).acquire()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Temporary names


def test_of_several_writers_each_succeeds_and_readers_see_whole_files(tmp_path):
    path, writers = tmp_path / "table.csv", []
    for letter in b"abc":
        pid = os.fork()
        if not pid:
            status = 1
            try:
                for _ in range(50):
                    files.write(path, bytes([letter]) * 100_000)
                status = 0
            finally:
                os._exit(status)
        writers.append(pid)
    ended = {}
    while len(ended) < len(writers):
        for pid in set(writers) - set(ended):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[pid] = status
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 100_000 and len(set(content)) == 1
    assert set(ended.values()) == {0}
    assert names(tmp_path) == ["table.csv"]


def test_a_link_stays_one_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"old")
    (tmp_path / "link.csv").symlink_to("table.csv")
    files.write(tmp_path / "link.csv", b"new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "table.csv").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write(tmp_path / "pipe", b"rows")
    assert os.read(reader, 9) == b"rows" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_writing_many_files_leaves_none_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        files.write(tmp_path / f"{number}.csv", b"1")
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_what_dead_processes_left_goes_and_what_belongs_to_living_ones_stays(tmp_path):
    with child(lambda: None) as dead:
        pass
    machine, other = temporary._machine(), "0123abcd"
    stale = [f".new-{machine}-{dead}-00000000-a.npz", f".new-{other}-1-00000000-a.npz", ".new-a.npz"]
    kept = [
        f".new-{machine}-{os.getppid()}-00000000-a.npz",
        f".new-{machine}-{os.getpid()}-00000000-b.npz",
        f".new-{other}-{dead}-00000000-a.npz",  # of another machine, where that process may live
        ".new-idea",  # not ours
    ]
    for name in stale + kept:
        (tmp_path / name).write_bytes(b"half")
    days_ago = time.time() - 2 * 24 * 60 * 60
    for name in (stale[1], kept[-1]):
        os.utime(tmp_path / name, (days_ago, days_ago))
    (tmp_path / f".new-{machine}-{dead}-11111111-model" / "variables").mkdir(parents=True)  # of an export
    files.write(tmp_path / "a.npz", b"whole")
    assert names(tmp_path) == sorted(["a.npz", *kept])


@pytest.mark.parametrize("name", ["x" * 251 + ".npz", "é" * 125 + ".npz", "x" * 244 + ".weights.h5"])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    def fill(temporary):
        assert temporary.endswith("".join(Path(name).suffixes))
        Path(temporary).write_bytes(b"content")

    with Lock(tmp_path / name):
        files.write(tmp_path / name, fill)
    assert (tmp_path / name).read_bytes() == b"content"
    assert names(tmp_path) == [name]


def test_a_name_that_is_too_long_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        files.write(tmp_path / ("x" * 256), b"content")
    assert names(tmp_path) == []


# Locks


def test_another_process_is_named_and_a_killed_one_owns_nothing(tmp_path):
    path = tmp_path / "new" / "state.npz"
    with child(Lock(path).acquire) as pid:
        with pytest.raises(OSError, match=rf"state.npz is in use by process {pid} on .*: wait .*Received: path="):
            Lock(path).acquire()
        with Lock(tmp_path / "new" / "other.npz"):
            assert len(names(tmp_path / "new")) == 2
    with Lock(path), Lock(path):  # a process does not stand in its own way
        assert len(names(tmp_path / "new")) == 1
    assert names(tmp_path / "new") == []


def test_a_lock_that_was_forgotten_is_taken_over_in_its_own_process(tmp_path):
    forgotten, path = Lock(tmp_path / "b.npz"), tmp_path / "b.npz"
    forgotten.acquire()
    with Lock(path):
        forgotten.release()
        with child(lambda: refused(path)):
            assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []


def test_a_forked_process_owns_nothing(tmp_path):
    lock = Lock(tmp_path / "b.npz")
    with lock, child(lock.release):  # the child's copy
        assert len(names(tmp_path)) == 1
        with child(lambda: refused(tmp_path / "b.npz")):
            assert len(names(tmp_path)) == 1


def test_a_lock_file_that_its_owner_removed_in_between_is_made_anew(tmp_path, monkeypatch):
    path, lockf, removed = tmp_path / "b.npz", locks.fcntl.lockf, []

    def late(file, how):
        if not removed:
            removed.append(locks._lock_file(path).unlink())
        lockf(file, how)

    monkeypatch.setattr(locks.fcntl, "lockf", late)
    with Lock(path), child(lambda: refused(path)):
        assert removed == [None] and len(names(tmp_path)) == 1


@pytest.mark.parametrize("why", ["does not support locks", "Windows"])
def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog, why):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if why == "Windows":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "lockf", fail)
    with caplog.at_level("WARNING", "absl"), Lock(tmp_path / "b.npz"):
        assert names(tmp_path) == []
    assert "b.npz is not locked, because" in caplog.text and why in caplog.text


def test_only_the_chief_of_several_workers_asks(tmp_path, monkeypatch):
    with child(Lock(tmp_path / "b.npz").acquire):
        monkeypatch.setattr(locks, "is_chief", lambda: False)
        Lock(tmp_path / "b.npz").acquire()


# Who uses them: nothing is trained where another process is at it.


def refuse(*_):
    raise AssertionError("nothing is to be trained")


def test_a_sweep(tmp_path):
    path = tmp_path / "cells.csv"
    with child(Lock(path).acquire), pytest.raises(OSError, match=r"cells.csv is in use by process"):
        sweep(refuse, kprune.data.load("digits"), ["random"], [10], [0], path=path, verbose=False)


def test_a_comparison_of_lotteries(tmp_path):
    path = tmp_path / "runs.csv"
    with child(Lock(path).acquire), pytest.raises(OSError, match=r"runs.csv is in use by process"):
        run_lotteries(refuse, kprune.data.load("digits"), ["init"], 1, seeds=[0], path=path, verbose=False)


def test_rows_that_the_owner_before_added_are_read(tmp_path):
    cell = SweepRun("random", 10.0, 0, 0.5, 0.5, 0.9, 0, 1.0)
    late, early = (RunTable(tmp_path / "cells.csv", SweepRun, {}, None) for _ in range(2))
    with early:
        early.add(cell)
    with late:
        assert late.cells == {cell.key: cell}
    assert names(tmp_path) == ["cells.csv"]


def test_find_ticket(tmp_path):
    with child(Lock(tmp_path / "state.npz").acquire), pytest.raises(OSError, match=r"state.npz is in use by process"):
        kprune.find_ticket(mlp(), refuse, levels=1, folder=tmp_path, verbose=False)


@pytest.mark.parametrize("make", [lambda path: LotteryTicket(1, 1, path=path), BackupAndRestore])
def test_callbacks_say_so_before_the_first_step_and_leave_no_mask(tmp_path, make):
    path, model = tmp_path / "b.npz", mlp()
    model.compile("sgd", "mse")
    with child(Lock(path).acquire), pytest.raises(OSError, match=r"b.npz is in use by process"):
        model.fit(*data(), epochs=2, verbose=0, callbacks=[make(path)])
    assert int(model.optimizer.iterations) == 0 and kprune.masked_weights(model) == []
    model.fit(*data(), epochs=2, verbose=0, callbacks=[make(path)])
    assert ".lock" not in "".join(names(tmp_path))


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path, caplog):
    (tmp_path / "other").write_text("precious")
    locks._lock_file(tmp_path / "table.csv").symlink_to(tmp_path / "other")
    with Lock(tmp_path / "table.csv"):
        assert "is not locked, because its lock file cannot be opened" in caplog.text
    assert (tmp_path / "other").read_text() == "precious"
