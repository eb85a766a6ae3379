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
