"""Two processes on this machine as the workers of a cluster, under MultiWorkerMirroredStrategy."""

import json
import signal
import socket
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import numpy as np
import pytest
import worker
from distributed import assert_same_masks
from helpers import start_process

pytestmark = pytest.mark.one_session

KINDS = tuple(worker.KINDS)


def free_addresses(n):
    """Addresses of this machine whose ports nobody listens at."""
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def run_workers(folder, *words):
    """Runs two workers to their end: their exit codes. As soon as one is lost all are killed, as a cluster would."""
    cluster, processes = {"worker": free_addresses(2)}, []
    for index in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        env = {"TF_CONFIG": config, "KERAS_BACKEND": "tensorflow"}
        processes.append(start_process(worker.__file__, folder, *words, env=env))
    with ThreadPoolExecutor(2) as pool:
        try:
            outputs = [pool.submit(process.communicate) for process in processes]
            wait(outputs, timeout=300, return_when=FIRST_COMPLETED)
            if all(process.poll() in (0, None) for process in processes):
                wait(outputs, timeout=300)
        finally:
            lost = [process.poll() for process in processes]
            for process in processes:
                process.kill()
    errors = [output.result()[1] for output in outputs]
    assert all(code in (0, None, -signal.SIGKILL) for code in lost), "\n".join(error[-3000:] for error in errors)
    return lost


def result(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def masks_of(arrays):
    """batch -> weight -> mask"""
    masks = {tuple(map(int, name.split("/")[1:])): array for name, array in arrays.items() if name.startswith("mask/")}
    batches = 1 + max(batch for batch, _ in masks)
    return [[mask for (batch, _), mask in masks.items() if batch == number] for number in range(batches)]


def assert_equal(one, other):
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a cluster that made all trainings, none of them killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_workers(folder) == [0, 0]
    return folder


@pytest.mark.parametrize("kind", [*KINDS, "loop"])
def test_masks_are_those_of_one_process(kind, whole, tmp_path):
    chief, other = (result(whole / f"result-{rank}" / f"{kind}.npz") for rank in range(2))
    assert_equal(chief, other)
    model, masks = worker.loop(tmp_path) if kind == "loop" else worker.train(kind, tmp_path)
    assert_same_masks(masks_of(chief), masks)
    worker.save(tmp_path / "alone.npz", model, masks)
    alone = result(tmp_path / "alone.npz")
    assert list(alone) == list(chief)
    for name in alone:
        np.testing.assert_allclose(chief[name], alone[name], atol=1e-4, err_msg=name)
    assert 0.7 < 1 - np.mean(np.concatenate([mask.ravel() for mask in masks[-1]])) < 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_chief_writes(kind, whole):
    written = {path.name for path in files_below(whole / "worker-0" / kind)}
    assert any("tfevents" in name for name in written)
    assert ("ticket.npz" in written) == (kind == "LotteryTicket")
    assert files_below(whole / "worker-1") == []


def test_killed_workers_go_on(whole, tmp_path):
    # Each training loses a worker, the chief or the other one, in the epoch of that number.
    for kind, victim, epoch in zip(KINDS, (1, 0, 1), (1, 2, 2), strict=True):
        lost = run_workers(tmp_path, kind, victim, epoch)
        assert lost[victim] == -signal.SIGKILL, "nothing was killed, so this test tests nothing"
        assert not (tmp_path / "result-0" / f"{kind}.npz").exists()
    assert run_workers(tmp_path, "none") == [0, 0]
    for kind in KINDS:
        for rank in range(2):
            resumed, expected = (result(f / f"result-{rank}" / f"{kind}.npz") for f in (tmp_path, whole))
            model = {name for name in expected if name.startswith("model/")}
            assert model == {name for name in resumed if name.startswith("model/")}
            for name in model:
                np.testing.assert_array_equal(resumed[name], expected[name], err_msg=name)
            # Of the batches after the backup, which is that of the epoch before.
            after = masks_of(resumed)
            assert 0 < len(after) < len(masks_of(expected))
            assert_same_masks(after, masks_of(expected)[-len(after) :])


def test_keras_3_still_cannot_fit_on_several_workers(whole):
    for rank in range(2):
        name, said = json.loads((whole / f"result-{rank}" / "keras_fit.json").read_text())
        assert name == "ValueError" and "PerReplica" in said, (
            "Keras's fit no longer fails as it did: if it works, drop the warning in callbacks/base.py, the line in "
            f"the README and this test. It ended with {name}: {said}"
        )
