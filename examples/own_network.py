"""Build a family of a network of your own, and compute its loss and gradients."""

import torch
from torch import nn

from oekd_fast import StudentEnsemble, ensemble_kd_loss


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.norm2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.shortcut(x)).relu()


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(Block(16, 32), Block(32, 64, 2), Block(64, 64))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


net = Net(num_classes=10)  # trained or not
ensemble = StudentEnsemble.from_module(net, torch.randn(2, 3, 32, 32), num_students=3)
print(ensemble.describe())  # where the network is cut, and the channels of each student
output = ensemble(torch.randn(8, 3, 32, 32))  # the logits and the maps of each student
ensemble_kd_loss(output.logits, torch.randint(10, (8,))).loss.backward()
