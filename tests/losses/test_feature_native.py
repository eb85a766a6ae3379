"""The intermediate loss by the CPU kernels: accuracy against fp64, layouts, invariances, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from oekd_fast import feature_kd_loss, feature_kd_value_and_grad
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.losses import feature_native
from oekd_fast.losses.feature_block import COMPILED_DTYPES

from ..conftest import ISAS, needs_native
from ..support.feature_kd_cases import SHAPES, VIEWS, Block, as_numpy, check

pytestmark = needs_native

op = torch.ops.oekd_fast.feature_kd_student


def students(block, isa="auto", scale=None):
    """Results of the op for each student."""
    of_students = zip(block.maps, block.weights, block.biases, strict=True)
    return [op(x, block.teacher, weight, bias, grad_scale=scale, isa=isa) for x, weight, bias in of_students]


def check_isa(block, isa, upstream=1.0):
    losses, *grads = zip(*students(block, isa, torch.tensor(upstream)), strict=True)
    block.check(torch.stack(losses).sum(), [grad for part in grads for grad in part], upstream)


def cpu_block(*args, **kwargs):
    block = Block(*args, **kwargs)
    block.teacher, block.maps, block.weights, block.biases = (
        block.teacher.cpu(), *([x.cpu() for x in part] for part in (block.maps, block.weights, block.biases))
    )  # fmt: skip
    return block


@pytest.mark.parametrize("dtype", feature_native.MAP_DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ["n", "c", "ncc", "cn"])
@pytest.mark.parametrize("isa", ISAS)
def test_layouts_and_dtypes(isa, layouts, dtype):
    check_isa(cpu_block(12, (9, 7, 5, 3, 1), (9, 8), 3, dtype=dtype, layouts=layouts), isa)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_shapes(isa, name):
    block = SHAPES[name]
    check_isa(cpu_block(**block | {"dtype": torch.float32}), isa)


# Channels around every number of vectors of a block, rows around a tile, and more tiles than pieces.
@pytest.mark.parametrize("channels", [8, 15, 16, 17, 24, 31, 33, 40, 49])
@pytest.mark.parametrize("isa", ISAS)
def test_channels_around_vectors(isa, channels):
    check_isa(cpu_block(channels, (channels + 1, channels - 1), (5, 13), 2), isa)


@pytest.mark.parametrize("layouts", ["n", "c", "nc"])
@pytest.mark.parametrize("pixels", [1, 7, 8, 63, 64, 65, 130])
@pytest.mark.parametrize("isa", ISAS)
def test_rows_around_tiles(isa, pixels, layouts):
    check_isa(cpu_block(10, (6, 17), (pixels, 1), 19, layouts=layouts), isa)


@pytest.mark.parametrize("dtype", feature_native.MAP_DTYPES, ids=str)
@pytest.mark.parametrize("name", VIEWS)
def test_maps_that_are_not_contiguous(name, dtype):
    block = cpu_block(12, (9, 3), (4, 6), dtype=dtype)
    block.maps, block.teacher = [VIEWS[name](x) for x in block.maps], VIEWS[name](block.teacher)
    check(block, backend="native")


@pytest.mark.parametrize("adapters", COMPILED_DTYPES, ids=str)
def test_adapters_of_another_dtype(adapters):
    check(cpu_block(20, (17, 5), adapters=adapters), backend="native")


def test_adapters_of_any_strides():
    block = cpu_block(20, (17,))
    check_isa(block, "auto")
    expected = students(block)
    block.weights = [weight.t().contiguous().t() for weight in block.weights]
    assert all(torch.equal(a, b) for a, b in zip(expected[0], students(block)[0], strict=True))


@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1e12), (torch.bfloat16, 1e12), (torch.float32, 1e-15)])
def test_large_and_small_values(dtype, scale):
    check(cpu_block(12, (9, 3), dtype=dtype, scale=scale), -1024.0, backend="native")


def test_results_for_integers_are_exact():
    block = cpu_block(16, (12, 9), (8, 8), 4, layouts="cn")
    for part in (block.maps, block.weights, block.biases):
        for x in part:
            x.mul_(4).round_()
    block.teacher = (block.teacher * 4).round()
    loss, *grads = feature_kd_value_and_grad(*block.arguments, backend="native")
    truth = block.truth()
    assert loss.item() == truth.loss
    for came, true in zip([grad for part in grads for grad in part], truth.grads, strict=True):
        assert (as_numpy(came) == true.reshape(came.shape)).all()


def test_the_gradient_of_a_map_has_its_layout():
    for layouts, form in (("n", torch.contiguous_format), ("c", torch.channels_last)):
        block = cpu_block(12, (9,), layouts=layouts)
        (grad,) = feature_kd_value_and_grad(*block.arguments, backend="native")[1]
        assert grad.is_contiguous(memory_format=form)


@pytest.mark.parametrize("layouts", ["n", "c"])
def test_results_do_not_depend_on_the_number_of_threads(layouts):
    block, before = cpu_block(12, (9, 3), (16, 16), 7, layouts=layouts), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([tensor for of_student in students(block) for tensor in of_student])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layouts", ["n", "c"])
@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_uninitialised_memory(isa, layouts):
    block = cpu_block(11, (9, 3), (7, 5), 3, layouts=layouts)
    clean = [tensor for of_student in students(block, isa) for tensor in of_student]
    spoilt = cpu_block(11, (9, 3), (7, 5), 3, layouts=layouts)
    for part in ([spoilt.teacher], spoilt.maps, spoilt.weights, spoilt.biases):
        for x in part:
            x.fill_(math.nan)
    for _ in range(3):
        students(spoilt, isa)
        again = [tensor for of_student in students(block, isa) for tensor in of_student]
        assert all(torch.equal(a, b) for a, b in zip(clean, again, strict=True))


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["map", "teacher"])
def test_values_that_are_not_finite_are_those_of_pytorch(where, value):
    block = cpu_block(11, (9,), (6, 7))
    (block.maps[0] if where == "map" else block.teacher)[1, 3, 2, 5] = value
    loss, (of_map,), (of_weight,), (of_bias,) = feature_kd_value_and_grad(*block.arguments, backend="native")
    leaves = [x.requires_grad_() for x in (block.maps[0], block.weights[0], block.biases[0])]
    expected = feature_kd_loss(*block.arguments, backend="reference")
    grads = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(loss, expected.detach(), equal_nan=True)
    for came, wanted in zip((of_map, of_weight, of_bias), grads, strict=True):
        torch.testing.assert_close(came.isfinite(), wanted.isfinite())


@pytest.mark.parametrize("layouts", ["n", "c"])
def test_an_empty_batch_gives_nan_and_gradients_of_0(layouts):
    block = cpu_block(6, (4, 3), batch=0, layouts=layouts)
    loss, maps, weights, biases = feature_kd_value_and_grad(*block.arguments, backend="native")
    assert loss.isnan() and [x.shape for x in maps] == [x.shape for x in block.maps]
    assert not any(x.any() for x in (*weights, *biases))


def test_auto_is_native():
    block = cpu_block(16, (12,), (8, 8), layouts="c")
    auto, ours = feature_kd_value_and_grad(*block.arguments), students(block)[0]
    assert all(torch.equal(a, b) for a, b in zip((auto[0], *(part[0] for part in auto[1:])), ours, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_auto_takes_the_reference_for_other_dtypes(dtype):
    block = cpu_block(6, (4,), dtype=dtype)
    assert torch.equal(feature_kd_loss(*block.arguments), feature_kd_loss(*block.arguments, backend="reference"))
    with pytest.raises(ValueError) as caught:
        feature_kd_loss(*block.arguments, backend="native")
    assert str(caught.value) == (
        f"backend 'native': block 0: expected float32 or bfloat16 maps, got {dtype}; backend='reference' supports this"
    )


def test_a_second_derivative_names_the_backend_that_has_it():
    block = cpu_block(6, (4,))
    leaf = block.maps[0].requires_grad_()
    (grad,) = torch.autograd.grad(feature_kd_loss(*block.arguments, backend="reference"), leaf, create_graph=True)
    grad.sum().backward()
    with pytest.raises(RuntimeError, match="differentiable once, got create_graph=True; backend='reference'"):
        torch.autograd.grad(feature_kd_loss(*block.arguments), leaf, create_graph=True)


def test_the_op_keeps_to_its_schema():
    for layouts, dtype in (("n", torch.float32), ("c", torch.bfloat16)):
        block = cpu_block(12, (9,), dtype=dtype, adapters=torch.float32, layouts=layouts)
        arguments = block.maps[0], block.teacher, block.weights[0], block.biases[0]
        torch.library.opcheck(op, arguments, {"grad_scale": torch.ones(())})
        torch.library.opcheck(op, arguments, {"gradients": False})


def test_compiled_functions_return_the_bits_of_eager_ones():
    torch.compiler.reset()
    block = cpu_block(12, (9, 3), layouts="nc")
    results = []

    def loss_of(maps, teacher, weights, biases):
        return 2.5 * feature_kd_loss(maps, teacher, weights, biases)

    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        leaves = [[t.detach().requires_grad_() for t in part] for part in (block.maps, block.weights, block.biases)]
        loss = function(leaves[0], block.teacher, *leaves[1:])
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for part in leaves for leaf in part)])
    torch.compiler.reset()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


WRONG = {
    "map of float64": ({"map": torch.zeros(2, 3, 4, 4, dtype=torch.float64)}, r"map: expected float32 or bfloat16"),
    "map of three dimensions": ({"map": torch.zeros(2, 3, 4)}, r"map: expected \[B, C, H, W\] with C >= 1"),
    "map without channels": ({"map": torch.zeros(2, 0, 4, 4)}, r"map: expected \[B, C, H, W\] with C >= 1"),
    "teacher of another dtype": ({"teacher": torch.zeros(2, 5, 4, 4).bfloat16()}, "teacher: expected the dtype of map"),
    "teacher of other pixels": ({"teacher": torch.zeros(2, 5, 4, 3)}, "teacher: expected the batch and the pixels of"),
    "weight of other channels": ({"weight": torch.zeros(5, 4)}, r"weight: expected \[5, 3\], got \[5, 4\]"),
    "weight of a wider kernel": ({"weight": torch.zeros(5, 3, 3, 3)}, r"weight: expected \[5, 3\], got \[5, 3, 3, 3\]"),
    "weight of float64": ({"weight": torch.zeros(5, 3).double()}, "weight: expected float32, bfloat16 or float16"),
    "bias of other channels": ({"bias": torch.zeros(3)}, r"bias: expected \[5\], got \[3\]"),
    "scale of two elements": ({"grad_scale": torch.ones(2)}, "grad_scale: expected a tensor of one element"),
    "an instruction set": ({"isa": "mmx"}, "isa: expected one of auto"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_of_the_op_raise(name):
    changed, message = WRONG[name]
    given = {
        "map": torch.zeros(2, 3, 4, 4), "teacher": torch.zeros(2, 5, 4, 4), "weight": torch.zeros(5, 3),
        "bias": torch.zeros(5),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        raising_value_error(op)(**given | changed)


def test_blocks_that_only_the_reference_supports_do_not_keep_others_from_the_kernels():
    blocks = [cpu_block(6, (4, 3)), cpu_block(5, (2, 1), dtype=torch.float16), cpu_block(4, (3, 2))]
    given = list(zip(*(block.arguments for block in blocks), strict=True))
    loss, *grads = feature_kd_value_and_grad(*given)
    alone = [
        feature_kd_value_and_grad(*block.arguments, backend=name)
        for block, name in zip(blocks, ("native", "reference", "native"), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(value.item() for value, *_ in alone), rel=1e-6)
    for part, of_part in enumerate(grads):
        for of_block, (_, *expected) in zip(of_part, alone, strict=True):
            assert all(torch.equal(*pair) for pair in zip(of_block, expected[part], strict=True))
