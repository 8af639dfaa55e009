"""tf_keras and tfmot are imported here and in no other folder of tests."""

import gc

import pytest
import tf_keras


@pytest.fixture(autouse=True)
def seeded_tf_keras():
    tf_keras.backend.clear_session()
    gc.freeze()  # see the other conftest
    tf_keras.utils.set_random_seed(0)
    yield
    tf_keras.mixed_precision.set_global_policy("float32")
