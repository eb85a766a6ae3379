"""Tensors of a device without kernels of this package, such as MPS, take the reference, which uses no float64 there.

Meta tensors stand in for those of MPS, which is available on Apple's machines only and has no float64.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oekd_fast import (
    EnsembleKDLoss,
    ensemble_kd_loss,
    ensemble_kd_value_and_grad,
    feature_kd_loss,
)


class WithoutFloat64(TorchDispatchMode):
    """Raise where a tensor of the device would be float64."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype == torch.float64:
                raise TypeError(f"{function}: MPS does not support float64")
        return result


def tensors(*shapes, dtype=torch.float32):
    return [torch.empty(shape, dtype=dtype, device="meta", requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "reduction": "sum", "detach_ensemble": False}], ids=str
)
def test_the_loss_and_its_gradients(dtype, options):
    logits, target = tensors((4, 7), (4, 7), dtype=dtype), torch.empty(4, dtype=torch.int64, device="meta")
    with WithoutFloat64():
        output = ensemble_kd_loss(logits, target, **options)
        output.loss.backward()
        _, gradients = ensemble_kd_value_and_grad([z.detach() for z in logits], target, **options)
        EnsembleKDLoss()(logits, target)
    assert output.loss.is_meta and output.loss.dtype == torch.float32
    for z, gradient in zip(logits, gradients, strict=True):
        assert z.grad.shape == gradient.shape == z.shape and z.grad.dtype == gradient.dtype == dtype


def test_the_feature_loss_and_its_gradients():
    first, second, teacher, weight, bias = tensors((2, 3, 4, 4), (2, 2, 4, 4), (2, 5, 4, 4), (5, 3, 1, 1), (5,))
    other, other_bias = tensors((5, 2, 1, 1), (5,))
    with WithoutFloat64():
        feature_kd_loss([first, second], teacher.detach(), [weight, other], [bias, other_bias]).backward()
    assert all(tensor.grad is not None for tensor in (first, second, weight, other, bias, other_bias))


@pytest.mark.parametrize(("backend", "error"), [("native", ValueError), ("triton", (ValueError, RuntimeError))])
def test_an_explicit_backend_names_the_device(backend, error):
    target = torch.empty(4, dtype=torch.int64, device="meta")
    with pytest.raises(error, match=rf"backend '{backend}'"):
        ensemble_kd_loss(tensors((4, 7)), target, backend=backend)
