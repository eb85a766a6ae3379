"""The import rule: a package imports its own modules and packages of lower levels, never a sibling or one above."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "oekd_fast"
# From the bottom up. `kernels` is the top-level folder that installs as oekd_fast.kernels.
LEVELS = (
    {"common"},
    {"native", "kernels"},
    {"data"},
    {"losses", "layers", "parallel", "distributed", "figures", "paper"},
    {"config", "models"},
    {"family"},
    {"latency"},
    {"training", "reporting"},
    {"runs"},
    {"reproduction", "choice"},
    {"report", "reproduce", "export", "pick", "check_data"},
    {"results"},
    {"train"},
    {"completion"},
    {"__main__"},
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
MODULES = [*ROOT.rglob("*.py"), *(ROOT.parent / "kernels").rglob("*.py")]


def package_of(module: Path) -> str:
    parts = ("kernels",) if (ROOT.parent / "kernels") in module.parents else module.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imported(module: Path) -> set[str]:
    """Packages and modules directly below oekd_fast that `module` imports, whether at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "oekd_fast":
            names |= {f"oekd_fast.{alias.name}" for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_module":
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.split(".")[1] for name in names if name.startswith("oekd_fast.")} - {"_executor"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_a_module_imports_only_its_own_package_and_lower_levels(module):
    own = package_of(module)
    if own == "__init__":  # the public names, which are loaded at first use
        return
    wrong = {name for name in imported(module) if name != own and LEVEL_OF.get(name, len(LEVELS)) >= LEVEL_OF[own]}
    assert not wrong, f"{own} (level {LEVEL_OF[own]}) imports {sorted(wrong)}"


def test_every_module_has_a_level():
    assert {package_of(module) for module in MODULES} - {"__init__"} == set(LEVEL_OF)


def test_only_native_loads_the_compiled_code():
    names = re.compile(r"oekd_fast\._executor|_kernels\.so\"")
    loading = {package_of(module) for module in MODULES if names.search(module.read_text())}
    assert loading == {"native"}


def test_at_most_ten_modules_stay_directly_in_the_package():
    assert len(list(ROOT.glob("*.py"))) <= 10
