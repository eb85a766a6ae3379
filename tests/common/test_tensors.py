"""The first tensor that is not finite."""

import pytest
import torch

from oekd_fast.common.tensors import not_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_tensor_with_a_bad_value_is_named(dtype, value):
    tensors = {"count": torch.tensor(2**62), "a": torch.zeros(3, dtype=dtype), "empty": torch.empty(0, dtype=dtype)}
    assert not_finite(tensors) is None
    bad = torch.ones(2, 3, dtype=dtype)
    bad[1, 2] = value
    assert not_finite(tensors | {"bad": bad, "worse": bad}) == "bad"


def test_integers_and_no_tensors_are_finite():
    assert not_finite({}) is None and not_finite({"count": torch.tensor([1, 2]), "mask": torch.tensor(True)}) is None
