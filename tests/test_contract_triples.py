"""The contract loses no (entry, library, backend) that it has once held."""

import test_contract
from contract_triples import listed, triples


def test_no_triple_is_lost():
    assert len(listed("keras")) >= 41
    assert listed("keras") <= triples(test_contract, "keras")
