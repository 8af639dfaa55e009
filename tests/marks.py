"""What pytest is told of single parameters."""

import pytest


def with_slow(values, slow):
    """Parameters of which those of the second list are left to `make test-slow`; a tuple is one value for each name."""
    return [*values, *(pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in slow)]
