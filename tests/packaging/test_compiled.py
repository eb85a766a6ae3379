"""The compiled code: what it needs of torch, and what works where it does not fit."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from oekd_fast import native

from ..conftest import needs_executor, needs_native

KERNELS = Path(native.__file__).with_name("_kernels.so")
# A small family, the loss with its backward pass, and whether the executor was opened. Prints the numbers.
CODE = """
import torch, warnings
{before}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from oekd_fast import ensemble_kd_loss, native
for warning in caught:
    if "oekd_fast" in warning.filename:
        print("warning", warning.message)
from oekd_fast.parallel.executor import make_executor

generator = torch.Generator().manual_seed(0)
z = [torch.randn(5, 7, generator=generator).requires_grad_() for _ in range(3)]
out = ensemble_kd_loss(z, torch.tensor([0, 1, 2, 3, 6]), backend="native")
out.loss.backward()
print("node", type(out.loss.grad_fn).__name__)
print("numbers", out.loss.item(), [s.grad.double().sum().item() for s in z], [s.grad.abs().max().item() for s in z])
print("executor", type(make_executor("auto", 2, "cpu")).__name__)
print("opened", "_executor." in open("/proc/self/maps").read())
"""


def run(before: str = "") -> dict[str, str]:
    code = CODE.format(before=textwrap.dedent(before))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@needs_native
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm, of binutils, is not installed")
def test_the_kernels_use_the_stable_abi_and_no_python():
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(KERNELS)], check=True, capture_output=True, text=True)
    names = {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()}
    ours = {name for name in names if re.search("torch|c10|aten|at::|2at|Py", name)}
    assert ours and all(re.fullmatch("(aoti_)?torch_[a-z0-9_]+", name) for name in ours), sorted(ours)


@needs_native
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm, of binutils, is not installed")
def test_the_kernels_export_one_function():
    listed = subprocess.run(["nm", "-D", "--defined-only", str(KERNELS)], check=True, capture_output=True, text=True)
    functions = [line.split()[-1] for line in listed.stdout.splitlines() if line.split()[1] == "T"]
    assert [name for name in functions if not name.startswith("_")] == ["oekd_fast_isa_names"]


@needs_executor
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks /proc which files are open")
def test_an_executor_of_another_torch_is_not_opened_and_everything_else_works():
    fitting, other = run(), run('torch.__version__ = "2.99.1"')
    assert fitting["executor"] == "ThreadExecutor" and fitting["opened"] == "True" and "warning" not in fitting
    assert other["executor"] == "SequentialExecutor" and other["opened"] == "False"
    assert other["numbers"] == fitting["numbers"] and other["node"] != fitting["node"]
    assert re.fullmatch(
        r"executor: expected _executor\.torch-2\.99\.1-\S+\.so, which fits this torch and Python, "
        r"got _executor\.torch-\S+; students run sequentially, with the same results; "
        "install oekd_fast from its sources to build it",
        other["warning"],
    )


@needs_native
@pytest.mark.slow
def test_code_that_does_not_load_is_reported():
    for name, text in {
        "CDLL": "the CPU kernels do not load and will not be used: undefined symbol; build them again",
        "ExtensionFileLoader": "executor: undefined symbol; students run sequentially, with the same results; "
        "install oekd_fast from its sources to build it",
    }.items():
        if name == "ExtensionFileLoader" and native.why_no_executor():
            continue
        error = "OSError" if name == "CDLL" else "ImportError"
        module = "ctypes" if name == "CDLL" else "importlib.machinery"
        code = f"""
        import {module}, torch, warnings
        class Broken:
            def __init__(self, *arguments, **options):
                raise {error}("undefined symbol")
        {module}.{name} = Broken
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from oekd_fast import native
        print([str(w.message) for w in caught if "undefined symbol" in str(w.message)][0])
        print(native.why_missing(), native.why_no_executor(), native.isa())
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
        )
        warning, reasons = done.stdout.splitlines()
        assert warning == text, done.stderr
        missing = "undefined symbol undefined symbol None"
        assert reasons == missing if name == "CDLL" else reasons.startswith("None executor: undefined symbol ")
