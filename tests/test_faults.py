"""Killed at any moment and started again, a training ends as one that was never killed, bit for bit."""

import json
import os
import pathlib
import signal
import subprocess

import keras
import numpy as np
import pytest
from helpers import new_process, start_process
from killed import KINDS, POINTS

PROGRAM = pathlib.Path(__file__).with_name("killed.py")
# `make test-faults` sets it: that many random kills for each kind of training.
KILLS = int(os.environ.get("KPRUNE_KILLS", "0"))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Says of trainings of a kind (folder, point, count) whether each came to its end; otherwise it was killed."""
    processes, errors = {}, tmp_path_factory.mktemp("errors") / "stderr"

    def ended(kind, *each):
        library = "tf_keras" if kind.startswith("tf_keras") else "keras"
        if library not in processes:
            with open(errors, "a") as stderr:
                processes[library] = start_process(PROGRAM, library, stdin=subprocess.PIPE, stderr=stderr)
        for folder, point, count in each:
            print(json.dumps([kind, str(folder), point, int(count)]), file=processes[library].stdin, flush=True)
            end = processes[library].stdout.readline().strip()
            assert end in ("0", str(-signal.SIGKILL)), errors.read_text()[-3000:]
            yield end == "0"

    yield lambda *words: list(ended(*words))
    for process in processes.values():
        process.communicate()  # which ends when there are no more lines


def result(folder):
    with np.load(folder / "result.npz") as file:
        return {name: file[name] for name in file.files}


def assert_same_end(one, other):
    one, other = result(one), result(other)
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        pytest.param("lottery", [("in a step", 5), ("half a file", 2), ("in rewinding", 1)], marks=pytest.mark.slow),
        pytest.param("find_ticket", [("before the rename", 5)], marks=pytest.mark.slow),
        ("synflow", [("in setting masks", 1)]),
        ("large_init", [("in pruning", 4)]),
        pytest.param("tf_keras lottery", [("before the rename", 3), ("in rewinding", 1)], marks=pytest.mark.slow),
    ],
)
def test_killed_at_these_points(kind, kills, tmp_path, trainings):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    ended = trainings(kind, (whole, "never", 1), *((folder, *kill) for kill in kills), (folder, "never", 1))
    assert not any(ended[1:-1]), "a point was not reached, so this test tests nothing"
    assert ended[0] and ended[-1]
    assert_same_end(whole, folder)


@pytest.mark.skipif(not KILLS, reason="a process of its own, and 18 million weights: make test-faults")
def test_memory_of_pruning_is_a_byte_a_weight_for_the_mask_and_nothing_afterwards():
    process = new_process(pathlib.Path(__file__).with_name("stays.py"))
    assert process.returncode == 0, process.stderr[-3000:]
    masked, stripped = map(float, process.stdout.split()[-2:])
    print(f"{keras.backend.backend()}: {masked:.2f} bytes a weight while masked, {stripped:.2f} once stripped")
    assert masked < 2 and stripped < 1


@pytest.mark.skipif(not KILLS, reason="many random kills: make test-faults")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random(kind, tmp_path, trainings):
    (tmp_path / "whole").mkdir()
    assert trainings(kind, (tmp_path / "whole", "never", 1)) == [True]
    draw, kills, turn = np.random.default_rng(len(kind)), 0, 0
    while kills < KILLS:
        turn += 1
        folder = tmp_path / f"killed-{turn}"
        folder.mkdir()
        ended = False
        while not ended:
            # At most three kills in a run, so that it ends.
            point, count = draw.choice(list(POINTS)), int(draw.integers(1, 12 if kills % 2 else 5))
            [ended] = trainings(kind, (folder, point, count) if kills < 3 * turn else (folder, "never", 1))
            kills += not ended
        assert_same_end(tmp_path / "whole", folder)
    print(f"{kind}: {kills} kills in {turn} runs, each ended bit-identical")
