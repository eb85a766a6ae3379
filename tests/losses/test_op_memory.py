"""Memory of the tensors that the ops of the native backend are called with: sizes, overlaps, and unusual tensors."""

import math
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from oekd_fast import ensemble_kd_loss
from oekd_fast.losses import native_ops as ops

from ..conftest import batch, needs_native, op_kwargs

pytestmark = needs_native
S, B, C = 2, 3, 4


def arguments(**changed):
    """Make arguments of ensemble_kd_value_and_grad_out, all of which tests may change or share memory of."""
    logits, target = batch(S, B, C)
    given = {
        "logits": logits,
        "target": target,
        "ensemble_weights": torch.full((S,), 1 / S),
        "teacher_logits": [torch.randn(B, C, generator=torch.Generator().manual_seed(1))],
        "mixing": torch.full((S, S + 1), 1 / (S + 1)),
        "ensemble_ce_weight": 0.5,
        "class_weights": torch.full((C,), 0.5),
        "num_items": torch.tensor(7.0),
        "grad_scale": torch.tensor(2.0),
        "out": [torch.full((B, C), math.nan) for _ in range(S)],
        "weights_grad": torch.full((S,), math.nan),
    }
    return given | changed


def call(given):
    given = dict(given)
    return ops.ensemble_kd_value_and_grad_out(given.pop("logits"), given.pop("target"), **op_kwargs(**given))


def refuse(given, message):
    """Check that a call raises before it writes a gradient."""
    buffers = [*given["out"], given["weights_grad"]]
    before = [buffer.clone() for buffer in buffers if buffer.untyped_storage().nbytes()]
    with pytest.raises(ValueError, match=re.escape(message)):
        call(given)
    after = [buffer for buffer in buffers if buffer.untyped_storage().nbytes()]
    assert all(torch.equal(a, b) or a.isnan().all() for a, b in zip(after, before, strict=True))


def with_storage_of(tensor, nbytes):
    """Make a copy of a tensor whose storage has been resized."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(nbytes)
    return copy


def first_of(given, name):
    value = given[name]
    return value[0] if isinstance(value, list) else value


def replaced(given, name, tensor):
    return given | {name: [tensor, *given[name][1:]] if isinstance(given[name], list) else tensor}


TENSORS = [name for name, value in arguments().items() if isinstance(value, list | torch.Tensor)]


@pytest.mark.parametrize("missing", [1, "all"])
@pytest.mark.parametrize("name", TENSORS)
def test_a_storage_that_is_too_small_raises(name, missing):
    given = arguments()
    tensor = first_of(given, name)
    needed = tensor.numel() * tensor.element_size()
    left = 0 if missing == "all" else needed - 1
    small = replaced(given, name, with_storage_of(tensor, left))
    with pytest.raises(ValueError, match=f"^{name}: expected a storage of at least {needed} bytes, got {left}"):
        call(small)


def test_device_scalars_whose_storage_is_too_small_raise():
    with pytest.raises(ValueError, match="^device_scalars: expected a storage of at least 12 bytes, got 8"):
        call(arguments(device_scalars=with_storage_of(torch.ones(3), 8)))


@pytest.mark.parametrize("name", ["logits", "out", "teacher_logits"])
def test_the_storage_is_compared_with_offset_and_strides(name):
    area = torch.zeros(2 + 7 * (B - 1) + 2 * (C - 1) + 1)
    view = area.as_strided((B, C), (7, 2), 2)
    call(replaced(arguments(), name, view))
    area.untyped_storage().resize_(4 * area.numel() - 4)
    with pytest.raises(
        ValueError,
        match=f"^{name}: expected a storage of at least {4 * area.numel()} bytes, got {4 * area.numel() - 4}",
    ):
        call(replaced(arguments(), name, view))


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_without_memory_raises(name):
    """Torch hands a FakeTensor in teacher_logits to the kernel; for others it raises itself."""
    given = arguments()
    fake = FakeTensorMode(allow_non_fake_inputs=False).from_tensor(first_of(given, name))
    message = f"{name}: expected a tensor with memory" if name == "teacher_logits" else "FakeTensorMode"
    with pytest.raises((ValueError, AssertionError), match=message):
        call(replaced(given, name, fake))


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_on_the_meta_device_raises(name):
    """Torch calls the fake implementation for these, which would return uninitialised memory."""
    given = arguments()
    with pytest.raises(ValueError, match=rf"^(logits\[1\]|{name}(\[0\])?): expected "):
        call(replaced(given, name, first_of(given, name).to("meta")))


@pytest.mark.parametrize("name", ["logits", "teacher_logits", "ensemble_weights"])
def test_tensors_without_strides_raise(name):
    given = arguments()
    tensor = first_of(given, name)
    for other in (tensor.to_sparse(), torch.nested.nested_tensor([tensor], layout=torch.jagged)):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call(replaced(given, name, other))
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        torch.func.vmap(lambda t: call(replaced(given, name, t)))(tensor.expand(2, *tensor.shape))


def test_a_fake_teacher_raises_in_the_loss():
    logits, target = batch(S, B, C)
    with pytest.raises(ValueError, match="^teacher_logits: expected a tensor with memory"):
        ensemble_kd_loss(logits, target, teacher_logits=FakeTensorMode().from_tensor(logits[0]), backend="native")


# Sizes whose products overflow 64 bits. The tensors are expanded, so that they have the memory of one number.
@pytest.mark.parametrize("students, rows, classes", [(511, 1, 2**62), (9001, 2**62, 1), (2, 2**31, 2**18)])
def test_expanded_logits_of_too_many_elements_raise(students, rows, classes):
    logits = [torch.zeros(1, 1).expand(rows, classes)] * students
    message = (
        f"logits: expected at most 2^48 elements of {students} students and teachers, got [{rows}, {classes}] each"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.ensemble_kd_value(logits, None, **op_kwargs(ce_weight=0.0))


def test_empty_logits_of_many_classes_are_valid():
    output = ops.ensemble_kd_value([torch.zeros(0, 1).expand(0, 2**62)] * 2, None, **op_kwargs(ce_weight=0.0))
    assert output[0] == 0


def test_a_storage_that_is_too_small_for_probabilities_or_three_dimensions_raises():
    soft = torch.full((B, C), 1 / C)
    with pytest.raises(ValueError, match="^target: expected a storage of at least 48 bytes, got 44"):
        call(arguments(target=with_storage_of(soft, 44)))
    scale = torch.ones(B)
    with pytest.raises(ValueError, match="^grad_scale: expected a storage of at least 12 bytes, got 8"):
        call(arguments(grad_scale=with_storage_of(scale, 8), reduction="none", num_items=None))
    images = [torch.zeros(2, C, 3), with_storage_of(torch.zeros(2, C, 3), 95)]
    with pytest.raises(ValueError, match="^logits: expected a storage of at least 96 bytes, got 95"):
        ops.ensemble_kd_value(images, torch.zeros(2, 3, dtype=torch.int64), **op_kwargs())


OVERLAPS = "out: expected buffer {} outside the memory of {}, got memory that overlaps"
OF_LOGITS = "out: expected buffer {} outside the memory of logits {}, or exactly their memory if the numbers are equal"


def places(strides, offset=0):
    """Return the offsets of the elements [B, C]."""
    return {offset + i * strides[0] + j * strides[1] for i in range(B) for j in range(C)}


@pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1), (3, 1), (2, 3), (1, 2), (5, 2), (0, 0)], ids=str)
def test_buffers_whose_elements_share_addresses_raise(strides):
    given = arguments(out=[torch.zeros(200).as_strided((B, C), strides), torch.zeros(B, C)])
    if len(places(strides)) == B * C:
        call(given)
    else:
        refuse(given, f"out: expected no two elements at the same address, got strides [{strides[0]}, {strides[1]}]")


@pytest.mark.parametrize("strides", [(4, 1), (8, 1), (1, 3), (5, 7), (9, 2), (12, 3), (1, 20)], ids=str)
@pytest.mark.parametrize("other", ["logits", "out"])
def test_overlaps_of_matrices_with_the_same_strides_are_found_exactly(other, strides):
    """Compare with the addresses of all elements, for rows and columns that interleave in many ways."""
    found = set()
    for offset in range(1, 60):
        area = torch.zeros(200)
        given = arguments()
        given[other][0] = area.as_strided((B, C), strides)
        given["out"][1] = area.as_strided((B, C), strides, offset)
        overlapping = not places(strides).isdisjoint(places(strides, offset))
        found.add(overlapping)
        if overlapping:
            with pytest.raises(ValueError, match="^out: expected (separate memory for each b|b)uffer"):
                call(given)
        else:
            call(given)
    assert found == {False, True}


@pytest.mark.parametrize("shift", [0, 1, C - 1, C])
def test_buffers_may_not_overlap_logits(shift):
    """Slices of one matrix beside each other are separate, although their rows interleave."""
    area = torch.randn(B, 3 * C)
    given = arguments()
    given["logits"][1] = area[:, :C]
    given["out"][1] = area[:, shift : shift + C]
    expected = arguments()
    expected["logits"][1] = area[:, :C].clone()
    if shift in (0, C):  # in place, or beside the logits
        results = [[*call(one), *one["out"], one["weights_grad"]] for one in (given, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    else:
        refuse(given, OF_LOGITS.format(1, 1))
        assert torch.equal(area[:, :C], expected["logits"][1])


@pytest.mark.parametrize("strides", [(12, 3, 1), (3, 6, 1), (1, 2, 8), (13, 3, 1), (24, 6, 2), (4, 1, 8), (5, 3, 2)])
@pytest.mark.parametrize("other", ["logits", "out"])
def test_overlaps_of_images_with_the_same_strides_are_found_exactly(other, strides):
    shape, found = (2, C, 3), set()

    def of(offset):
        steps = [range(0, size * stride, stride) for size, stride in zip(shape, strides, strict=True)]
        return [offset + i + j + k for i in steps[0] for j in steps[1] for k in steps[2]]

    own = len(set(of(0))) < len(of(0))
    for offset in range(1, 50):
        area = torch.zeros(200)
        given = {"logits": [torch.zeros(shape) for _ in range(S)], "out": [torch.zeros(shape) for _ in range(S)]}
        given[other][0] = area.as_strided(shape, strides)
        given["out"][1] = area.as_strided(shape, strides, offset)
        overlapping = own or not set(of(0)).isdisjoint(of(offset))
        found.add(overlapping)
        target = torch.zeros(2, 3, dtype=torch.int64)
        if overlapping:
            with pytest.raises(ValueError, match="^out: expected (separate memory|no two elements|buffer)"):
                ops.ensemble_kd_value_and_grad_out(given["logits"], target, **op_kwargs(out=given["out"]))
        else:
            ops.ensemble_kd_value_and_grad_out(given["logits"], target, **op_kwargs(out=given["out"]))
    assert found == ({True} if own else {False, True})


def test_a_buffer_may_not_be_the_transposed_logits():
    square = torch.zeros(B, B)
    given = arguments(
        logits=[square, torch.zeros(B, B)], out=[square.t(), torch.zeros(B, B)], target=torch.zeros(B).long()
    )
    given |= {"class_weights": None, "teacher_logits": None, "mixing": None}
    refuse(given, OF_LOGITS.format(0, 0))


def test_a_buffer_may_not_be_the_logits_of_another_student():
    given = arguments()
    given["out"] = given["logits"][::-1]
    refuse(given, OF_LOGITS.format(0, 1))
    given["out"] = [given["logits"][0].t().reshape(C, B).t(), given["logits"][1].as_strided((B, C), (1, B))]
    refuse(given, OF_LOGITS.format(1, 1))


def test_buffers_may_not_overlap_each_other():
    area = torch.zeros(2 * B, C)
    refuse(
        arguments(out=[area[:B], area[B - 1 : -1]]),
        "out: expected separate memory for each buffer, got buffers 0 and 1 that overlap",
    )
    same = torch.zeros(B, C)
    refuse(
        arguments(out=[same, same]), "out: expected separate memory for each buffer, got buffers 0 and 1 that overlap"
    )
    call(arguments(out=[area[:B], area[B:]]))
    call(arguments(out=list(torch.zeros(B, S, C).unbind(1))))


@pytest.mark.parametrize("name", ["target", "probabilities", "ensemble_weights", "teacher_logits", "mixing"])
def test_buffers_may_not_overlap_other_inputs(name):
    """The kernel reads these after it has written the gradients of other rows."""
    given = arguments()
    if name == "probabilities":
        name, given["target"] = "target", torch.full((B, C), 1 / C)
    tensor = first_of(given, name)
    area = torch.zeros(100)
    shared = area.view(tensor.dtype)[: tensor.numel()].view(tensor.shape).copy_(tensor)
    given = replaced(given, name, shared)
    given["out"][1] = area[tensor.numel() * tensor.element_size() // 4 - 1 :][: B * C].view(B, C)
    refuse(given, OVERLAPS.format(1, name))
    given["out"][1] = area[tensor.numel() * tensor.element_size() // 4 :][: B * C].view(B, C)
    call(given)


def test_a_buffer_may_share_memory_with_an_input_that_is_converted():
    """The kernel reads a copy in float32 of these."""
    given, expected = arguments(), arguments()
    gate = torch.rand(B, S, dtype=torch.float64)
    area = torch.zeros(2 * B * S, dtype=torch.float32)
    given |= {"ensemble_weights": area.view(torch.float64).view(B, S).copy_(gate), "mixing": None}
    given["out"][0] = area.view(B, C)
    given["weights_grad"] = expected["weights_grad"] = torch.zeros(B, S)
    expected |= {"ensemble_weights": gate, "mixing": None}
    results = [[*call(one), *one["out"], one["weights_grad"]] for one in (given, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_weights_grad_may_not_overlap_a_buffer_or_itself():
    given = arguments()
    refuse(
        given | {"weights_grad": given["out"][1][2, :S]},
        "weights_grad: expected memory outside of out, got memory that overlaps buffer 1",
    )
    refuse(
        given | {"weights_grad": torch.zeros(1).expand(S)},
        "weights_grad: expected no two elements at the same address, got strides [0]",
    )
    gate = torch.full((B, S), 0.5)
    refuse(
        given | {"ensemble_weights": gate, "mixing": None, "weights_grad": torch.zeros(4).as_strided((B, S), (1, 1))},
        "weights_grad: expected no two elements at the same address, got strides [1, 1]",
    )


def test_weights_grad_may_be_the_weights():
    given, expected = arguments(), arguments()
    given["weights_grad"] = given["ensemble_weights"]
    results = [[*call(one), *one["out"], one["weights_grad"]] for one in (given, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.ones(2), "grad_scale: expected one element on the CPU, got [2] on cpu"),
        (torch.ones(0), "grad_scale: expected one element on the CPU, got [0] on cpu"),
        (torch.tensor(1), "grad_scale: expected a floating dtype, got Long"),
        (torch.tensor(True), "grad_scale: expected a floating dtype, got Bool"),
        (torch.tensor(1j), "grad_scale: expected a floating dtype, got ComplexFloat"),
    ],
)
def test_a_grad_scale_that_is_no_number_raises(value, message):
    refuse(arguments(grad_scale=value), message)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"label_smoothing": -0.1}, "label_smoothing: expected a number in [0, 1], got -0.1"),
        ({"label_smoothing": 1.5}, "label_smoothing: expected a number in [0, 1], got 1.5"),
        ({"label_smoothing": math.nan}, "label_smoothing: expected a number in [0, 1], got nan"),
        ({"temperature": -1.0}, "temperature: expected a finite number > 0, got -1"),
        ({"temperature": math.inf}, "temperature: expected a finite number > 0, got inf"),
        ({"temperature": math.nan}, "temperature: expected a finite number > 0, got nan"),
        ({"kd_weight": math.inf}, "kd_weight: expected a finite number, got inf"),
        ({"ensemble_ce_weight": math.nan}, "ensemble_ce_weight: expected a finite number, got nan"),
        ({"detach_ensemble": False}, "detach_ensemble: expected True with the native backend, got False"),
        ({"weights_grad": torch.zeros(S).int()}, "weights_grad: expected a floating dtype, got Int"),
        ({"isa": "mmx"}, "isa: expected one of auto"),
        ({"target": torch.zeros(B, 1).long()}, "target: expected [3] on the CPU, got [3, 1] on cpu"),
        ({"out": [torch.zeros(B, C)] * 3}, "out: expected 2 tensors, got 3"),
        ({"out": []}, "out: expected 2 tensors, got 0"),
    ],
    ids=str,
)
def test_other_arguments_raise_before_anything_is_written(changed, message):
    refuse(arguments(**changed), message)
