"""Settings of PyTorch around the loss, and tensors of several processes: right numbers, or an error with a way out."""

import pytest
import torch
import torch.distributed as dist
from torch.autograd.graph import save_on_cpu

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import batch, needs_native
from ..support import oracle

pytestmark = pytest.mark.usefixtures("one_thread")


def check(logits, target, backend, **options):
    """Compare loss and gradients of both public functions with float64."""
    leaves = [z.clone().requires_grad_() for z in logits]
    output = ensemble_kd_loss(leaves, target, backend=backend, **options)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and all(z.grad.dtype == z.dtype for z in leaves)
    oracle.check(output, [z.grad for z in leaves], logits, target)
    oracle.check(*ensemble_kd_value_and_grad(logits, target, backend=backend, **options), logits, target)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(backend, dtype):
    logits, target = batch()
    tensors = {"temperature": torch.tensor(2.0), "kd_weight": torch.tensor(0.15)}
    torch.set_default_dtype(dtype)
    try:
        check(logits, target, backend)
        check(logits, target, backend, **tensors)
    finally:
        torch.set_default_dtype(torch.float32)


def test_deterministic_algorithms(backend):
    torch.use_deterministic_algorithms(True)
    try:
        check(*batch(), backend)
    finally:
        torch.use_deterministic_algorithms(False)


def test_saved_tensors_on_the_host(backend):
    logits, target = batch()
    leaves = [z.clone().requires_grad_() for z in logits]
    with save_on_cpu():
        loss = ensemble_kd_loss(leaves, target, backend=backend).loss
    loss.backward(torch.tensor(2.5))
    oracle.Expected(logits, target, upstream=2.5).check_grads([z.grad for z in leaves])


def test_tensors_made_in_inference_mode(backend):
    logits, target = batch()
    with torch.inference_mode():
        made, labels = [z.clone() for z in logits], target.clone()
        inside = ensemble_kd_loss(made, labels, backend=backend)
    output, grads = ensemble_kd_value_and_grad(made, labels, backend=backend)
    oracle.check(output, grads, logits, target)
    for again in (inside, ensemble_kd_loss(made, labels, backend=backend)):
        assert all(torch.equal(a, b) for a, b in zip(again, output, strict=True))
    leaves = [z.requires_grad_() for z in logits]
    loss = ensemble_kd_loss(leaves, labels, backend=backend).loss
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, leaves), grads, strict=True))


@needs_native
def test_autograd_cannot_save_logits_that_were_made_in_inference_mode():
    (first, second), target = batch(students=2)
    with torch.inference_mode():
        second = second.clone()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward.*make a clone"):
        ensemble_kd_loss([first.requires_grad_(), second], target, backend="native")


@pytest.fixture
def mesh():
    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.slow
def test_tensors_of_several_processes(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    logits, target = batch(students=2, rows=4)
    for placement in (Shard(0), Shard(1), Replicate()):
        rows = placement if placement == Shard(0) else Replicate()
        leaves = [distribute_tensor(z, mesh, [placement]).requires_grad_() for z in logits]
        labels = distribute_tensor(target, mesh, [rows])
        for name in ("auto", "reference"):
            loss = ensemble_kd_loss(leaves, labels, backend=name).loss
            grads = [g.full_tensor() for g in torch.autograd.grad(loss, leaves)]
            oracle.Expected(logits, target).check_grads(grads)
            assert float(loss.detach().full_tensor()) == pytest.approx(
                oracle.ensemble_kd(logits, target).loss, rel=1e-6
            )
        detached = [z.detach() for z in leaves]
        _, grads = ensemble_kd_value_and_grad(detached, labels)
        oracle.Expected(logits, target).check_grads([g.full_tensor() for g in grads])
        for call in (ensemble_kd_loss, ensemble_kd_value_and_grad):
            with pytest.raises(ValueError, match="expected tensors of one process, got a DTensor; .*'reference'"):
                call(detached, labels, backend="native")
