"""Two processes on this machine that train together end as one does, also where one was killed and both began anew."""

import pathlib
import signal
import socket

import forked
import numpy as np
import pytest
from small import DISTRIBUTIONS
from worker import CALLBACKS, PRUNE_NOTHING, train

import kprune

IMPORTS = ("jax", "keras", "kprune")
PROGRAM = pathlib.Path(__file__).with_name("worker.py")
JOBS = [f"{how}-{name}" for how in DISTRIBUTIONS for name in CALLBACKS]
# job -> the step of its fit at which the second process is killed
KILLS = {"data_parallel-GradualPruning": 15, "model_parallel-SynFlow": 8, "data_parallel-LotteryTicket": 21}


def run(folder, jobs, death="never"):
    """Two processes that do the jobs; False if one was killed, and then the other, as by a manager of a cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    logs = [folder / f"log-{rank}.txt" for rank in (0, 1)]
    words = [(PROGRAM, rank, port, folder, ",".join(jobs), death) for rank in (0, 1)]
    processes = [forked.start(*each, imports=IMPORTS, log=log) for each, log in zip(words, logs, strict=True)]
    try:
        processes[1].join(timeout=300)
        if processes[1].exitcode == -signal.SIGKILL:
            return False
        processes[0].join(timeout=60)
        assert [process.exitcode for process in processes] == [0, 0], [log.read_text()[-3000:] for log in logs]
        return True
    finally:
        for process in processes:
            process.kill()
            process.join()


def result(folder, job, rank):
    with np.load(folder / f"{job}-{rank}.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, JOBS)
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_end_as_one(whole, job, tmp_path):
    first, second, one = result(whole, job, 0), result(whole, job, 1), train(None, job.split("-")[1], tmp_path)
    assert list(first) == list(second) == list(one)
    for name, array in one.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], array, rtol=2e-4, atol=1e-6, err_msg=name)
    masks = [array for name, array in first.items() if name.startswith("mask/")]
    sparsity = 1 - sum(m.sum() for m in masks) / sum(m.size for m in masks)
    assert 0.4 < sparsity < 0.6 if job.split("-")[1] in PRUNE_NOTHING else 0.65 < sparsity < 0.8


def test_every_callback_has_a_job():
    assert {name.partition(" ")[0] for name in CALLBACKS} == set(kprune.callbacks.__all__)


def test_only_the_chief_writes(whole):
    assert [path.name for path in (whole / "files-0").iterdir()] == ["ticket.npz"]
    assert not list((whole / "files-1").iterdir())


def test_killed_and_started_again(whole, tmp_path):
    for job, step in KILLS.items():
        assert not run(tmp_path, KILLS, f"{job}:{step}"), "the step was not reached, so this test tests nothing"
        # Only the chief sees the file from which both will go on.
        assert (tmp_path / "files-0" / f"{job}.npz").exists() and not list((tmp_path / "files-1").iterdir())
    assert run(tmp_path, KILLS)
    for job in KILLS:
        for rank in (0, 1):
            expected, found = result(whole, job, rank), result(tmp_path, job, rank)
            assert list(found) == list(expected)
            assert found.pop("first epoch") > expected.pop("first epoch") == 0
            for name, array in found.items():
                np.testing.assert_array_equal(array, expected[name], err_msg=name)
