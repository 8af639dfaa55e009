"""As tests/test_contract_triples.py, for tf_keras."""

import test_contract_tf_keras
from contract_triples import listed, triples


def test_no_triple_is_lost():
    assert len(listed("tf_keras")) >= 16
    assert listed("tf_keras") <= triples("tf_keras", test_contract_tf_keras)
