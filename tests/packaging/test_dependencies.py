"""pyproject.toml declares the packages that the tree imports, and no others."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="tomllib, which reads pyproject.toml, needs Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
# The folders that may import what the dependencies ("") or an extra declare.
FOLDERS = {
    "": ("oekd_fast", "kernels"),
    "train": ("oekd_fast",),
    "trackers": ("oekd_fast",),
    "students": ("oekd_fast",),
    "scaling": ("oekd_fast",),
    "export": ("oekd_fast",),
    "hub": ("oekd_fast",),
    "gpu": ("oekd_fast", "kernels"),
    "integrations": ("examples",),
    "bench": ("bench",),
    "test": ("tests",),
    "docs": ("docs",),
    "dev": ("setup.py",),
}
FOR_STUDENTS = {"students", "scaling", "export", "hub"}
# The extras that an installation which runs a folder's code has, besides the dependencies.
INSTALLED = {
    "oekd_fast": {"train", "gpu", "trackers", "integrations", *FOR_STUDENTS},
    "kernels": {"gpu"},
    "bench": {"train", "gpu", "bench", "export"},
    "tests": {"train", "gpu", "integrations", "bench", "test", "trackers", *FOR_STUDENTS},
    "docs": {"train", "gpu", "bench", "test", "docs"},
    "examples": {"train", "integrations"},
    "setup.py": {"dev"},
}
TOOLS = {
    "alembic": "the store of mlflow on this machine needs it",
    "build": "python -m build, in the Makefile",
    "ninja": "torch.utils.cpp_extension runs it to build the executor",
    "pytest-xdist": "pytest -n, in the Makefile",
    "ruff": "make lint",
    "sqlalchemy": "the store of mlflow on this machine needs it",
    "tensorboard": "torch.utils.tensorboard needs it",
}
UNDECLARED = {
    "IPython": "the kernel of every notebook has it, and it is imported in notebooks alone",
    "docutils": "sphinx requires it",
    "nbformat": "nbclient requires it",
    "markdown_it": "rich requires it",
    "torchvision": "timm requires it",
    "liger_kernel": "bench.gpu compares with it if it is installed",
}
MODULES = {
    "mlflow-skinny": "mlflow",
    "myst-parser": "myst_parser",
    "pillow": "PIL",
    "pytest-benchmark": "pytest_benchmark",
    "scikit-learn": "sklearn",
}
OWN = {"oekd_fast", "bench", "tests", "kernels"}
IMPORTING = {"require", "import_module", "importorskip", "find_spec"}  # functions that import a module by its name


def python_files(folder: str) -> Iterable[Path]:
    path = ROOT / folder
    return [path] if path.is_file() else path.rglob("*.py")


def top_level(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, by statements or by the functions of `IMPORTING`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in IMPORTING and node.args and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value


@cache
def third_party(folder: str) -> set[str]:
    """Return the modules that a folder imports from packages of others."""
    names = top_level(name for file in python_files(folder) for name in imported(file))
    local = {file.stem for file in python_files(folder)} if folder == "docs" else set()
    return names - set(sys.stdlib_module_names) - OWN - local


def configured() -> set[str]:
    """Return the strings in Sphinx's configuration, which names its extensions and its theme."""
    file = ROOT / "docs" / "conf.py"
    nodes = ast.walk(ast.parse(file.read_text())) if file.exists() else ()
    return top_level(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def declared() -> dict[str, list[str]]:
    """Return the names of the packages that the dependencies ("") and each extra declare, other than our own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    names = {group: [re.match(r"[\w.-]+", line)[0] for line in lines] for group, lines in groups.items()}
    return {group: [name for name in found if name != "oekd_fast"] for group, found in names.items()}


def module_of(package: str) -> str:
    return MODULES.get(package, package)


DECLARED = declared()


def test_every_extra_has_folders():
    assert DECLARED.keys() <= FOLDERS.keys()


@pytest.mark.parametrize("group, package", [(group, package) for group, found in DECLARED.items() for package in found])
def test_a_declared_package_is_imported_where_it_is_declared_for(group, package):
    if package in TOOLS:
        return
    used = set().union(*(third_party(folder) for folder in FOLDERS[group]), configured() if group == "docs" else ())
    assert module_of(package) in used, f"{package}: expected an import in {FOLDERS[group]}, found none"


@pytest.mark.parametrize("folder", [folder for folder in INSTALLED if (ROOT / folder).exists()])
def test_an_imported_package_is_declared(folder):
    groups = {""} | INSTALLED[folder]
    available = {module_of(package) for group in groups for package in DECLARED.get(group, ())}
    assert third_party(folder) - available - UNDECLARED.keys() == set()


def test_tools_are_declared():
    assert TOOLS.keys() <= {package for found in DECLARED.values() for package in found}


def test_pinned_packages_are_declared():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {re.match(r"[\w.-]+", line)[0] for line in lines if not line.startswith("#")}
    assert pinned <= {package for found in DECLARED.values() for package in found}
