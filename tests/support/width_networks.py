"""Small networks that functions of a width build, for images [B, 3, 16, 16] and 5 classes."""

import torch
from torch import nn
from torch.nn import functional as F

SIZE, CLASSES = 16, 5


def whole(channels):
    return channels


class PreAct(nn.Module):
    """A block that begins with an activation in place."""

    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.conv1, self.norm = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Identity() if (c_in, stride) == (c_out, 1) else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x):
        x = self.act(x)
        return self.conv2(self.norm(self.conv1(x)).relu_()) + self.shortcut(x)


class ResNet(nn.Module):
    """Two stages in a ModuleList, and a functional classifier."""

    def __init__(self, width=whole, classes=CLASSES, in_channels=3):
        super().__init__()
        a, b = width(8), width(16)
        self.stem = nn.Conv2d(in_channels, a, 3, 1, 1)
        self.stages = nn.ModuleList(
            [nn.Sequential(PreAct(a, a), PreAct(a, a)), nn.Sequential(PreAct(a, b, 2), PreAct(b, b))]
        )
        self.norm, self.head = nn.BatchNorm2d(b), nn.Linear(b, classes)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(F.relu(self.norm(x), inplace=True).mean(dim=(2, 3)))


class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))


class TransformerBlock(nn.Module):
    def __init__(self, channels, heads, hidden):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(channels), Attention(channels, heads)
        self.norm2, self.mlp = (
            nn.LayerNorm(channels),
            nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)),
        )

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, channels, patch=4):
        super().__init__()
        self.project, self.norm = nn.Conv2d(3, channels, patch, patch), nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(self.project(x).flatten(2).transpose(1, 2))


class ViT(nn.Module):
    def __init__(self, width=whole, classes=CLASSES, depth=8, dropout=0.0):
        super().__init__()
        heads, c = 2, 2 * width(8)
        self.patch_embed, self.dropout = PatchEmbed(c), dropout
        self.cls_token = nn.Parameter(torch.randn(1, 1, c) / 4)
        self.pos_embed = nn.Parameter(torch.randn(1, 17, c) / 4)
        self.blocks = nn.ModuleList([TransformerBlock(c, heads, width(32)) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(c), nn.Linear(c, classes)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
