"""Ranks of the tests of several processes."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from ..runs.conftest import arrays  # noqa: F401
from ..support.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this PyTorch was built without gloo")
    pool = Ranks(4)
    yield pool
    pool.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start processes as slow: each process imports torch, which takes seconds."""
    for item in items:
        if "ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
