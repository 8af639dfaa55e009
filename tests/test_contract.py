"""All that is registered is in the contract: it has a row in contract_rows.py, and a docstring with an example."""

import keras
import pytest
from contract_rows import CALLBACK_ROWS, CRITERIA_ROWS, PATTERN_ROWS, SCHEDULE_ROWS, SCOPE_ROWS

import kprune
from kprune.criteria import CRITERIA
from kprune.patterns import PATTERNS
from kprune.schedules import SCHEDULES
from kprune.scopes import SCOPES

pytestmark = pytest.mark.one_session

# Read when the tests are collected, before any test (or doctest) registers an entry of its own.
REGISTERED = {
    "criteria": (set(CRITERIA), set(CRITERIA_ROWS)),
    "scopes": (set(SCOPES), set(SCOPE_ROWS)),
    "patterns": (set(PATTERNS), set(PATTERN_ROWS)),
    "schedules": (set(SCHEDULES), set(SCHEDULE_ROWS)),
    "callbacks": (set(kprune.callbacks.__all__), set(CALLBACK_ROWS)),
}


@pytest.mark.parametrize("kind", REGISTERED)
def test_every_registered_entry_has_a_row(kind):
    registered, rows = REGISTERED[kind]
    assert registered == rows, f"add a row for each new entry to {kind} in contract_rows.py, drop those of old ones"


def test_every_entry_is_documented_and_named():
    for registry in (CRITERIA, SCOPES, PATTERNS, SCHEDULES):
        for name in REGISTERED[{"criterion": "criteria"}.get(registry.kind, registry.kind + "s")][0]:
            entry = registry.get(name)
            assert ">>>" in entry.__doc__, name
            assert registry.get(entry) is entry
    for name in kprune.callbacks.__all__:
        cls = getattr(kprune.callbacks, name)
        assert ">>>" in cls.__doc__ and issubclass(cls, keras.callbacks.Callback)
