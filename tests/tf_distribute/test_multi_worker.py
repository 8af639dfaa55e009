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
    assert -signal.SIGKILL in lost or lost == [0, 0], "\n".join(error[-3000:] for error in errors)
    return lost


def result(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def masks_of(arrays):
    """batch -> weight -> mask"""
    masks = {tuple(map(int, name.split("/")[1:])): array for name, array in arrays.items() if name.startswith("mask/")}
    batches = 1 + max(batch for batch, _ in masks)
    return [[mask for (batch, _), mask in masks.items() if batch == number] for number in range(batches)]


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a cluster: in "killed", each training lost a worker and went on; in "whole", none did."""
    folder = tmp_path_factory.mktemp("cluster")
    # The chief or the other worker, in the epoch of that number.
    for kind, victim, epoch in zip(KINDS, (1, 0, 1), (1, 2, 2), strict=True):
        lost = run_workers(folder, kind, victim, epoch)
        assert lost[victim] == -signal.SIGKILL, "nothing was killed, so this tests nothing"
        assert not (folder / "killed" / f"result-{victim}" / f"{kind}.npz").exists()
    assert run_workers(folder) == [0, 0]
    return folder


CELLS = [pytest.param(kind, id=f"multi_worker-tf_keras-{kind}") for kind in KINDS]


@pytest.mark.parametrize("kind", [*CELLS, pytest.param("loop", id="multi_worker-keras-GradualPruning")])
def test_masks_are_those_of_one_process(kind, trained, tmp_path):
    chief, other = (result(trained / "whole" / f"result-{rank}" / f"{kind}.npz") for rank in range(2))
    assert list(chief) == list(other)
    for name in chief:
        np.testing.assert_array_equal(chief[name], other[name], err_msg=name)
    model, masks = worker.loop() if kind == "loop" else worker.train(kind, tmp_path)
    assert_same_masks(masks_of(chief), masks)
    worker.save(tmp_path / "alone.npz", model, masks)
    alone = result(tmp_path / "alone.npz")
    assert list(alone) == list(chief)
    for name in alone:
        np.testing.assert_allclose(chief[name], alone[name], atol=1e-4, err_msg=name)
    assert 0.7 < 1 - np.mean(np.concatenate([mask.ravel() for mask in masks[-1]])) < 0.85


@pytest.mark.parametrize("kind", CELLS)
def test_only_the_chief_writes(kind, trained):
    written = {path.name for path in files_below(trained / "whole" / "worker-0" / kind)}
    assert any("tfevents" in name for name in written)
    assert ("ticket.npz" in written) == (kind == "LotteryTicket")
    assert files_below(trained / "whole" / "worker-1") == files_below(trained / "killed" / "worker-1") == []


@pytest.mark.parametrize("kind", CELLS)
def test_after_a_kill_it_ends_as_if_none_had_been(kind, trained):
    for rank in range(2):
        resumed, expected = (result(trained / f / f"result-{rank}" / f"{kind}.npz") for f in ("killed", "whole"))
        names = [name for name in expected if name.startswith("model/")]
        assert names == [name for name in resumed if name.startswith("model/")]
        for name in names:
            np.testing.assert_array_equal(resumed[name], expected[name], err_msg=name)
        # Those of the batches after the backup, which was made at the end of an epoch.
        after, masks = masks_of(resumed), masks_of(expected)
        assert 0 < len(after) < len(masks)
        assert_same_masks(after, masks[-len(after) :])


def test_keras_3_still_cannot_fit_on_several_workers(trained):
    for rank in range(2):
        name, said = json.loads((trained / "whole" / f"result-{rank}" / "keras_fit.json").read_text())
        assert name == "ValueError" and "PerReplica" in said, (
            "Keras's fit no longer fails as it did: if it works, drop the warning in callbacks/base.py, the line in "
            f"the README and this test. It ended with {name}: {said}"
        )
