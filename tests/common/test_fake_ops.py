"""Fake implementations of ops: tensors must be on one device."""

import pytest
import torch

from oekd_fast.common.fake_ops import on_one_device
from oekd_fast.losses import feature_kd  # noqa: F401  defines the op


@on_one_device
def fake(first, second=None, *, number=1.0, several=(), **more):
    return first, second, number, several, more


CPU, META = torch.zeros(2), torch.zeros(2, device="meta")


def test_arguments_and_results_pass():
    assert fake(CPU, None, number=2.0, several=[CPU, None]) == (CPU, None, 2.0, [CPU, None], {})
    assert fake(None, 3) == (None, 3, 1.0, (), {})
    assert fake.__name__ == "fake"


@pytest.mark.parametrize(
    "arguments, keywords, text",
    [
        ((CPU, META), {}, "second: expected device cpu as first, got meta"),
        ((META,), {"second": CPU}, "second: expected device meta as first, got cpu"),
        ((None, CPU), {"several": [CPU, META]}, "several[1]: expected device cpu as second, got meta"),
        (([CPU, META],), {}, "first[1]: expected device cpu as first[0], got meta"),
        ((CPU,), {"other": META}, "other: expected device cpu as first, got meta"),
    ],
)
def test_another_device_raises(arguments, keywords, text):
    with pytest.raises(ValueError) as caught:
        fake(*arguments, **keywords)
    assert str(caught.value) == text


def test_an_op_with_a_tensor_on_the_meta_device_raises():
    maps, teacher, weights, biases = [torch.zeros(2, 3, 4, 4)], torch.zeros(2, 5, 4, 4), [torch.zeros(5, 3)], [CPU]
    for op in (torch.ops.oekd_fast.feature_kd_value, torch.ops.oekd_fast.feature_kd_value_and_grad):
        with pytest.raises(ValueError, match=r"^teacher: expected device cpu as maps\[0\], got meta$"):
            op(maps, teacher.to("meta"), weights, biases)
