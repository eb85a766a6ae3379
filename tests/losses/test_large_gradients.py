"""Gradients of more than 32 MiB, whose pages are mapped before the kernels write them."""

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import needs_native

pytestmark = needs_native


@pytest.mark.parametrize(
    ("shape", "class_dim", "dtype"),
    [((270, 32000), 1, torch.float32), ((3, 2, 1700, 1701), 1, torch.bfloat16)],
    ids=["rows", "images"],
)
def test_new_large_gradients_have_the_bits_of_given_buffers(shape, class_dim, dtype):
    logits = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(2)]
    assert logits[0].nbytes > 32 << 20
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    out = [torch.full_like(z, float("nan")) for z in logits]
    with torch.no_grad():
        ensemble_kd_value_and_grad(logits, labels, class_dim=class_dim, out=out, backend="native")
    ensemble_kd_loss(logits, labels, class_dim=class_dim, backend="native").loss.backward()
    assert all(torch.equal(z.grad, buffer) for z, buffer in zip(logits, out, strict=True))
