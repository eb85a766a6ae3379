"""Fixtures of the tests of executors."""

import pytest

from .calls import native


@pytest.fixture(autouse=True)
def two_threads(threads):
    """Two intra-op threads, on a machine with one core too: enough for a pool of two."""
    threads(2)


@pytest.fixture(params=["sequential", pytest.param("parallel", marks=native)])
def kind(request):
    return request.param
