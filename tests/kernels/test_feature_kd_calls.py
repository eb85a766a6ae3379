"""Calls of the Triton kernels of the intermediate loss: ops, compilation, choice of the backend, blocks, errors.

They run on a GPU if there is one, else in Triton's interpreter.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast import FeatureKDLoss, feature_kd_loss, feature_kd_value_and_grad
from oekd_fast.losses import feature_kd as feature_ops
from oekd_fast.losses import feature_triton
from oekd_fast.losses.feature_triton import MAX_CHANNELS

from ..support.feature_kd_cases import DEVICE, Block
from ..support.forkserver import run_code


@pytest.mark.parametrize("teacher", [12, 129])
def test_the_ops_keep_to_their_schemas(teacher):
    block = Block(teacher, (9, 3), layouts="nc", dtype=torch.float16)
    maps, teacher_map, weights, biases = block.arguments
    one = torch.ones((), device=DEVICE)
    torch.library.opcheck(torch.ops.oekd_fast.feature_kd_value, (maps, teacher_map, weights, biases), {"previous": one})
    torch.library.opcheck(
        torch.ops.oekd_fast.feature_kd_value_and_grad, (maps, teacher_map, weights, biases), {"grad_scale": one}
    )


def test_compiled_functions_return_the_bits_of_eager_ones():
    torch.compiler.reset()
    block = Block(12, (9, 3), layouts="nc")

    def value_and_grad(*arguments):
        loss, *grads = feature_kd_value_and_grad(*arguments, backend="triton")
        return [loss, *(grad for part in grads for grad in part)]

    compiled = torch.compile(value_and_grad, fullgraph=True, backend="aot_eager")
    for came, expected in zip(compiled(*block.arguments), value_and_grad(*block.arguments), strict=True):
        assert torch.equal(came, expected)

    def loss_of(maps, teacher, weights, biases):
        return 2.5 * feature_kd_loss(maps, teacher, weights, biases, backend="triton")

    results = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        leaves = [[t.detach().requires_grad_() for t in part] for part in (block.maps, block.weights, block.biases)]
        loss = function(leaves[0], block.teacher, *leaves[1:])
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for part in leaves for leaf in part)])
    torch.compiler.reset()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_empty_batch_gives_the_results_of_the_reference():
    block = Block(6, (4, 3), batch=0)
    reference = feature_kd_value_and_grad(*block.arguments, backend="reference")
    ours = feature_kd_value_and_grad(*block.arguments, backend="triton")
    assert ours[0].isnan() and reference[0].isnan()
    assert feature_kd_loss(*block.arguments, backend="triton").isnan()
    for came, expected in zip(ours[1:], reference[1:], strict=True):
        for a, b in zip(came, expected, strict=True):
            assert torch.equal(a, b)


def test_the_pseudo_teacher_gets_no_gradient():
    block = Block(6, (4, 3))
    block.teacher.requires_grad_()
    assert not feature_kd_loss(*block.arguments, backend="triton").requires_grad
    block.maps[0].requires_grad_()
    feature_kd_loss(*block.arguments, backend="triton").backward()
    assert block.teacher.grad is None and block.maps[0].grad.any()


def test_the_loss_of_several_blocks_is_the_sum():
    blocks = [Block(12, (9, 3), (4, 4), seed=1), Block(8, (5,), (2, 2), seed=2), Block(6, (), seed=3)]
    for block in blocks:
        for leaf in (*block.maps, *block.weights, *block.biases):
            leaf.requires_grad_()
    arguments = list(zip(*(block.arguments for block in blocks), strict=True))
    loss = feature_kd_loss(*arguments, backend="triton")
    expected = feature_kd_loss(*arguments, backend="reference")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for block in blocks:
        leaves = [*block.maps, *block.weights, *block.biases]
        if leaves:
            block.check(torch.tensor(block.truth().loss, dtype=torch.float32), [leaf.grad for leaf in leaves])
    value, maps, weights, biases = feature_kd_value_and_grad(*arguments, backend="triton")
    assert torch.equal(value, loss) and not value.requires_grad
    for block, *grads in zip(blocks, maps, weights, biases, strict=True):
        for leaf, grad in zip((*block.maps, *block.weights, *block.biases), sum(grads, ()), strict=True):
            assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_value_and_grad_without_students(backend):
    block = Block(6, ())
    loss, *grads = feature_kd_value_and_grad(*block.arguments, backend=backend)
    assert loss == 0 and loss.dtype == torch.float32 and grads == [(), (), ()]


def test_value_and_grad_of_the_reference():
    block = Block(6, (4, 3))
    scale = torch.tensor([3.0], device=DEVICE)
    loss, *grads = feature_kd_value_and_grad(*block.arguments, grad_scale=scale, backend="reference")
    block.check(loss, [grad for part in grads for grad in part], upstream=3.0)
    with torch.inference_mode():
        again = feature_kd_value_and_grad(*Block(6, (4, 3)).arguments, grad_scale=scale, backend="reference")
    assert torch.equal(again[0], loss) and torch.equal(again[1][0], grads[0][0])


def test_the_loss_of_the_reference_is_fp32_for_16_bits():
    block = Block(6, (4, 3), dtype=torch.bfloat16)
    assert feature_kd_loss(*block.arguments, backend="reference").dtype == torch.float32


def test_the_module_returns_the_loss_of_its_backend():
    block = Block(6, (4, 3))
    convolutions = torch.nn.ModuleList(torch.nn.Conv2d(c, 6, 1) for c in (4, 3)).to(DEVICE)
    features = [[block.teacher], *([x] for x in block.maps)]
    losses = [FeatureKDLoss(backend=backend)(features, [convolutions]) for backend in ("triton", "reference")]
    torch.testing.assert_close(*losses)


def test_a_second_derivative_is_refused():
    block = Block(6, (4,))
    loss = feature_kd_loss([block.maps[0].requires_grad_()], *block.arguments[1:], backend="triton")
    with pytest.raises(
        RuntimeError, match="feature_kd_loss: the compiled backends are differentiable once, got create"
    ):
        torch.autograd.grad(loss, block.maps, create_graph=True)


def changed(**parts):
    block = Block(6, (4, 3))
    for name, change in parts.items():
        setattr(block, name, change(getattr(block, name)))
    return block


UNSUPPORTED = {
    "fp64": (
        lambda: Block(6, (4,), dtype=torch.float64),
        "block 0: expected float32, bfloat16 or float16 maps, got torch.float64",
    ),
    "two dtypes": (
        lambda: changed(maps=lambda maps: [maps[0], maps[1].half()]),
        "block 0, student map 1: expected dtype torch.float32 as the teacher's map, got torch.float16",
    ),
    "weights in fp64": (
        lambda: changed(weights=lambda weights: [weights[0].double(), weights[1]]),
        "block 0, weight 0: expected float32, bfloat16 or float16, got torch.float64",
    ),
    "too many channels": (
        lambda: Block(MAX_CHANNELS + 1, (4,), (1, 1)),
        f"block 0: expected 1 to {MAX_CHANNELS} channels, got {MAX_CHANNELS + 1}",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_call_names_the_reason(name):
    make, message = UNSUPPORTED[name]
    with pytest.raises(ValueError) as caught:
        feature_kd_loss(*make().arguments, backend="triton")
    assert str(caught.value) == f"backend 'triton': {message}; backend='reference' supports this"


def test_auto_takes_the_reference_for_unsupported_calls():
    block = Block(MAX_CHANNELS + 1, (4,), (1, 1), dtype=torch.float16)
    assert torch.equal(feature_kd_loss(*block.arguments), feature_kd_loss(*block.arguments, backend="reference"))


def test_one_unsupported_block_leaves_the_others_to_the_kernels(monkeypatch):
    """Each block has the bits that its backend returns for this block alone."""
    blocks = [Block(6, (4, 3)), Block(5, (2, 1)), Block(4, (3, 2))]
    given = list(zip(*(block.arguments for block in blocks), strict=True))
    scale = torch.full((1,), 2.0, device=DEVICE)
    backends = ("triton", "reference", "triton")
    alone = [
        feature_kd_value_and_grad(*block.arguments, grad_scale=scale, backend=backend)
        for block, backend in zip(blocks, backends, strict=True)
    ]
    monkeypatch.setattr(feature_ops, "_divide", lambda backend, blocks: (feature_triton, [0, 2], [1]))
    loss, *grads = feature_kd_value_and_grad(*given, grad_scale=scale)
    assert loss.item() == pytest.approx(sum(value.item() for value, *_ in alone), rel=1e-6)
    for part, of_part in enumerate(grads):
        for of_block, (_, *expected) in zip(of_part, alone, strict=True):
            assert all(torch.equal(*pair) for pair in zip(of_block, expected[part], strict=True))

    leaves = [x.requires_grad_() for x in given[0][0] + given[0][1]]
    whole = feature_kd_loss(*given)
    whole.backward(scale[0])
    expected = [*alone[0][1], *alone[1][1]]
    for leaf, grad in zip(leaves, expected, strict=True):
        # The differentiable reference uses a convolution, which a GPU may compute in TF32.
        torch.testing.assert_close(leaf.grad, grad, rtol=1e-2, atol=1e-2 * grad.abs().max().item())
    assert whole.item() == pytest.approx(loss.item(), rel=1e-2)


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        ValueError, match=r"backend: expected one of \('auto', 'reference', 'native', 'triton'\), got 'cuda'"
    ):
        feature_kd_loss(*Block(6, (4,)).arguments, backend="cuda")


def test_grad_scale_of_two_elements_is_refused():
    with pytest.raises(ValueError, match=r"grad_scale: expected a tensor of one element, got shape \[2\]"):
        feature_kd_value_and_grad(*Block(6, (4,)).arguments, grad_scale=torch.ones(2, device=DEVICE))


def test_grad_scale_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="grad_scale: expected a tensor, got float"):
        feature_kd_value_and_grad(*Block(6, (4,)).arguments, grad_scale=2.0)


def test_maps_on_the_cpu_need_the_interpreter():
    code = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import torch
from oekd_fast import feature_kd_loss
x, w, b = torch.ones(1, 2, 3, 3), torch.eye(2), torch.zeros(2)
print(feature_kd_loss([x], x, [w], [b]).item())
try:
    feature_kd_loss([x], x, [w], [b], backend="triton")
except ValueError as error:
    print(error)
"""
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0.0",
        "backend 'triton': expected maps on CUDA, got cpu; TRITON_INTERPRET=1, set before the kernels are first "
        "imported, runs them on the CPU; backend='reference' supports this",
    ]
