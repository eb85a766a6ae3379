"""Prepared calls of the loss: the same bits as the usual path, what makes a kind of call, eviction, errors."""

import math
import weakref
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.kernels.ensemble_kd import prepare
from oekd_fast.losses import prepared
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions

from ..conftest import batch, needs_executor
from ..support.prepared_losses import interpreted_losses

pytestmark = needs_executor

BESIDE = (None, None, None, "triton", False)


def options(**changes):
    return tuple(vars(KDOptions(**changes)).values())


@pytest.fixture
def losses(monkeypatch):
    """Prepared calls on the CPU in place of those on CUDA."""
    losses = interpreted_losses()
    monkeypatch.setattr(prepared, "on_cuda", lambda: losses)
    monkeypatch.setattr(prepared, "_is_eager_on_cuda", lambda logits: type(logits) in (list, tuple))
    return losses


def usual(monkeypatch, form, *arguments, **options):
    """The result of a call that is not prepared."""
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_is_eager_on_cuda", lambda logits: False)
        return form(*arguments, **options)


def in_a_prepared_launch(monkeypatch, losses, form, *arguments, **options):
    """The result of a call that must be prepared."""
    runs, run = [], losses.run
    with monkeypatch.context() as patch:
        patch.setattr(losses, "run", lambda *call: runs.append(run(*call)) or runs[-1])
        result = form(*arguments, **options)
    assert len(runs) == 1 and runs[0] is not None
    return result


def same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


def strided(logits):
    """The same values with rows apart, and each student in a layout of its own."""
    wide = [torch.zeros(len(z), z.shape[1] + 3 + j, dtype=z.dtype) for j, z in enumerate(logits)]
    for z, w in zip(logits, wide, strict=True):
        w[:, 1 : z.shape[1] + 1] = z
    return [w[:, 1 : z.shape[1] + 1] for z, w in zip(logits, wide, strict=True)]


def transposed(logits):
    return [z.t().contiguous().t() for z in logits]


CASES = {
    "plain": (torch.float32, list, {}),
    "bf16, strided, smoothed": (torch.bfloat16, strided, {"label_smoothing": 0.1, "reduction": "sum"}),
    "transposed, attached": (torch.float32, transposed, {"detach_ensemble": False, "temperature": 2.5}),
}


@pytest.mark.parametrize("dtype, layout, changes", CASES.values(), ids=CASES)
def test_prepared_calls_give_the_same_bits(losses, monkeypatch, dtype, layout, changes):
    def value_and_grad(logits, target, **numbers):
        output, grads = ensemble_kd_value_and_grad(layout(logits), target, backend="triton", **changes | numbers)
        assert all(g.stride() == torch.empty_like(z).stride() for g, z in zip(grads, layout(logits), strict=True))
        return *output, *grads

    def by_autograd(logits, target, **numbers):
        leaves = [z.detach().requires_grad_() for z in layout(logits)]
        output = ensemble_kd_loss(leaves, target, backend="triton", **changes | numbers)
        (3 * output.loss).backward()
        return *(x.detach() for x in output), *(z.grad for z in leaves)

    for form in (value_and_grad, by_autograd):
        before = len(losses)
        for _ in range(2):
            form(*batch(3, 5, 8, dtype=dtype, seed=1))
        assert len(losses) == before + 1
        # Other values at other addresses, and other weights.
        other, target = batch(3, 5, 8, dtype=dtype, seed=2)
        target[2] = -100
        numbers = {"ce_weight": 0.25, "kd_weight": 2.0}
        actual = in_a_prepared_launch(monkeypatch, losses, form, other, target, **numbers)
        same(actual, usual(monkeypatch, form, other, target, **numbers))


def test_values_alone_without_labels_and_by_the_module(losses, monkeypatch):
    module = EnsembleKDLoss(ce_weight=0.0, backend="triton")
    logits, _ = batch(2, 4, 8)
    for _ in range(2):
        module.output(logits, None)
    actual = in_a_prepared_launch(monkeypatch, losses, module.output, logits, None)
    same(actual, usual(monkeypatch, module.output, logits, None))


# -- backward


def differentiable(losses):
    """Leaves and the loss of a prepared call."""
    logits, target = batch(2, 3, 4)
    for _ in range(3):
        leaves = [z.detach().requires_grad_() for z in logits]
        loss = ensemble_kd_loss(leaves, target, backend="triton").loss
    assert len(losses) == 1 and "PreparedLoss" in loss.grad_fn.name()
    return leaves, loss


def test_a_retained_graph_and_a_batch_of_upstream_gradients(losses):
    leaves, loss = differentiable(losses)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    same(torch.autograd.grad(loss, leaves, retain_graph=True), first)
    # Upstream gradients whose values the kernel cannot read take the op.
    upstream = torch.tensor([1.0, -2.0])
    several = torch.autograd.grad(loss, leaves, upstream, is_grads_batched=True, retain_graph=True)
    for grads, grad in zip(several, first, strict=True):
        torch.testing.assert_close(grads, torch.stack((grad, -2 * grad)))
    with pytest.raises(RuntimeError, match="differentiable once, got create_graph=True"):
        torch.autograd.grad(loss, leaves, create_graph=True, retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_saved_logits_may_move_and_must_not_change(losses):
    leaves, loss = differentiable(losses)
    expected = torch.autograd.grad(loss, leaves)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda z: z):
        _, loss = differentiable_again(leaves)
    same(torch.autograd.grad(loss, leaves), expected)
    target, loss = differentiable_again(leaves)
    with torch.no_grad():
        leaves[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_logits_without_gradients_and_of_a_network(losses, monkeypatch):
    leaves, target = batch(2, 3, 4)
    leaves[1].requires_grad_()

    def gradient():
        output = ensemble_kd_loss([leaves[0], 2 * leaves[1]], target, backend="triton")
        return torch.autograd.grad(output.loss, leaves[1])

    for _ in range(2):
        gradient()
    assert len(losses) == 1
    same(in_a_prepared_launch(monkeypatch, losses, gradient), usual(monkeypatch, gradient))


def test_a_backward_pass_releases_the_logits(losses):
    leaves, _ = differentiable(losses)
    logits = [2 * z for z in leaves]
    loss = ensemble_kd_loss(logits, batch(2, 3, 4)[1], backend="triton").loss
    assert "PreparedLoss" in loss.grad_fn.name()
    alive = [weakref.ref(z) for z in logits]
    del logits
    assert all(z() is not None for z in alive)
    loss.backward()
    assert all(z() is None for z in alive)


def differentiable_again(leaves):
    target = batch(2, 3, 4)[1]
    return target, ensemble_kd_loss(leaves, target, backend="triton").loss


# -- what makes a kind of call


def key(losses, logits, target, beside=BESIDE, with_gradients=True, **changes):
    return losses._calls.key(with_gradients, logits, target, options(**changes), beside)


def test_values_and_free_numbers_do_not_change_the_kind():
    losses = interpreted_losses()
    kind = key(losses, *batch(2, 4, 8))
    assert kind == key(losses, *batch(2, 4, 8, seed=1), ce_weight=0.5, kd_weight=3)
    tuple_of, target = batch(2, 4, 8)
    assert kind == key(losses, tuple(tuple_of), target)
    assert key(losses, tuple_of, target, temperature=1.5) == key(losses, tuple_of, target, temperature=7)


def variations():
    """Calls of kinds that all differ."""
    logits, target = batch(2, 4, 16)
    for classes, rows, dtype in product((16, 17), (4, 5), (torch.float32, torch.bfloat16)):
        yield *batch(2, rows, classes, dtype=dtype), {}
    for label in (torch.int32, torch.uint8):
        yield logits, target.to(label), {}
    yield logits[:1], target, {}
    yield transposed(logits), target, {}
    yield [torch.zeros(4, 32)[:, :16] for _ in logits], target, {}
    yield [torch.zeros(4, 33)[:, 1:17] for _ in logits], target, {}  # addresses not divisible by 16
    yield [torch.zeros(4, 32)[:, 1:17], logits[1]], target, {}
    yield logits, torch.zeros(5, dtype=torch.int64)[1:], {}
    yield logits, torch.zeros(8, dtype=torch.int64)[::2], {}
    yield logits, None, {"ce_weight": 0.0}
    for changes in (
        {"temperature": 1.0},
        {"temperature": 3.0},
        {"temperature": 2.5},
        {"ce_weight": 0.0},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.2},
        {"ignore_index": 3},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"detach_ensemble": False},
        {"ensemble_ce_weight": 1.0},
        {"divergence": "reverse"},
        {"divergence": "js"},
        {"divergence": "js", "beta": 0.25},
        {"standardise_logits": True},
    ):
        yield logits, target, changes


def specialisation(launch):
    """What Triton compiles a kernel for: types, constants, integers equal to 1 or divisible by 16, alignment."""
    free = {"rows", "ignore_index"}  # do_not_specialize of the kernels
    return tuple(
        native_specialize_impl(BaseBackend, value, False, name not in free, True)
        if not name.isupper()
        else (name, value)
        for name, value in launch.arguments.items()
    ), (launch.programs, tuple(launch.options.items()))


def test_kinds_differ_whenever_plans_or_specialised_kernels_do():
    losses = interpreted_losses()
    kinds = {}
    for logits, target, changes in variations():
        call = EnsembleKDCall.of(logits, target, KDOptions(**changes))
        problem = prepare.Problem(call.students, **call.op_kwargs())
        assert prepare.covers(problem)
        kind = key(losses, logits, target, **changes)
        assert kind is not None
        kinds.setdefault(kind, set()).add(specialisation(prepare.value_and_grad(problem).launch))
    assert len(kinds) == len(list(variations()))  # each one is a kind of its own
    assert all(len(found) == 1 for found in kinds.values())
    assert len(set().union(*kinds.values())) > 20


def test_the_kind_tells_the_form_the_gradients_and_the_backend():
    losses = interpreted_losses()
    logits, target = batch(2, 4, 8)
    leaves = [logits[0], logits[1].clone().requires_grad_()]
    value = key(losses, logits, target, with_gradients=False)
    kinds = {value, key(losses, logits, target), key(losses, leaves, target, with_gradients=False)}
    kinds.add(key(losses, logits, target, beside=(None, None, None, "auto", False)))
    assert len(kinds) == 4
    with torch.no_grad():
        assert key(losses, leaves, target, with_gradients=False) == value


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


def test_other_calls_are_not_prepared():
    losses = interpreted_losses()
    logits, target = batch(2, 4, 8)
    one = torch.ones(())
    refused = [
        key(losses, torch.stack(logits), target),
        key(losses, logits, torch.softmax(logits[0], 1)),
        key(losses, [z.to("meta") for z in logits], target.to("meta")),
        key(losses, logits, target, temperature=one),
        key(losses, logits, target, beside=(torch.ones(2), *BESIDE[1:])),
        key(losses, [], target),
        key(losses, [logits[0], None], target),
        key(losses, logits, [0, 1, 2, 3]),
    ]
    with Watching():
        refused.append(key(losses, logits, target))
    torch.func.vmap(lambda z: refused.append(key(losses, [z, z], target)) or z)(torch.stack(logits))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits[0], logits[0])
        refused.append(key(losses, [dual, logits[1]], target))
    plain = options()
    for number in (math.nan, math.inf, 0.0, -1.0, "2", True):
        refused.append(losses._calls.key(True, logits, target, (number, *plain[1:]), BESIDE))
    assert refused == [None] * len(refused)


def test_wrong_arguments_are_refused_after_a_call_was_prepared(losses):
    logits, target = batch(2, 4, 8)
    for _ in range(3):
        ensemble_kd_value_and_grad(logits, target, backend="triton")
    assert len(losses) == 1
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got -1.0"):
        ensemble_kd_value_and_grad(logits, target, temperature=-1.0, backend="triton")
    with pytest.raises(ValueError, match=r"logits\[1\]: expected shape \[4, 8\] as logits\[0\], got \[3, 8\]"):
        ensemble_kd_value_and_grad([logits[0], logits[1][:3]], target, backend="triton")
    with pytest.raises(ValueError, match="target: expected class indices or probabilities"):
        ensemble_kd_value_and_grad(logits, None, backend="triton")


# -- memory


def test_small_gradients_share_an_allocation_and_results_outlive_scratch_memory():
    def blocks(rows):
        problem = prepare.Problem(batch(3, rows, 100)[0], None, None, 2.0, 0.0, 1.0, 0.0, -100, True, True)
        recipe, bytes_of_a_gradient = prepare.value_and_grad(problem), 400 * rows
        returned = {block for block, *_ in recipe.outputs}
        assert returned == set(range(len(recipe.blocks) - 1))  # scratch memory is a block of its own
        return [size // bytes_of_a_gradient for size in recipe.blocks[1:-1]]

    assert blocks(512) == [3]
    assert blocks(1024) == [1, 1, 1]


# -- the cache


def test_kinds_used_least_recently_are_dropped_and_faults_of_a_launch_are_raised(monkeypatch):
    losses = interpreted_losses(capacity=2)
    launched = []

    def launcher(launch, stream):
        def launch_of(*arguments):
            if fault:
                raise RuntimeError(fault)
            launched.append(launch.arguments["rows"])

        return launch_of

    losses._launcher, fault = launcher, ""
    plain = options()

    def call(rows):
        logits, target = batch(2, rows, 4)
        arguments = True, logits, target, plain, BESIDE
        if (result := losses.run(*arguments)) is None:
            losses.remember(*arguments, EnsembleKDCall.of(logits, target, KDOptions()))
        return result

    for rows in (1, 2):
        assert call(rows) is None and call(rows) is None and len(call(rows)) == 7
    assert call(1) is not None  # 2 is now the one used least recently
    call(3), call(3)
    assert len(losses) == 2
    assert call(1) is not None and call(3) is not None and call(2) is None
    assert launched == [1, 2, 1, 1, 3]
    fault = "no memory left"
    with pytest.raises(RuntimeError, match="no memory left"):
        call(3)
    fault = ""
    assert call(3) is not None
