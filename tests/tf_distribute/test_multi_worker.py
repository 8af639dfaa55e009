"""Two processes on this machine as the workers of a cluster, under MultiWorkerMirroredStrategy."""

import json
import signal
import socket
from multiprocessing.connection import wait

import forked
import numpy as np
import pytest
import worker
from distributed import CALLBACKS, assert_same_masks

pytestmark = [pytest.mark.one_session(trains_on=True), pytest.mark.optimized]

IMPORTS = ("keras", "tf_keras", "tensorflow_model_optimization", "kprune", "sklearn.datasets")
KINDS = tuple(worker.KINDS)
WRITING = ("LotteryTicket", "SparsityLogger")


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
    logs = [folder / f"log-{index}.txt" for index in range(2)]
    for index, log in enumerate(logs):
        env = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}
        processes.append(forked.start(worker.__file__, folder, *words, imports=IMPORTS, log=log, env=env))
    try:
        wait([process.sentinel for process in processes], timeout=300)
        if all(process.exitcode in (0, None) for process in processes):
            for process in processes:
                process.join(timeout=300)
    finally:
        lost = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
    assert -signal.SIGKILL in lost or lost == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
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


def ends_of(folder):
    """For each worker, how the calls ended that are to fail."""
    return [json.loads((folder / "each" / f"result-{rank}" / "ends.json").read_text()) for rank in range(2)]


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
WITH = [pytest.param(library, name, id=f"multi_worker-{library}-{name}") for library, name in worker.WITH]


def ends_as_alone(folder, name, alone, path):
    """The masks at each batch's end, which are those of one process, as are the weights at the end."""
    chief, other = (result(folder / f"result-{rank}" / f"{name}.npz") for rank in range(2))
    assert list(chief) == list(other)
    for key in chief:
        np.testing.assert_array_equal(chief[key], other[key], err_msg=key)
    model, masks = alone
    assert_same_masks(masks_of(chief), masks)
    worker.save(path, model, masks)
    expected = result(path)
    assert list(expected) == list(chief)
    for key, array in expected.items():
        np.testing.assert_allclose(chief[key], array, atol=1e-4, err_msg=key)
    return masks


@pytest.mark.parametrize("kind", CELLS)
def test_masks_are_those_of_one_process(kind, trained, tmp_path):
    masks = ends_as_alone(trained / "whole", kind, worker.train(kind, tmp_path), tmp_path / "alone.npz")
    assert 0.7 < 1 - np.mean(np.concatenate([mask.ravel() for mask in masks[-1]])) < 0.85


@pytest.mark.parametrize(("library", "name"), WITH)
def test_each_callback_ends_as_in_one_process(library, name, trained, tmp_path):
    alone = worker.train_with(library, name, tmp_path)
    masks = ends_as_alone(trained / "each", f"{library}-{name}", alone, tmp_path / "alone.npz")
    assert sum(int((~mask).sum()) for mask in masks[-1]) == CALLBACKS[name].zeros
    # The backup is deleted at the end.
    assert bool(files_below(trained / "each" / "worker-0" / f"{library}-{name}")) == (name in WRITING)
    assert files_below(trained / "each" / "worker-1") == []


@pytest.mark.parametrize("name", [pytest.param("backup", id="multi_worker-tf_keras-BackupAndRestore")])
def test_a_tf_keras_model_is_backed_up_by_its_own_callback(name, trained):
    for ends in ends_of(trained):
        kind, said = ends[name]
        assert kind == "ValueError" and "use tf_keras.callbacks.BackupAndRestore" in said


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
    for ends in ends_of(trained):
        name, said = ends["keras_fit"]
        assert name == "ValueError" and "PerReplica" in said, (
            "Keras's fit no longer fails as it did: if it works, drop the warning in callbacks/base.py, the line in "
            f"docs/limits.md and this test. It ended with {name}: {said}"
        )
