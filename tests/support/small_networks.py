"""Small plain copies of the structures of well-known networks, for images [B, 3, 32, 32] and 10 classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = (3, 32, 32)


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU())


def head(channels: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Basic(nn.Module):
    """ResNet's block of two convolutions."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(c_in, c_out, 3, stride), conv(c_out, c_out)[:2]
        self.shortcut = nn.Identity() if stride == 1 and c_in == c_out else conv(c_in, c_out, 1, stride)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """ResNet's bottleneck, or RegNet's with groups and squeeze-and-excitation."""

    def __init__(self, c_in: int, c_out: int, middle: int, stride: int = 1, groups: int = 1, se: bool = False) -> None:
        super().__init__()
        self.reduce, self.middle = conv(c_in, middle, 1), conv(middle, middle, 3, stride, groups)
        self.se = SqueezeExcite(middle, 4) if se else nn.Identity()
        self.expand = conv(middle, c_out, 1)[:2]
        self.shortcut = nn.Identity() if stride == 1 and c_in == c_out else conv(c_in, c_out, 1, stride)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.se(self.middle(self.reduce(x)))) + self.shortcut(x))


class PreActivation(nn.Module):
    """ResNet-v2's block."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(c_out), nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = None if stride == 1 and c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + shortcut


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, middle, 1), nn.Conv2d(middle, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """MobileNetV3's and EfficientNet's block."""

    def __init__(self, c_in: int, c_out: int, middle: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(c_in, middle, 1),
            conv(middle, middle, 5, stride, groups=middle),
            SqueezeExcite(middle, 8),
            nn.Hardswish(inplace=True),
            *conv(middle, c_out, 1)[:2],
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Ghost(nn.Module):
    """GhostNet's module: half of the channels come from a depthwise convolution of the other half."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = (c_out + 1) // 2
        self.c_out = c_out
        self.primary, self.cheap = conv(c_in, half, 1), conv(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)[:, : self.c_out]


class Dense(nn.Module):
    """DenseNet's block: each layer reads all earlier ones."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth), nn.ReLU(), nn.Conv2d(channels + i * growth, growth, 3, 1, 1)
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 96), nn.GELU(), nn.Linear(96, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Patches(nn.Module):
    """Patches of 8 x 8 pixels as tokens [B, 16, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, channels, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images).flatten(2).transpose(1, 2)


class MeanToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


class Attention(nn.Module):
    """Self-attention that computes the channels of a head from those of its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5).softmax(-1)
        return self.project((attention @ v).transpose(1, 2).reshape(b, n, c))


class TorchAttention(nn.Module):
    """Self-attention of PyTorch."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(channels), nn.LayerNorm(channels), attention
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """A class token and positions in front of three blocks."""

    def __init__(self, channels: int = 48, heads: int = 3, attention: type[nn.Module] = Attention) -> None:
        super().__init__()
        self.patches = Patches(channels)
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.positions = nn.Parameter(torch.randn(1, 17, channels))
        self.blocks = nn.Sequential(*(TransformerBlock(channels, attention(channels, heads)) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def resnet() -> nn.Module:
    return nn.Sequential(conv(3, 16), Basic(16, 16), Basic(16, 32, 2), Basic(32, 48, 2), head(48))


def bottleneck_resnet() -> nn.Module:
    return nn.Sequential(conv(3, 16), Bottleneck(16, 32, 8), Bottleneck(32, 32, 8), Bottleneck(32, 64, 16, 2), head(64))


def preact_resnet() -> nn.Module:
    blocks = [PreActivation(16, 16), PreActivation(16, 32, 2), PreActivation(32, 32)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), *blocks, nn.BatchNorm2d(32), nn.ReLU(), head(32))


def mobilenet() -> nn.Module:
    blocks = [InvertedResidual(16, 16, 32), InvertedResidual(16, 24, 48, 2), InvertedResidual(24, 24, 48)]
    return nn.Sequential(conv(3, 16, 3, 2), *blocks, conv(24, 96, 1), head(96))


def efficientnet() -> nn.Module:
    first = nn.Sequential(InvertedResidual(16, 16, 16), InvertedResidual(16, 16, 32))
    second = nn.Sequential(InvertedResidual(16, 24, 64, 2), InvertedResidual(24, 24, 96))
    return nn.Sequential(conv(3, 16, 3, 2), first, second, conv(24, 64, 1), head(64))


def regnet() -> nn.Module:
    blocks = [Bottleneck(16, 24, 24, 2, 3, True), Bottleneck(24, 24, 24, 1, 3, True), Bottleneck(24, 56, 56, 2, 7)]
    return nn.Sequential(conv(3, 16), *blocks, Bottleneck(56, 64, 64, 1, 16), head(64))


def ghostnet() -> nn.Module:
    return nn.Sequential(conv(3, 16, 3, 2), Ghost(16, 24), nn.MaxPool2d(2), Ghost(24, 32), head(32))


def densenet() -> nn.Module:
    first, second = Dense(16, 12, 3), Dense(32, 12, 2)
    between = nn.Sequential(nn.BatchNorm2d(52), nn.ReLU(), nn.Conv2d(52, 32, 1), nn.AvgPool2d(2))
    return nn.Sequential(conv(3, 16), first, between, second, nn.BatchNorm2d(56), nn.ReLU(), head(56))


def vgg() -> nn.Module:
    maps = [conv(3, 16), nn.MaxPool2d(2), conv(16, 24), nn.MaxPool2d(4), conv(24, 32), nn.AvgPool2d(2)]
    return nn.Sequential(*maps, nn.Flatten(), nn.Linear(32 * 4, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))


def convnext() -> nn.Module:
    maps = [nn.Conv2d(3, 16, 4, 4), ConvNeXtBlock(16), nn.Conv2d(16, 32, 2, 2), ConvNeXtBlock(32), ConvNeXtBlock(32)]
    return nn.Sequential(*maps, head(32))


def mixer() -> nn.Module:
    return nn.Sequential(Patches(48), MixerBlock(16, 48), MixerBlock(16, 48), MeanToken(), nn.Linear(48, 10))


def vit() -> nn.Module:
    return VisionTransformer()


def torch_vit() -> nn.Module:
    return VisionTransformer(attention=TorchAttention)


NETWORKS = {
    build.__name__: build
    for build in (
        resnet,
        bottleneck_resnet,
        preact_resnet,
        mobilenet,
        efficientnet,
        regnet,
        ghostnet,
        densenet,
        vgg,
        convnext,
        mixer,
        vit,
        torch_vit,
    )
}
