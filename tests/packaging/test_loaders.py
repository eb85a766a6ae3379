"""Every call in the package that reads objects or starts programs: none of them runs code from a file."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = [*(ROOT / "oekd_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
# Modules that run code from what they read, or start programs.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy", "code"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.jit.load"}
# Where a call of this name is allowed, and with which arguments.
TORCH_LOAD = {"oekd_fast/common/torch_files.py"}
SUBPROCESS = {"oekd_fast/common/machine.py"}  # asks git and the system for the versions that a summary records


@cache
def parsed(module):
    return ast.parse(module.read_text(encoding="utf-8"))


def calls(module):
    """Return the full name and the node of each call in `module`."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(module):
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def keyword(node, name):
    return next((ast.unparse(word.value) for word in node.keywords if word.arg == name), None)


def named(module):
    return module.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_no_module_runs_code_from_files(module):
    assert not FORBIDDEN_MODULES & set(imports(module))
    assert not FORBIDDEN_CALLS & {name for name, _ in calls(module)}


def test_torch_load_is_called_in_one_place_and_with_weights_only():
    found = [(named(module), node) for module in MODULES for name, node in calls(module) if name == "torch.load"]
    assert {place for place, _ in found} == TORCH_LOAD and len(found) == 1
    assert keyword(found[0][1], "weights_only") == "True"


def test_numpy_loads_no_objects():
    """Arrays are mapped by their header, which `data/readers/npy.py` reads itself."""
    assert not [named(module) for module in MODULES for name, _ in calls(module) if name in ("np.load", "numpy.load")]


def test_programs_are_started_in_one_place():
    assert {named(module) for module in MODULES if "subprocess" in imports(module)} == SUBPROCESS
