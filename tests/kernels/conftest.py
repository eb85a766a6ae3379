import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from ..support import stress


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills uninitialised tensors, so that elements which are never written show."""
    with stress.poisoned_memory():
        yield
