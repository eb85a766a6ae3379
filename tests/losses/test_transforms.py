"""Transforms of PyTorch over the losses: the right number, or an error that names the backend that gives it."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from oekd_fast import (
    EnsembleKDLoss,
    FeatureKDLoss,
    ensemble_kd_loss,
    ensemble_kd_value_and_grad,
    feature_kd_loss,
    feature_kd_value_and_grad,
)

from ..conftest import batch, needs_executor, needs_native
from ..support import oracle

pytestmark = pytest.mark.usefixtures("one_thread")
LOGITS, TARGET = batch(students=2, rows=4, classes=5)
OTHER = LOGITS[1]
# The maps of the teacher and of a student, and the weight and bias of its adapter.
MAPS = [
    torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for shape in ((2, 3, 4, 4), (2, 2, 4, 4), (3, 2, 1, 1), (3,))
]
TANGENT = torch.linspace(-1, 1, LOGITS[0].numel()).view_as(OTHER)
COMPILED = [pytest.param("native", marks=needs_native)]
BACKENDS = ["auto", "reference"]


def formula(z, other=OTHER, target=TARGET, *, temperature=2.0, ce_weight=0.7, kd_weight=0.15):
    """The loss as one writes it in PyTorch; the ensemble is detached as a target."""
    together = torch.stack([z, other])
    teacher = together.mean(dim=0).detach() / temperature
    loss = 0.0
    for student in together:
        kl = F.kl_div((student / temperature).log_softmax(1), teacher.softmax(1), reduction="batchmean")
        loss = loss + ce_weight * F.cross_entropy(student, target) + kd_weight * temperature**2 * kl
    return loss


def loss_of(backend, form=list):
    return lambda z: ensemble_kd_loss(form([z, OTHER]), TARGET, backend=backend).loss


def feature_loss_of(backend):
    return lambda student, weight, bias: feature_kd_loss([student], MAPS[0], [weight], [bias], backend=backend)


def feature_formula(student, weight, bias):
    return F.mse_loss(F.conv2d(student, weight, bias), MAPS[0])


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6, check_dtype=False)


TRANSFORMS = {
    "grad": lambda f, z: torch.func.grad(f)(z),
    "grad_and_value": lambda f, z: torch.func.grad_and_value(f)(z),
    "vjp": lambda f, z: torch.func.vjp(f, z)[1](torch.tensor(2.5)),
    "jvp": lambda f, z: torch.func.jvp(f, (z,), (TANGENT,)),
    "linearize": lambda f, z: torch.func.linearize(f, z)[1](TANGENT),
    "jacrev": lambda f, z: torch.func.jacrev(f)(z),
    "jacfwd": lambda f, z: torch.func.jacfwd(f)(z),
    "hessian": lambda f, z: torch.func.hessian(f)(z),
    "jacrev of jacrev": lambda f, z: torch.func.jacrev(torch.func.jacrev(f))(z),
    "vmap": lambda f, z: torch.func.vmap(f)(torch.stack([z, -z, 3 * z])),
    "vmap of grad": lambda f, z: torch.func.vmap(torch.func.grad(f))(torch.stack([z, -z, 3 * z])),
    "grad of vmap": lambda f, z: torch.func.grad(lambda x: torch.func.vmap(f)(x).sum())(torch.stack([z, -z])),
    "functionalize": lambda f, z: torch.func.functionalize(torch.func.grad(f))(z),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_gives_the_numbers_of_the_formula(transform, backend):
    transform = TRANSFORMS[transform]
    expected = transform(formula, LOGITS[0])
    for form in (list, torch.stack):
        assert_close(transform(loss_of(backend, form), LOGITS[0]), expected)


@needs_native
@pytest.mark.parametrize("form", [list, torch.stack])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_names_the_reference_if_a_compiled_backend_is_explicit(transform, form):
    expected = "backend 'native': expected a call outside the transforms of torch.func, got one inside; "
    if transform == "linearize":  # it uses forward-mode AD
        expected = "backend 'native': expected tensors without tangents, got a dual tensor of forward-mode AD; "
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}.*backend='reference': supports this call"):
        TRANSFORMS[transform](loss_of("native", form), LOGITS[0])


def test_vmap_over_labels_temperatures_and_weights():
    targets = torch.stack([TARGET, TARGET.flip(0)])
    by_target = torch.func.vmap(lambda y: ensemble_kd_loss(LOGITS, y).loss)(targets)
    assert_close(by_target, torch.stack([formula(*LOGITS, y) for y in targets]))
    temperatures = torch.tensor([1.0, 2.0, 4.5])
    by_temperature = torch.func.vmap(lambda t: ensemble_kd_loss(LOGITS, TARGET, temperature=t).loss)(temperatures)
    assert_close(by_temperature, torch.stack([formula(*LOGITS, temperature=t) for t in temperatures]))
    gates = torch.rand(3, 4, 2)
    by_gate = torch.func.vmap(lambda w: ensemble_kd_loss(LOGITS, TARGET, ensemble_weights=w).loss)(gates)
    assert_close(by_gate, torch.stack([ensemble_kd_loss(LOGITS, TARGET, ensemble_weights=w).loss for w in gates]))


def test_torch_func_over_a_model_and_the_module():
    model, loss = nn.Linear(3, 5), EnsembleKDLoss(temperature=3.0)
    x = torch.randn(4, 3)

    def of(parameters):
        z = torch.func.functional_call(model, parameters, (x,))
        return loss([z, OTHER], TARGET)

    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(loss([model(x), OTHER], TARGET), parameters.values())
    actual = torch.func.grad(of)({name: p.detach() for name, p in parameters.items()})
    assert_close(tuple(actual.values()), expected)


def dual(f, z, tangent=TANGENT):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(f(forward_ad.make_dual(z, tangent))))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_keeps_the_tangent(backend, requires_grad):
    z = LOGITS[0].clone().requires_grad_(requires_grad)
    for form in (list, torch.stack):
        assert_close(dual(loss_of(backend, form), z), dual(formula, z))
        with torch.no_grad():
            assert_close(dual(loss_of(backend, form), z), dual(formula, z))


@pytest.mark.parametrize("backend", COMPILED)
def test_forward_mode_names_the_reference_if_a_compiled_backend_is_explicit(backend):
    expected = "expected tensors without tangents, got a dual tensor of forward-mode AD"
    with pytest.raises(ValueError, match=f"^backend 'native': {expected}; .*'reference': supports this call"):
        dual(loss_of(backend), LOGITS[0])
    with pytest.raises(ValueError, match=expected):
        dual(lambda z: ensemble_kd_value_and_grad([z, OTHER], TARGET, backend=backend)[0].loss, LOGITS[0])
    # A tangent elsewhere in the program does not matter, nor does one of a teacher, which is never differentiated.
    with forward_ad.dual_level():
        teacher = forward_ad.make_dual(OTHER, TANGENT)
        assert ensemble_kd_loss(LOGITS, TARGET, teacher_logits=teacher, backend=backend).loss.isfinite()


@needs_executor
def test_the_op_itself_drops_no_tangent():
    op = torch.ops.oekd_fast.ensemble_kd_value
    options = dict(ensemble_weights=None, temperature=2.0, ce_weight=1.0, kd_weight=1.0, label_smoothing=0.0)
    options |= dict(ignore_index=-100, mean=True, detach_ensemble=True)
    with pytest.raises(NotImplementedError, match="forward-mode AD; backend='reference' does"):
        dual(lambda z: op([z, OTHER], TARGET, **options)[0], LOGITS[0])


@pytest.mark.parametrize("name", ["temperature", "ce_weight", "kd_weight"])
def test_forward_mode_of_numbers(name):
    value = torch.tensor(1.5)
    actual = dual(lambda t: ensemble_kd_loss(LOGITS, TARGET, **{name: t}).loss, value, torch.tensor(1.0))
    assert_close(actual, dual(lambda t: formula(*LOGITS, **{name: t}), value, torch.tensor(1.0)))


UPSTREAM = torch.tensor([1.0, 0.0, -2.5, 3.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [list, torch.stack])
def test_batched_gradients(backend, form, dtype):
    logits, target = batch(students=3, rows=4, classes=6, dtype=dtype)
    leaves = [z.requires_grad_() for z in logits]
    if form is torch.stack:
        leaves = [torch.stack(logits).detach().requires_grad_()]
    given = leaves if form is list else leaves[0]
    loss = ensemble_kd_loss(given, target, backend=backend).loss
    batched = torch.autograd.grad(loss, leaves, UPSTREAM, is_grads_batched=True, retain_graph=True)
    for i, upstream in enumerate(UPSTREAM):
        expected = torch.autograd.grad(loss, leaves, upstream, retain_graph=True)
        for actual, wanted in zip(batched, expected, strict=True):
            assert (
                oracle.beyond_rounding(*(g.double().numpy() for g in (actual[i], wanted)), dtype) <= 4 * oracle.EPSILON
            )


def test_batched_gradients_of_a_gate(backend):
    logits, target = batch(students=3, rows=4, classes=6)
    gate = torch.rand(4, 3, requires_grad=True)
    loss = ensemble_kd_loss(logits, target, ensemble_weights=gate, ensemble_ce_weight=0.5, backend=backend).loss
    (batched,) = torch.autograd.grad(loss, gate, UPSTREAM, is_grads_batched=True, retain_graph=True)
    (once,) = torch.autograd.grad(loss, gate)
    assert_close(batched, UPSTREAM[:, None, None] * once)


@pytest.mark.parametrize("vectorize", [False, True])
def test_autograd_functional(backend, vectorize):
    functional = torch.autograd.functional
    jacobian = functional.jacobian(loss_of(backend), LOGITS[0], vectorize=vectorize)
    assert_close(jacobian, torch.func.grad(formula)(LOGITS[0]))
    _, product = functional.vjp(loss_of(backend), LOGITS[0])
    assert_close(product, jacobian)
    second = (
        lambda f: functional.hessian(f, LOGITS[0], vectorize=vectorize),
        lambda f: functional.hvp(f, LOGITS[0], TANGENT),
        lambda f: functional.vhp(f, LOGITS[0], TANGENT),
        lambda f: functional.jvp(f, LOGITS[0], TANGENT),  # by two backward passes
    )
    for call in second:
        if backend == "reference":
            assert_close(call(loss_of(backend)), call(formula))
        else:
            with pytest.raises(RuntimeError, match="create_graph=True; backend='reference' is differentiable twice"):
                call(loss_of(backend))


def test_gradcheck_of_the_reference_in_every_mode():
    z = [t.double().requires_grad_() for t in batch(students=2, rows=2, classes=3)[0]]
    target = torch.tensor([0, 2])

    def loss(*logits):
        return ensemble_kd_loss(logits, target, detach_ensemble=False).loss

    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(loss, z, **modes)
    assert torch.autograd.gradgradcheck(loss, z, check_fwd_over_rev=True, check_batched_grad=True)


def value_and_grad_of(backend="auto", **options):
    return lambda z: ensemble_kd_value_and_grad([z, OTHER], TARGET, backend=backend, **options)


def test_transforms_of_value_and_grad():
    z = LOGITS[0]
    expected = torch.func.grad(formula)(z)
    stacked = torch.stack([z, -z])
    of_vmap = torch.func.vmap(lambda z: value_and_grad_of(grad_scale=torch.tensor(2.0))(z)[1][0])(stacked)
    assert_close(of_vmap, 2 * torch.func.vmap(torch.func.grad(formula))(stacked))
    assert_close(torch.func.grad(lambda z: value_and_grad_of()(z)[0].loss)(z), expected)
    hessian = torch.func.jacfwd(lambda z: value_and_grad_of()(z)[1][0])(z)
    assert_close(hessian, torch.func.hessian(formula)(z))
    assert_close(dual(lambda z: value_and_grad_of()(z)[0].loss, z), dual(formula, z))
    assert_close(dual(lambda z: value_and_grad_of()(z)[1][0], z), dual(torch.func.grad(formula), z))
    with pytest.raises(ValueError, match=r"out: expected None inside transforms.*, got a buffer"):
        torch.func.vmap(lambda z: value_and_grad_of(out=LOGITS)(z)[1][0])(stacked)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", range(3), ids=["map", "weight", "bias"])
@pytest.mark.parametrize("name", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "vmap"])
def test_torch_func_over_the_feature_loss(name, position, backend):
    _, *tensors = MAPS

    def along(f):
        return lambda x: f(*tensors[:position], x, *tensors[position + 1 :])

    x = tensors[position]
    tangent = x.flip(0)
    calls = {
        "vjp": lambda f: torch.func.vjp(f, x)[1](torch.tensor(1.5)),
        "jvp": lambda f: torch.func.jvp(f, (x,), (tangent,)),
        "vmap": lambda f: torch.func.vmap(f)(torch.stack([x, -x])),
    }
    call = calls.get(name, lambda f: getattr(torch.func, name)(f)(x))
    assert_close(call(along(feature_loss_of(backend))), call(along(feature_formula)))
    assert_close(dual(along(feature_loss_of(backend)), x, tangent), dual(along(feature_formula), x, tangent))


def test_transforms_of_feature_value_and_grad():
    teacher, student, weight, bias = MAPS

    def value_and_grad(x):
        loss, of_maps, of_weights, of_biases = feature_kd_value_and_grad([x], teacher, [weight], [bias])
        return loss, of_maps[0], of_weights[0], of_biases[0]

    def expected(x):
        grads, loss = torch.func.grad_and_value(feature_formula, argnums=(0, 1, 2))(x, weight, bias)
        return loss, *grads

    stacked = torch.stack([student, -student])
    assert_close(torch.func.vmap(value_and_grad)(stacked), torch.func.vmap(expected)(stacked))
    hessian = torch.func.hessian(feature_formula)(student, weight, bias)
    assert_close(torch.func.jacfwd(lambda x: value_and_grad(x)[1])(student), hessian)
    assert_close(torch.func.grad(lambda x: value_and_grad(x)[0])(student), expected(student)[1])
    assert_close(dual(lambda x: value_and_grad(x)[2], student, student)[1].isfinite().all(), torch.tensor(True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_and_saved_tensor_hooks(backend, reentrant):
    expected = torch.autograd.grad(2 * formula(leaf := LOGITS[0].clone().requires_grad_()), leaf)
    z = LOGITS[0].clone().requires_grad_()
    (2 * checkpoint(loss_of(backend), z, use_reentrant=reentrant)).backward()
    assert_close(z.grad, *expected)
    packed = []

    def pack(t):
        packed.append(t)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = 2 * loss_of(backend)(z)
    assert packed and all(torch.equal(t, t) for t in packed)
    assert_close(torch.autograd.grad(loss, z), expected)


class Wrapper(torch.Tensor):
    """A tensor subclass that holds another tensor and forwards every operator to it."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=held.device
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        from torch.utils._pytree import tree_map_only

        args, kwargs = tree_map_only(cls, lambda t: t.held, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, op(*args, **kwargs))


@pytest.mark.parametrize("backend", [*COMPILED, "reference", "auto"])
def test_tensor_subclasses(backend):
    expected = torch.func.grad_and_value(formula)(LOGITS[0])
    for kind in (Wrapper, lambda t: t.clone().as_subclass(type("Plain", (torch.Tensor,), {})), nn.Parameter):
        z = kind(LOGITS[0].clone()).requires_grad_()
        loss = loss_of(backend)(z)
        loss.backward()
        grad, value = (getattr(t, "held", t).detach().as_subclass(torch.Tensor) for t in (z.grad, loss))
        assert_close((grad, value), expected)


@pytest.mark.parametrize("backend", [*COMPILED, "reference"])
@pytest.mark.parametrize("form", [list, torch.stack])
def test_fake_and_meta_tensors_have_shapes_without_values(backend, form):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        z = torch.randn(4, 5, requires_grad=True)
        output = ensemble_kd_loss(form([z, z]), torch.zeros(4, dtype=torch.int64), backend=backend)
        (2.0 * output.loss).backward()
        assert output.loss.shape == () and output.correct.shape == (3,) and z.grad.shape == (4, 5)
    if backend == "reference":
        z, target = (
            torch.empty(4, 5, device="meta", requires_grad=True),
            torch.empty(4, dtype=torch.int64, device="meta"),
        )
        for name in ("reference", "auto"):
            loss = ensemble_kd_loss(form([z, z]), target, backend=name).loss
            assert loss.is_meta and torch.autograd.grad(loss, z)[0].shape == (4, 5)


@pytest.mark.parametrize("backend", [*COMPILED, "reference"])
def test_a_lazily_negated_tensor_is_read_as_its_values(backend):
    z = torch.complex(torch.zeros_like(OTHER), -OTHER).conj().imag
    assert z.is_neg() and torch.equal(z, OTHER)
    _, expected = ensemble_kd_value_and_grad(LOGITS, TARGET, backend=backend)
    _, grads = ensemble_kd_value_and_grad([LOGITS[0], z], TARGET, backend=backend)
    assert_close(tuple(grads), tuple(expected))


def test_a_lazily_negated_teacher_is_read_as_its_values(value_and_grad):
    teacher = torch.complex(torch.zeros_like(OTHER), -OTHER).conj().imag
    for options in ({}, {"mixing": torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]])}):
        output, grads = value_and_grad(LOGITS, TARGET, teacher_logits=[teacher], **options)
        expected, expected_grads = value_and_grad(LOGITS, TARGET, teacher_logits=[OTHER], **options)
        torch.testing.assert_close((*output, *grads), (*expected, *expected_grads), rtol=0, atol=0)


def test_feature_module_in_torch_func():
    teacher, student, weight, bias = MAPS
    adapter = nn.Conv2d(2, 3, 1)
    loss = FeatureKDLoss()
    actual = torch.func.grad(lambda x: loss([[teacher], [x]], [[adapter]]))(student)
    expected = torch.func.grad(feature_formula)(student, adapter.weight, adapter.bias)
    assert_close(actual, expected)
