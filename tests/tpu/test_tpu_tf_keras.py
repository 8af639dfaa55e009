"""tf_keras under TPUStrategy: what libtpu makes of the train step under each callback."""

import pytest
import tf_keras
from contract_rows import KERAS_3_ONLY
from tpu_compiler import TOPOLOGIES
from tpu_rows import MODELS
from under_strategy import check_callback, check_scoring, check_step

import kprune
from kprune.criteria import CRITERIA

ROAD = "tf_keras"


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", kprune.callbacks.__all__)
def test_train_step(name, topology, note):
    if name in KERAS_3_ONLY:
        with pytest.raises(ValueError, match=KERAS_3_ONLY[name]):
            check_callback(tf_keras, name, topology)
    else:
        note(ROAD, name, topology, check_callback(tf_keras, name, topology))


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", MODELS)
def test_model(name, topology, note):
    note(ROAD, name, topology, check_step(tf_keras, MODELS[name], topology))


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_scoring(criterion):
    check_scoring(tf_keras, criterion)
