"""The choice of a backend, and the errors of one that is unavailable or does not support a call."""

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses import backends
from oekd_fast.losses.backends import NATIVE, REFERENCE, choose_backend
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions

from ..conftest import IMPLEMENTATIONS, INTERPRETED, ISAS, TRITON, batch, needs_native
from ..support.forkserver import run_code
from ..support.refusals import LOGITS, TARGET, refuse


def leaves(**options):
    logits, target = batch(**options)
    return [z.requires_grad_() for z in logits], target


def test_unknown_backend():
    expected = "backend: expected one of ('auto', 'reference', 'native', 'triton'), got 'cuda'"
    refuse(ensemble_kd_loss, {"backend": "cuda"}, ValueError, expected)
    refuse(ensemble_kd_value_and_grad, {"backend": None}, ValueError, "got None")


@needs_native
def test_native_names_what_it_does_not_support():
    doubles = [z.double() for z in LOGITS]
    message = "backend 'native': expected float32, bfloat16 or float16 logits, got torch.float64"
    refuse(ensemble_kd_loss, {"logits": doubles, "backend": "native"}, ValueError, message)
    message = "backend 'native': expected detach_ensemble=True, got False; backend='reference': supports this call"
    refuse(ensemble_kd_loss, {"detach_ensemble": False, "backend": "native"}, ValueError, message)
    elsewhere = {"logits": [z.to("meta") for z in LOGITS], "target": TARGET.to("meta"), "backend": "native"}
    refuse(ensemble_kd_loss, elsewhere, ValueError, "backend 'native': expected logits on the CPU, got meta")


OTHER_OBJECTIVES = {
    "a gate": {"ensemble_weights": torch.ones(3, 2)},
    "ensemble_ce_weight": {"ensemble_ce_weight": 0.5},
    "teacher_logits": {"teacher_logits": torch.zeros(3, 40000)},
    "mixing": {"mixing": torch.eye(2)},
}


@pytest.mark.skipif(not INTERPRETED, reason="Triton is not installed, or not interpreted")
@pytest.mark.parametrize("name", OTHER_OBJECTIVES)
def test_triton_names_objectives_that_it_does_not_support_in_long_rows(name):
    logits, target = batch(students=2, rows=3, classes=40000)
    teachers = int(name == "teacher_logits")
    message = (
        f"backend 'triton': expected a row of all students and teachers to fit the registers with {name}, "
        f"got 2 students, {teachers} teachers and C = 40000; backend='reference': supports this call"
    )
    changed = {"logits": logits, "target": target, "backend": "triton", **OTHER_OBJECTIVES[name]}
    refuse(ensemble_kd_loss, changed, ValueError, message)


@pytest.mark.slow
@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_triton_on_the_cpu_names_the_interpreter():
    code = """
    import torch
    from oekd_fast import ensemble_kd_loss
    try:
        ensemble_kd_loss([torch.ones(3, 4)], torch.tensor([0, 1, 2]), backend="triton")
    except ValueError as error:
        print(error)
    """
    done = run_code(code, without=["TRITON_INTERPRET"])
    assert done.stdout.strip().startswith(
        "backend 'triton': expected logits on CUDA (or on the CPU with TRITON_INTERPRET=1 set before the first use, "
        "for tests: slow), got cpu; backend='reference': supports this call; backend='native': "
    ), done.stderr


@pytest.mark.skipif(not INTERPRETED, reason="Triton is not installed, or not interpreted")
def test_triton_names_what_it_does_not_support():
    message = "backend 'triton': expected float32, bfloat16 or float16 logits, got torch.float64"
    refuse(ensemble_kd_loss, {"logits": [z.double() for z in LOGITS], "backend": "triton"}, ValueError, message)
    message = "backend 'triton': expected at most 62 students, got 63; backend='reference': supports this call"
    refuse(ensemble_kd_loss, {"logits": LOGITS[:1] * 63, "backend": "triton"}, ValueError, message)
    many = {"logits": [LOGITS[0][:1].expand(1 << 24, 4)] * 2, "target": TARGET[:1].expand(1 << 24), "backend": "triton"}
    refuse(ensemble_kd_loss, many, ValueError, "backend 'triton': expected fewer than 2^24 rows")
    elsewhere = {"logits": [z.to("meta") for z in LOGITS], "target": TARGET.to("meta"), "backend": "triton"}
    refuse(ensemble_kd_loss, elsewhere, ValueError, "got meta")


def test_auto_takes_the_reference_on_a_device_without_kernels():
    output = ensemble_kd_loss([z.to("meta") for z in LOGITS], TARGET.to("meta"))
    assert output.loss.device.type == "meta" and [tuple(t.shape) for t in output] == [(), (2,), (2,), (), (3,)]


def test_auto_takes_the_reference_for_calls_that_no_kernel_supports():
    logits, target = leaves(dtype=torch.float64)
    assert ensemble_kd_loss(logits, target).loss.dtype == torch.float64
    logits, target = leaves()
    attached = {"detach_ensemble": False}
    auto = ensemble_kd_loss(logits, target, **attached).loss
    assert torch.equal(auto, ensemble_kd_loss(logits, target, backend="reference", **attached).loss)


def test_every_available_implementation_is_tested():
    assert len(IMPLEMENTATIONS) == 1 + (1 + len(ISAS) if ISAS else 0) + TRITON


def call(logits=LOGITS, target=TARGET, **options):
    return EnsembleKDCall.of(logits, target, KDOptions(**options))


def test_an_unavailable_backend_raises_a_runtime_error_with_every_reason(monkeypatch):
    monkeypatch.setattr(type(NATIVE), "unavailable", lambda self: "not built")
    monkeypatch.setattr(type(backends.TRITON), "unavailable", lambda self: "not installed")
    with pytest.raises(RuntimeError) as error:
        choose_backend("native", call())
    assert str(error.value) == (
        "backend 'native' is unavailable: not built; backend='reference': supports this call; "
        "backend='triton': not installed"
    )


def test_an_unsupported_call_raises_a_value_error_with_every_reason(monkeypatch):
    monkeypatch.setattr(type(NATIVE), "unavailable", lambda self: None)
    monkeypatch.setattr(type(backends.TRITON), "unavailable", lambda self: "not installed")
    with pytest.raises(ValueError) as error:
        choose_backend("native", call(detach_ensemble=False))
    assert str(error.value) == (
        "backend 'native': expected detach_ensemble=True, got False; backend='reference': supports this call; "
        "backend='triton': not installed"
    )


def test_auto_takes_the_compiled_backend_if_it_is_available_and_supports_the_call(monkeypatch):
    monkeypatch.setattr(type(NATIVE), "unavailable", lambda self: None)
    assert choose_backend("auto", call()) is NATIVE
    assert choose_backend("auto", call(detach_ensemble=False)) is REFERENCE
    monkeypatch.setattr(type(NATIVE), "unavailable", lambda self: "not built")
    assert choose_backend("auto", call()) is REFERENCE


def test_every_backend_is_registered_under_its_name():
    assert backends.NAMES == ("auto", "reference", "native", "triton")
    assert all(backend.name == name for name, backend in backends.BACKENDS.items())
