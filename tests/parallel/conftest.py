"""Fixtures of the executor tests."""

import pytest

from ..conftest import needs_executor


@pytest.fixture(autouse=True)
def two_threads(threads):
    """Set two intra-op threads, also on a machine with one core, so that executors have two workers."""
    threads(2)


@pytest.fixture(params=["sequential", pytest.param("parallel", marks=needs_executor)])
def kind(request):
    return request.param
