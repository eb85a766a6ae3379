"""1x1 convolutions of every n-th pixel: by a larger stride, except on the CPU."""

import pytest
import torch
from torch import nn

from oekd_fast.layers import direct_conv as layer
from oekd_fast.layers.direct_conv import direct_conv


@pytest.mark.parametrize("groups, stride", [(1, 1), (2, 2)])
def test_on_other_devices_a_larger_stride_takes_every_second_pixel(groups, stride, monkeypatch):
    """Computed here in float64, for which the CPU does not use oneDNN."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 6, 1, stride=stride, groups=groups).double()
    x = torch.randn(2, 4, 9, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    dy = None
    results = []
    for on_cpu in (True, False):
        monkeypatch.setattr(layer, "_takes_stride", lambda conv, x, strided=not on_cpu: strided)
        y = direct_conv(conv, x, every=2)
        dy = torch.randn(y.shape, generator=generator, dtype=torch.float64) if dy is None else dy
        results.append((y, *torch.autograd.grad(y, (x, conv.weight, conv.bias), dy)))
    for pooled, strided in zip(*results, strict=True):
        torch.testing.assert_close(strided, pooled, rtol=1e-14, atol=1e-14)


def test_only_an_unmodified_1x1_convolution_on_other_devices_takes_a_larger_stride():
    x = torch.empty(2, 4, 9, 7, device="meta")
    with torch.device("meta"):
        convs = [nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1, padding=1), nn.Conv2d(4, 6, 3, padding="same")]
        hooked = nn.Conv2d(4, 6, 1)
    hooked.register_forward_hook(lambda *call: None)
    assert [layer._takes_stride(conv, x) for conv in (*convs, hooked)] == [True, False, False, False]
    assert not layer._takes_stride(convs[0], torch.empty(2, 4, 9, 7))
    assert direct_conv(convs[0], x, every=2).shape == (2, 6, 5, 4)
