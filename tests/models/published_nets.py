"""Reference ResNet, DenseNet-121 and EfficientNet-B0, with the tensor names of torchvision and timm."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


def conv(c_in, c_out, kernel, stride=1, groups=1, bias=False):
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias)


class ResidualBlock(nn.Module):
    """torchvision's BasicBlock or Bottleneck; `layers` lists (width, kernel, stride) of the convolutions."""

    def __init__(self, c_in, layers):
        super().__init__()
        c = c_in
        for i, (width, kernel, stride) in enumerate(layers, start=1):
            setattr(self, f"conv{i}", conv(c, width, kernel, stride))
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            c = width
        self.depth = len(layers)
        stride = max(stride for _, _, stride in layers)
        self.downsample = None
        if stride > 1 or c_in != c:
            self.downsample = nn.Sequential(conv(c_in, c, 1, stride), nn.BatchNorm2d(c))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, counts, bottleneck, num_classes=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        c = 64
        for s, count in enumerate(counts):
            planes, blocks = 64 * 2**s, []
            for i in range(count):
                stride = 2 if s and not i else 1
                basic, reduced = [(planes, 3, stride), (planes, 3, 1)], [(planes, 1, 1), (planes, 3, stride)]
                blocks.append(ResidualBlock(c, [*reduced, (4 * planes, 1, 1)] if bottleneck else basic))
                c = 4 * planes if bottleneck else planes
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, num_classes)

    def forward(self, x):
        x = functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for s in range(1, 5):
            x = getattr(self, f"layer{s}")(x)
        return self.fc(x.mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), conv(c, 128, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), conv(128, 32, 3)

    def forward(self, x):
        new = self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        return torch.cat((x, new), 1)


class DenseNet121(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        parts = OrderedDict(conv0=nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm0=nn.BatchNorm2d(64))
        parts |= OrderedDict(relu0=nn.ReLU(), pool0=nn.MaxPool2d(3, 2, 1))
        c = 64
        for b, count in enumerate((6, 12, 24, 16), start=1):
            layers = OrderedDict((f"denselayer{i + 1}", DenseLayer(c + 32 * i)) for i in range(count))
            parts[f"denseblock{b}"] = nn.Sequential(layers)
            c += 32 * count
            if b < 4:
                transition = OrderedDict(norm=nn.BatchNorm2d(c), relu=nn.ReLU(), conv=conv(c, c // 2, 1))
                parts[f"transition{b}"] = nn.Sequential(transition | OrderedDict(pool=nn.AvgPool2d(2)))
                c //= 2
        parts["norm5"] = nn.BatchNorm2d(c)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(c, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).relu().mean((2, 3)))


# Stages of EfficientNet-B0: expansion, kernel, stride, channels, number of blocks.
B0 = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip


def conv_norm(c_in, c_out, kernel, stride=1, groups=1, activate=True):
    parts = [conv(c_in, c_out, kernel, stride, groups), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*parts, *([nn.SiLU()] if activate else []))


class SqueezeExcitation(nn.Module):
    def __init__(self, names, c, squeezed):
        super().__init__()
        self.names = names
        setattr(self, names[0], nn.Conv2d(c, squeezed, 1))
        setattr(self, names[1], nn.Conv2d(squeezed, c, 1))

    def forward(self, x):
        reduce, expand = (getattr(self, name) for name in self.names)
        return x * expand(functional.silu(reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class TorchvisionMBConv(nn.Module):
    def __init__(self, c_in, c_out, expansion, kernel, stride):
        super().__init__()
        inner = c_in * expansion
        layers = [conv_norm(c_in, inner, 1)] if expansion > 1 else []
        layers += [conv_norm(inner, inner, kernel, stride, inner), SqueezeExcitation(("fc1", "fc2"), inner, c_in // 4)]
        self.block = nn.Sequential(*layers, conv_norm(inner, c_out, 1, activate=False))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class TorchvisionB0(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        stages, c = [conv_norm(3, 32, 3, 2)], 32
        for expansion, kernel, stride, c_out, count in B0:
            blocks = []
            for i in range(count):
                blocks.append(TorchvisionMBConv(c, c_out, expansion, kernel, 1 if i else stride))
                c = c_out
            stages.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*stages, conv_norm(320, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class TimmBlock(nn.Module):
    """timm's DepthwiseSeparableConv (without expansion) or InvertedResidual."""

    def __init__(self, c_in, c_out, expansion, kernel, stride):
        super().__init__()
        inner, squeeze = c_in * expansion, ("conv_reduce", "conv_expand")
        self.expands = expansion > 1
        self.residual = stride == 1 and c_in == c_out
        if self.expands:
            self.conv_pw, self.bn1 = conv(c_in, inner, 1), nn.BatchNorm2d(inner)
            self.conv_dw, self.bn2 = conv(inner, inner, kernel, stride, inner), nn.BatchNorm2d(inner)
            self.se = SqueezeExcitation(squeeze, inner, c_in // 4)
            self.conv_pwl, self.bn3 = conv(inner, c_out, 1), nn.BatchNorm2d(c_out)
        else:
            self.conv_dw, self.bn1 = conv(inner, inner, kernel, stride, inner), nn.BatchNorm2d(inner)
            self.se = SqueezeExcitation(squeeze, inner, c_in // 4)
            self.conv_pw, self.bn2 = conv(inner, c_out, 1), nn.BatchNorm2d(c_out)

    def forward(self, x):
        if self.expands:
            y = functional.silu(self.bn1(self.conv_pw(x)))
            y = self.se(functional.silu(self.bn2(self.conv_dw(y))))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = self.se(functional.silu(self.bn1(self.conv_dw(x))))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.residual else y


class TimmB0(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, 32, 3, 2), nn.BatchNorm2d(32)
        stages, c = [], 32
        for expansion, kernel, stride, c_out, count in B0:
            blocks = []
            for i in range(count):
                blocks.append(TimmBlock(c, c_out, expansion, kernel, 1 if i else stride))
                c = c_out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = conv(320, 1280, 1), nn.BatchNorm2d(1280)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x):
        x = self.blocks(functional.silu(self.bn1(self.conv_stem(x))))
        return self.classifier(functional.silu(self.bn2(self.conv_head(x))).mean((2, 3)))


# From the layout of a state dict to our name of the network and its constructor.
NETS = {
    "resnet18": ("resnet18", lambda classes: ResNet((2, 2, 2, 2), bottleneck=False, num_classes=classes)),
    "resnet50": ("resnet50", lambda classes: ResNet((3, 4, 6, 3), bottleneck=True, num_classes=classes)),
    "densenet121": ("densenet121", DenseNet121),
    "efficientnet_b0, torchvision": ("efficientnet_b0", TorchvisionB0),
    "efficientnet_b0, timm": ("efficientnet_b0", TimmB0),
}


def published(layout, num_classes):
    """Return our name of the network and the network in evaluation mode, with random BatchNorm statistics."""
    name, build = NETS[layout]
    net = build(num_classes).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(std=0.1)
    return name, net
