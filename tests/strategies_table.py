"""Draws the table of strategies and callbacks from pytest's reports: `python strategies_table.py report.xml...`.

A cell counts the tests that passed for it; it is empty where there is none, and a test that failed is an error.
"""

import collections
import sys
from xml.etree import ElementTree

PLACES = {
    "one_device": "`OneDeviceStrategy`",
    "mirrored": "`MirroredStrategy`, 2 replicas",
    "mirrored_4": "`MirroredStrategy`, 4 replicas",
    "tpu": "`TPUStrategy` driven on the CPU, 1 core",
    "tpu_2": "`TPUStrategy` traced on the CPU, 2 cores",
    "multi_worker": "`MultiWorkerMirroredStrategy`, 2 processes",
    "data_parallel": "`DataParallel`, 4 devices",
    "model_parallel": "`ModelParallel`, 2 x 2 devices",
    "test_processes.data_parallel": "`DataParallel`, 2 processes",
    "test_processes.model_parallel": "`ModelParallel`, 2 processes",
}


def cells(paths):
    """(strategy, Keras, backend, callback) -> number of passed tests."""
    found = collections.Counter()
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            if any(child.tag in ("failure", "error") for child in case):
                raise SystemExit(f"{path}: {case.get('name')} failed")
            words = case.get("name").partition("[")[2].rstrip("]").split("-")
            module = case.get("classname").split(".")
            if "tf_distribute" in module and len(words) == 3 and words[0] in PLACES:
                found[words[0], words[1], "TensorFlow", words[2]] += 1
            elif "jax_distribution" in module and words[0] in PLACES and words[-1][0].isupper():
                place = f"test_processes.{words[0]}" if module[-1] == "test_processes" else words[0]
                found[place, "keras", "JAX", words[-1]] += 1
    return found


def table(found):
    """The Markdown lines."""
    callbacks = sorted({callback for *_, callback in found})
    yield f"| strategy | Keras | backend | {' | '.join(callbacks)} |"
    yield "| --- | --- | --- |" + " ---: |" * len(callbacks)
    rows = {key[:3] for key in found}
    for place, library, backend in sorted(rows, key=lambda row: (list(PLACES).index(row[0]), row[1])):
        numbers = (found.get((place, library, backend, callback), "") for callback in callbacks)
        yield f"| {PLACES[place]} | {library} | {backend} | {' | '.join(map(str, numbers))} |"


if __name__ == "__main__":
    print("\n".join(table(cells(sys.argv[1:]))))
