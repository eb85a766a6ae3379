"""Tracers of PyTorch record the loss: torch.export, make_fx, and torch.func inside torch.compile."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import BACKENDS, batch, needs_executor, needs_native
from ..support import oracle

pytestmark = pytest.mark.usefixtures("one_thread")
LOGITS, TARGET = batch(students=2, rows=4, classes=5)
OTHER_LOGITS, OTHER_TARGET = batch(students=2, rows=7, classes=5, seed=1)  # what a graph has not seen


@pytest.fixture(params=[name for name in BACKENDS if name != "triton"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.layer, self.loss = nn.Linear(5, 5), EnsembleKDLoss(backend=backend)

    def forward(self, x, other, target):
        return self.loss([self.layer(x), other], target)


# torch.export keeps the gradients of "native" by its autograd kernel only. How the graph is found, by running the code
# or by dynamo, is independent of the backend.
EACH_TRACER = pytest.mark.parametrize(
    "backend, strict",
    [("reference", False), *(pytest.param("native", strict, marks=needs_executor) for strict in (False, True))],
)


@pytest.mark.slow
@EACH_TRACER
def test_export_of_a_model_with_the_loss(backend, strict):
    torch.manual_seed(0)
    model, rows = Model(backend), torch.export.Dim("rows", min=2, max=100)
    exported = torch.export.export(
        model, (*LOGITS, TARGET), dynamic_shapes=({0: rows}, {0: rows}, {0: rows}), strict=strict
    ).module()
    for inputs in ((*LOGITS, TARGET), (*OTHER_LOGITS, OTHER_TARGET)):
        expected = torch.autograd.grad(model(*inputs), model.layer.weight)
        loss = exported(*inputs)
        torch.testing.assert_close(loss, model(*inputs))
        torch.testing.assert_close(torch.autograd.grad(loss, exported.layer.weight), expected)


@pytest.mark.slow
@EACH_TRACER
def test_export_keeps_the_gradients_of_stacked_logits_and_of_a_gate(backend, strict):
    class Loss(nn.Module):
        def forward(self, logits, target, gate):
            stacked = EnsembleKDLoss(backend=backend)(logits, target)
            with_gate = EnsembleKDLoss(backend="auto", ensemble_ce_weight=0.5)
            return stacked + with_gate(logits, target, ensemble_weights=gate)

    inputs = torch.stack(LOGITS).requires_grad_(), TARGET, torch.rand(4, 2).requires_grad_()
    exported = torch.export.export(Loss(), inputs, strict=strict).module()
    expected = torch.autograd.grad(Loss()(*inputs), inputs[::2])
    torch.testing.assert_close(torch.autograd.grad(exported(*inputs), inputs[::2]), expected)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("strict", [False, True])
def test_export_names_the_reference_if_native_would_lose_the_gradient_of_a_gate(strict):
    class Loss(nn.Module):
        def forward(self, logits, target, gate):
            return EnsembleKDLoss(backend="native", ensemble_ce_weight=0.5)(logits, target, ensemble_weights=gate)

    text = "backend 'native': expected tensors that require no gradient in torch.export.*'reference': supports"
    with pytest.raises(Exception, match=text):
        torch.export.export(Loss(), (LOGITS, TARGET, torch.rand(4, 2).requires_grad_()), strict=strict)


@pytest.mark.slow
def test_export_of_the_module_itself(backend):
    exported = torch.export.export(EnsembleKDLoss(backend=backend), (LOGITS, TARGET)).run_decompositions().module()
    target = TARGET.flip(0)
    truth = oracle.ensemble_kd(LOGITS, target)
    assert float(exported(LOGITS, target)) == pytest.approx(truth.loss, rel=1e-6)
    wrong = torch.full_like(target, 5)
    if backend == "native":
        with pytest.raises(ValueError, match=r"target: expected labels in \[0, 5\) or ignore_index -100, got 5 at row"):
            exported(LOGITS, wrong)
    else:
        assert exported(LOGITS, wrong).isnan()


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(backend, mode):
    def differentiable(first, second, target):
        loss = 2.5 * ensemble_kd_loss([first, second], target, backend=backend).loss
        return loss / 2.5, *torch.autograd.grad(loss, (first, second))

    def at_once(first, second, target):
        output, grads = ensemble_kd_value_and_grad([first, second], target, backend=backend)
        return output.loss, *(2.5 * grad for grad in grads)

    for function in (differentiable, at_once):
        graph = make_fx(function, tracing_mode=mode)(*(z.clone().requires_grad_() for z in LOGITS), TARGET)
        # The graph holds for other values; a symbolic one for another number of rows too.
        logits, target = (OTHER_LOGITS, OTHER_TARGET) if mode == "symbolic" else (LOGITS[::-1], TARGET.flip(0))
        loss, *grads = graph(*(z.clone().requires_grad_() for z in logits), target)
        expected = oracle.Expected(logits, target, upstream=2.5)
        expected.check_grads([grad.detach() for grad in grads])
        assert float(loss.detach()) == pytest.approx(oracle.ensemble_kd(logits, target).loss, rel=1e-6)


def loss_of(backend):
    return lambda z: ensemble_kd_loss([z, LOGITS[1]], TARGET, backend=backend).loss


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grad", "vmap of grad", "jvp"])
def test_torch_func_inside_a_compiled_graph(name, fresh_compiler):
    # "auto" takes the reference inside the transform, as it does in eager mode.
    tangent, several = LOGITS[1], torch.stack([LOGITS[0], -LOGITS[0]])
    function = {
        "grad": lambda: torch.func.grad(loss_of("auto"))(LOGITS[0]),
        "vmap of grad": lambda: torch.func.vmap(torch.func.grad(loss_of("auto")))(several),
        "jvp": lambda: torch.func.jvp(loss_of("auto"), (LOGITS[0],), (tangent,)),
    }[name]
    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="eager")(), function())


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_a_compiled_transform_names_the_reference_if_native_is_explicit(transform, fresh_compiler):
    function = torch.compile(lambda z: transform(loss_of("native"))(z), fullgraph=True, backend="eager")
    text = "backend 'native': expected a call outside the transforms of torch.func.*backend='reference': supports"
    with pytest.raises(Exception, match=text):
        function(torch.stack([LOGITS[0]] * 2) if transform is torch.func.vmap else LOGITS[0])
