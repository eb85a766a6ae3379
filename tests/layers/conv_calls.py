"""Problems for the convolution ops, their solution by PyTorch and by sequential sums, and changes of a layer."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval


def random(*shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


def problem(batch, channels, outputs, height, width, side, stride):
    """Return x, weight and dy."""
    out = [-(-size // stride) for size in (height, width)]
    return (
        random(batch, channels, height, width),
        random(outputs, channels, side, side, seed=1),
        random(batch, outputs, *out, seed=2),
    )


def naive(x, weight, stride):
    """Compute the convolution as a sequential sum of products."""
    side, out = weight.shape[2], [-(-size // stride) for size in x.shape[2:]]
    padded = functional.pad(x, [side // 2] * 4)
    rows, columns = ((size - 1) * stride + 1 for size in out)
    y = 0
    for c in range(x.shape[1]):
        for i in range(side):
            for j in range(side):
                moved = padded[:, c, i : i + rows : stride, j : j + columns : stride]
                y = y + moved[:, None] * weight[:, c, i, j, None, None]
    return y


def sequential(x, weight, dy, stride):
    """Return y, dx and dweight by sequential sums in the dtype of the tensors."""
    spread = torch.zeros(len(dy), dy.shape[1], *x.shape[2:])
    spread[:, :, ::stride, ::stride] = dy
    leaf = weight.clone().requires_grad_()
    y = naive(x, leaf, stride)
    (dweight,) = torch.autograd.grad(y, leaf, dy)
    return [y.detach(), naive(spread, weight.transpose(0, 1).flip(2, 3), 1), dweight]


def plain(x, weight, dy, stride, dtype):
    """Return y, dx and dweight by PyTorch in `dtype`."""
    x, weight, dy = (t.to(dtype, copy=True).contiguous() for t in (x, weight, dy))
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    y = functional.conv2d(*leaves, stride=stride, padding=weight.shape[2] // 2)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


# Changes of a 3x3 convolution with as many channels in as out, after which an op may not replace it.
CHANGES = {
    "dilation": lambda conv: vars(conv).update(dilation=(2, 2), padding=(2, 2)),
    "padding": lambda conv: vars(conv).update(padding=(0, 0)),
    "circular padding": lambda conv: nn.Conv2d(
        *conv.weight.shape[:2], 3, padding=1, bias=False, padding_mode="circular"
    ),
    "stride": lambda conv: vars(conv).update(stride=(2, 1)),
    "groups": lambda conv: nn.Conv2d(*conv.weight.shape[:2], 3, padding=1, groups=conv.in_channels, bias=False),
    "bias of a fused norm": lambda conv: fuse_conv_bn_eval(
        conv.eval(), nn.BatchNorm2d(conv.out_channels).eval()
    ).train(),
    "5x5 weight": lambda conv: nn.Conv2d(*conv.weight.shape[:2], 5, padding=2, bias=False),
    "1x1 weight with padding": lambda conv: nn.Conv2d(*conv.weight.shape[:2], 1, padding=1, bias=False),
    "pruned weight": lambda conv: prune.random_unstructured(conv, "weight", 0.5),
    "weight_norm": lambda conv: parametrizations.weight_norm(conv),
    "spectral_norm": lambda conv: parametrizations.spectral_norm(conv),
    "forward of the instance": lambda conv: vars(conv).update(forward=lambda x: x.tanh()),
    "hook": lambda conv: conv.register_forward_hook(lambda conv, x, y: 2 * y) and None,
}
