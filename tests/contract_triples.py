"""Which (entry, library, backend) the contract suite holds, read from the parametrization of its tests.

    PYTHONPATH=. KERAS_BACKEND=jax python tests/contract_triples.py keras test_contract_criteria test_contract_patterns

prints those of some modules of tests, on the backend at hand. fixtures/contract_triples.txt holds them all: a new entry
adds lines, and no line is ever lost.
"""

import importlib
import pathlib
import sys

import keras

import kprune
from kprune.criteria import CRITERIA
from kprune.patterns import PATTERNS
from kprune.schedules import SCHEDULES
from kprune.scopes import SCOPES

LIST = pathlib.Path(__file__).parent / "fixtures" / "contract_triples.txt"
REGISTERED = {
    "criterion": list(CRITERIA),
    "scope": list(SCOPES),
    "pattern": [*PATTERNS, "1:3", "2x3"],  # two of those that are made from their name
    "schedule": list(SCHEDULES),
    "callback": list(kprune.callbacks.__all__),
}


def words(values):
    """All strings in what a test is parametrized with."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, list | tuple | dict | set):
        for value in values:
            yield from words(value)


def triples(library, *modules):
    """The lines "kind name, library, backend" of the entries with which tests of these modules are parametrized."""
    tests = [
        getattr(test, "pytestmark", ())
        for module in modules
        for name, test in vars(module).items()
        if name.startswith("test_")
    ]
    if keras.backend.backend() != "tensorflow":
        tests = [marks for marks in tests if all(mark.name != "once" for mark in marks)]
    found = {word for marks in tests for mark in marks if mark.name == "parametrize" for word in words(mark.args[1])}
    entries = [f"{kind} {name}" for kind, names in REGISTERED.items() for name in names if name in found]
    return {f"{entry}, {library}, {keras.backend.backend()}" for entry in entries}


def listed(library):
    """The lines of the list that are of this library and of the backend at hand."""
    return {line for line in LIST.read_text().splitlines() if line.endswith(f", {library}, {keras.backend.backend()}")}


if __name__ == "__main__":
    print("\n".join(sorted(triples(sys.argv[1], *map(importlib.import_module, sys.argv[2:])))))
