"""Packages that the examples need: tests are skipped where they are absent."""

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ..support.host_examples import HOSTS, load
from ..support.torchvision_operators import declare_missing_operators

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Ignore warnings that are not the package's own.

    pytest-xdist imports the modules of their classes in the process that collects them, where torchvision may not be
    importable.
    """
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:::(?!oekd_fast)"))


@pytest.fixture(scope="session")
def missing_operators() -> str | None:
    """Let torchvision be imported; why its operators do not load, or None."""
    return declare_missing_operators()


@pytest.fixture
def example(missing_operators):
    """Return a function that imports an example; the test is skipped if its package is absent."""

    def imported(name: str) -> ModuleType:
        package = HOSTS[name]
        if package is not None and find_spec(package) is None:
            pytest.skip(f"{package} is not installed; pip install 'oekd_fast[integrations]'")
        if package == "timm" and find_spec("torchvision") is None:
            pytest.skip("timm needs torchvision, which is not installed")
        return load(name)

    return imported


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, one_thread):
    """Run where examples may write files, and restore the state of PyTorch's generator."""
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
