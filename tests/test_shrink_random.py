"""Shrink on random networks with random zeros, in float64: the same outputs, and channels are lost.

`make test-faults` tries 500 networks, the ordinary tests a few.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import network

import kprune

pytestmark = [pytest.mark.one_session, pytest.mark.filterwarnings("ignore:.*softmax over axis:UserWarning")]
NETWORKS = int(os.environ.get("KPRUNE_NETWORKS", 20))


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.weights)


def test_random_networks():
    shrunk = []

    @settings(
        max_examples=NETWORKS, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(st.data())
    def check(data):
        model = network(data.draw)
        x = np.random.default_rng(0).normal(size=(3, 6, 6, 2))
        shrunk.append(count(kprune.shrink(model, inputs=x, tolerance=1e-10)) < count(model))

    check()
    print(f"{len(shrunk)} random networks, {sum(shrunk)} of which lose a channel")
    assert sum(shrunk) >= 0.3 * len(shrunk)
