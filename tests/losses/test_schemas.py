"""The ops as torch sees them, and their own checks of arguments when they are called directly."""

import math
import re

import pytest
import torch

from oekd_fast.losses import native_ops

from ..conftest import ISAS, batch, needs_native, op_kwargs
from ..support.refusals import LOGITS, TARGET

pytestmark = needs_native
ops = torch.ops.oekd_fast
OPS = (ops.ensemble_kd_value, ops.ensemble_kd_value_and_grad, ops.ensemble_kd_value_and_grad_out)
Z, Y = LOGITS[0], TARGET


def name_of(op):
    return op._qualified_op_name.split("::")[1]


# Shape, dtype, and whether labels and weights are given: each pair of an optional argument and of a shape occurs.
PLAIN = [
    ((5, 4, 10), torch.float32, True, True),
    ((5, 4, 10), torch.float32, False, False),
    ((1, 3, 1500), torch.bfloat16, True, False),
    ((2, 0, 7), torch.float16, False, True),
]


@pytest.mark.parametrize("shape, dtype, with_target, with_weights", PLAIN)
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_opcheck(op, shape, dtype, with_target, with_weights, one_thread):
    logits, target = batch(*shape, dtype=dtype)
    weights = torch.full((shape[0],), 1 / shape[0]) if with_weights else None
    kwargs = op_kwargs(ensemble_weights=weights, ce_weight=0.7 if with_target else 0.0)
    if op is OPS[2]:
        kwargs["out"] = [torch.full_like(z, math.nan) for z in logits]
    torch.library.opcheck(op.default, (logits, target if with_target else None), kwargs)


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_opcheck_of_scalars_in_a_tensor(op, one_thread):
    logits, target = batch(3, 4, 6)
    kwargs = op_kwargs(device_scalars=torch.tensor([2.5, 0.7, 0.15]))
    if op is OPS[2]:
        kwargs["out"] = [torch.full_like(z, math.nan) for z in logits]
    torch.library.opcheck(op.default, (logits, target), kwargs)


# Each op with each kind of mixing, and with and without teachers.
@pytest.mark.parametrize(
    "op, mixing_space, with_teachers",
    [
        pytest.param(op, space, (i + k) % 2 == 0, id=f"{name_of(op)}-{space}-{(i + k) % 2 == 0}")
        for i, op in enumerate(OPS)
        for k, space in enumerate((None, "logits", "probabilities"))
    ],
)
def test_opcheck_of_objectives(op, mixing_space, with_teachers, one_thread):
    logits, target = batch(3, 4, 6)
    gate = torch.rand(4, 3).softmax(dim=1)
    kwargs = op_kwargs(ensemble_weights=gate, ensemble_ce_weight=0.5, mixing_space=mixing_space or "logits")
    if with_teachers:
        teachers = 2 if mixing_space else 1
        kwargs["teacher_logits"] = [torch.randn(4, 6) for _ in range(teachers)]
    if mixing_space:
        kwargs["mixing"] = torch.rand(3, 3 + len(kwargs.get("teacher_logits", ())))
    if op is OPS[2]:
        kwargs |= {"out": [torch.full_like(z, math.nan) for z in logits], "weights_grad": torch.rand(4, 3)}
    torch.library.opcheck(op.default, (logits, target), kwargs)


def test_opcheck_of_the_differentiable_value(one_thread):
    logits, target = batch(3, 4, 6)
    logits[0].requires_grad_()
    logits[2].requires_grad_()
    torch.library.opcheck(ops.ensemble_kd_value.default, (logits, target), op_kwargs())


@pytest.mark.parametrize("layout", ["transposed", "sliced", "scaled"])
def test_opcheck_of_strides_and_grad_scale(layout, one_thread):
    logits, target = batch(3, 4, 6)
    if layout == "transposed":
        logits = [z.t().contiguous().t() for z in logits]
    if layout == "sliced":
        logits = [torch.cat([z, z], dim=1)[:, 1:7] for z in logits]
    keywords = {"grad_scale": torch.tensor(2.0)} if layout == "scaled" else {}
    torch.library.opcheck(ops.ensemble_kd_value_and_grad.default, (logits, target), op_kwargs(**keywords))


# name: (shape of the logits, arguments)
NEW = {
    "images, class weights, num_items": (
        (2, 4, 18),
        {"class_weights": torch.rand(4) + 0.1, "num_items": 30, "label_smoothing": 0.1},
    ),
    "rows": ((5, 4), {"reduction": "none"}),
    "rows of images": ((2, 4, 18), {"reduction": "none"}),
    "js": ((5, 4), {"divergence": "js", "beta": 0.3}),
    "reverse, images": ((2, 4, 3), {"divergence": "reverse"}),
    "standardised": ((5, 4), {"standardise_logits": True}),
}


# Each op with each set of options and with both kinds of labels, and each set of options with both kinds.
@pytest.mark.parametrize(
    "op, name, soft",
    [
        pytest.param(op, name, (i + k) % 2 == 0, id=f"{name_of(op)}-{name}-{(i + k) % 2 == 0}")
        for i, op in enumerate(OPS)
        for k, name in enumerate(NEW)
    ],
)
def test_opcheck_of_the_arguments_of_cross_entropy(op, name, soft, one_thread):
    shape, options = NEW[name]
    logits = [torch.randn(shape) for _ in range(3)]
    rows = (shape[0], *shape[2:])
    target = torch.rand(shape).softmax(dim=1) if soft else torch.zeros(rows, dtype=torch.int32)
    kwargs = op_kwargs(**options)
    if op is OPS[2]:
        kwargs["out"] = [torch.full_like(z, math.nan) for z in logits]
    if "reduction" in options and op is not OPS[0]:
        kwargs["grad_scale"] = torch.rand(math.prod(rows))
    torch.library.opcheck(op.default, (logits, target), kwargs)
    if op is OPS[0]:
        torch.library.opcheck(op.default, ([z.requires_grad_() for z in logits], target), kwargs)


@pytest.mark.parametrize("isa", ISAS)
def test_a_label_outside_the_classes_raises_in_the_value_op(isa):
    with pytest.raises(ValueError, match=re.escape("target: expected labels in [0, 4)")):
        native_ops.ensemble_kd_value(LOGITS, torch.tensor([0, 4, 3]), **op_kwargs(), isa=isa)


def op_value_and_grad(logits=LOGITS, target=TARGET, *, out=None, weights_grad=None, **options):
    kwargs = op_kwargs(**options)
    if out is None:
        return native_ops.ensemble_kd_value_and_grad(logits, target, **kwargs)
    return native_ops.ensemble_kd_value_and_grad_out(logits, target, **kwargs, out=out, weights_grad=weights_grad)


BAD_OP = {
    "no students": ({"logits": []}, "logits"),
    "no classes": ({"logits": [Z[:, :0]]}, "logits"),
    "one dimension": ({"logits": [Z[0]]}, "logits"),
    "shapes differ": ({"logits": [Z, Z[:2]]}, "logits"),
    "dtypes differ": ({"logits": [Z, Z.half()]}, "logits"),
    "doubles": ({"logits": [Z.double()]}, "logits"),
    "target of other length": ({"target": Y[:2]}, "target"),
    "target of bool": ({"target": Y.bool()}, "target"),
    "target of one dimension more": ({"logits": [Z[:, :, None]] * 2, "target": Y}, "target"),
    "probabilities of other shape": ({"target": torch.full((3, 2), 0.5)}, "target"),
    "probabilities below 0": ({"target": torch.tensor([[1.5, -0.5, 0.0, 0.0]] * 3)}, "target"),
    "probabilities that do not sum to 1": ({"target": torch.full((3, 4), 0.3)}, "target"),
    "class weights of other length": ({"class_weights": torch.ones(3)}, "class_weights"),
    "class weights of integers": ({"class_weights": torch.ones(4).long()}, "class_weights"),
    "class weights below 0": ({"class_weights": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "weight"),
    "class weights of 0": ({"class_weights": torch.zeros(4)}, "weight"),
    "num_items 0": ({"num_items": torch.tensor(0)}, "num_items"),
    "num_items nan": ({"num_items": torch.tensor(math.nan)}, "num_items"),
    "two num_items": ({"num_items": torch.ones(2)}, "num_items"),
    "a mean of rows": ({"per_row": True}, "per_row"),
    "beta 1": ({"beta": 1.0}, "beta"),
    "beta nan": ({"beta": math.nan}, "beta"),
    "weights of other length": ({"ensemble_weights": torch.ones(3)}, "ensemble_weights"),
    "temperature 0": ({"temperature": 0.0}, "temperature"),
    "temperature nan": ({"temperature": math.nan}, "temperature"),
    "ce_weight nan": ({"ce_weight": math.nan}, "ce_weight"),
    "two values": ({"device_scalars": torch.ones(2)}, "device_scalars"),
    "values in a matrix": ({"device_scalars": torch.ones(1, 3)}, "device_scalars"),
    "values of doubles": ({"device_scalars": torch.ones(3).double()}, "device_scalars"),
    "five values": ({"device_scalars": torch.ones(5)}, "device_scalars"),
    "a fourth value that is nan": ({"device_scalars": torch.tensor([2.0, 0.7, 0.15, math.nan])}, "ensemble_ce_weight"),
    "ensemble_ce_weight without a target": (
        {"target": None, "ce_weight": 0.0, "ensemble_ce_weight": 0.5},
        "target",
    ),
    "a gate transposed": ({"ensemble_weights": torch.ones(2, 3)}, "ensemble_weights"),
    "teacher of other shape": ({"teacher_logits": [Z[:2]]}, "teacher_logits"),
    "teacher of integers": ({"teacher_logits": [Z.long()]}, "teacher_logits"),
    "mixing of other shape": ({"mixing": torch.eye(3)}, "mixing"),
    "mixing without the teacher": ({"mixing": torch.eye(2), "teacher_logits": [Z]}, "mixing"),
    "two teachers without mixing": ({"teacher_logits": [Z, Z]}, "mixing"),
    "mixing of integers": ({"mixing": torch.eye(2).long()}, "mixing"),
    "weights_grad of other shape": (
        {"ensemble_weights": torch.ones(2), "weights_grad": torch.ones(3, 2), "out": [Z.clone(), Z.clone()]},
        "weights_grad",
    ),
    "weights_grad without weights": (
        {"weights_grad": torch.ones(2), "out": [Z.clone(), Z.clone()]},
        "weights_grad",
    ),
    "a value below 0": ({"device_scalars": torch.tensor([-1.0, 0.7, 0.15])}, "temperature"),
    "one buffer": ({"out": [Z.clone()]}, "out"),
    "buffer of other shape": ({"out": [Z.clone(), Z[:2].clone()]}, "out"),
    "buffer of other dtype": ({"out": [Z.clone(), Z.half()]}, "out"),
}


@pytest.mark.parametrize("name", BAD_OP)
def test_ops_check_their_arguments(name):
    changed, argument = BAD_OP[name]
    with pytest.raises((ValueError, TypeError), match=f"{argument}: expected"):
        op_value_and_grad(**changed)


def test_ops_raise_for_an_unknown_divergence():
    kwargs = op_kwargs() | {"divergence": 4}
    with pytest.raises(ValueError, match="^divergence: expected 0, 1, 2 or 3, got 4"):
        native_ops.ensemble_kd_value(LOGITS, TARGET, **kwargs)


def test_ops_raise_for_a_grad_scale_of_two_elements():
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        op_value_and_grad(grad_scale=torch.ones(2))
