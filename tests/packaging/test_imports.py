"""Modules that an import loads, and the parts that work without optional packages."""

import subprocess
import sys
import textwrap

import pytest

import oekd_fast

OPTIONAL = ("triton", "safetensors", "tyro", "rich", "matplotlib", "datasets", "sklearn", "PIL")
BLOCK = f"""
import sys
from pathlib import Path

class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {OPTIONAL} or name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(f"No module named {{name!r}}, says the test", name=name)

sys.meta_path.insert(0, Block())
sys.modules["triton"] = None  # makes its import fail
is_file = Path.is_file
Path.is_file = lambda path: path.suffix != ".so" and is_file(path)  # nothing is compiled
"""

# Packages of the extras; a student is loaded with safetensors alone.
EXTRAS = ("datasets", "huggingface_hub", "matplotlib", "onnx", "onnxruntime", "onnxscript", "PIL", "pyarrow", "rich",
          "safetensors", "scipy", "sklearn", "timm", "tyro")  # fmt: skip


def run(code: str) -> str:
    """In a fresh interpreter; what it prints."""
    command = [sys.executable, "-W", "error::UserWarning:oekd_fast", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_alone_loads_nothing_more():
    code = """
    import sys
    import oekd_fast
    print(sorted(name for name in sys.modules if name.split(".")[0] in ("oekd_fast", "torch", "numpy")))
    """
    assert run(code) == "['oekd_fast']"


@pytest.mark.slow
def test_the_loss_loads_neither_models_nor_trainer_nor_their_packages():
    code = f"""
    import sys
    import torch
    before = set(sys.modules)
    from oekd_fast import EnsembleKDLoss
    z = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    EnsembleKDLoss()(z, torch.tensor([0, 1, 2])).backward()
    loaded = set(sys.modules) - before
    print([name for name in {OPTIONAL} if name in loaded])
    print(sorted(name for name in loaded if name.startswith("oekd_fast.")))
    """
    foreign, own = run(code).splitlines()
    assert foreign == "[]"
    assert {name.split(".")[1] for name in eval(own)} <= {"common", "kernels", "native", "losses"}


@pytest.mark.slow
def test_the_loss_works_without_anything_optional():
    code = f"""{BLOCK}
import torch
import oekd_fast
from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad, feature_kd_loss

torch.manual_seed(0)
z, y = [torch.randn(3, 4, requires_grad=True) for _ in range(2)], torch.tensor([0, 1, 2])
auto = ensemble_kd_loss(z, y)
auto.loss.backward()
assert all(s.grad.any() for s in z)
assert torch.equal(auto.loss, ensemble_kd_loss(z, y, backend="reference").loss)
_, grads = ensemble_kd_value_and_grad(z, y)
assert all(torch.equal(s.grad, g) for s, g in zip(z, grads))
assert oekd_fast.EnsembleKDLoss()(z, y) == auto.loss
maps = torch.ones(1, 2, 3, 3)
assert feature_kd_loss([maps], maps, [torch.eye(2)], [torch.zeros(2)]) == 0
for backend in ("native", "triton"):
    try:
        ensemble_kd_loss(z, y, backend=backend)
    except RuntimeError as error:
        print(error)
    """
    native, triton = run(code).splitlines()
    how_to_install = {
        "native": "install with a C++ compiler and without OEKD_FAST_NATIVE=0",
        "triton": "install triton >= 3.6 (Linux)",
    }
    for line, name, other in ((native, "native", "triton"), (triton, "triton", "native")):
        assert line.startswith(f"backend {name!r} is unavailable: ") and "_kernels.so" in native
        assert f"{how_to_install[name]}; backend='reference': supports this call; backend={other!r}: " in line
        assert line.endswith(how_to_install[other])


@pytest.mark.parametrize("name", ["ensemble_kd_loss", "EnsembleKDLoss", "FeatureKDLoss", "EnsembleKDOutput"])
def test_public_names_are_listed_and_load(name):
    assert name in oekd_fast.__all__ and name in dir(oekd_fast)
    assert getattr(oekd_fast, name).__name__ == name


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'oekd_fast' has no attribute 'ensemble_kl_loss'"):
        oekd_fast.ensemble_kl_loss  # noqa: B018


def test_kernels_folder_is_no_package_of_its_own():
    code = """
    import sys
    import oekd_fast
    print("kernels" in sys.modules, "oekd_fast.kernels" in sys.modules)
    """
    assert run(code) == "False False"


@pytest.mark.slow
def test_a_saved_student_needs_safetensors_alone(tmp_path):
    code = f"""
    import sys
    import torch
    blocked = [name for name in {EXTRAS} if name != "safetensors"]
    sys.modules |= dict.fromkeys(blocked)
    from oekd_fast.family.ensemble import build_ensemble
    from oekd_fast.family.saved import Normalisation, StudentMetadata, load_student, save_student

    family = build_ensemble("resnet20", 2)
    metadata = StudentMetadata.of(
        family, 1, image_size=8, classes="abcdefghij", normalisation=Normalisation((0.5,) * 3, (0.5,) * 3)
    )
    save_student(family.student(1), {str(tmp_path / "student")!r}, metadata)
    student = load_student({str(tmp_path / "student")!r})
    student(student.preprocess(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)))
    try:
        student.export({str(tmp_path / "student.onnx")!r})
    except ImportError as error:
        print(error)
    """
    assert run(code) == "ONNX files need the package onnx: pip install 'oekd_fast[export]'"
