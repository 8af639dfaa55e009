"""The contract loses no (entry, library, backend) that it has once held."""

import test_contract_callbacks
import test_contract_criteria
import test_contract_patterns
import test_contract_schedules
from contract_triples import listed, triples


def test_no_triple_is_lost():
    assert len(listed("keras")) >= 41
    modules = test_contract_callbacks, test_contract_criteria, test_contract_patterns, test_contract_schedules
    assert listed("keras") <= triples("keras", *modules)
