"""Where a network looks: Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from oekd_fast.family.ensemble import Student


@torch.enable_grad()
def grad_cam(student: Student, images: Tensor, classes: Tensor) -> Tensor:
    """Maps of what speaks for `classes` in the last block of `student`.

    The branch returns its maps, so that the gradient of a class's logit is taken by itself, without hooks: its mean
    over the pixels weighs each channel of the map A, and relu(sum_k a_k A_k) is enlarged to the image.

    Args:
        student: in evaluation mode, so that images do not depend on each other.
        images: float32 [B, C_in, H, W], as the network takes them.
        classes: int64 [B], whose logits are explained.

    Returns:
        float32 [B, H, W] in [0, 1], 1 where an image has most of it; all 0 where nothing speaks for the class.

    Raises:
        ValueError: `student` is in training mode.
    """
    if student.training:
        raise ValueError("student: expected evaluation mode, got training mode")
    with torch.no_grad():
        shared = student.base(images)
    logits, maps = student.branch(shared.requires_grad_())
    last = maps[-1]
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), last)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam = (weights * last.detach()).sum(dim=1, keepdim=True).relu()
    cam = F.interpolate(cam, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    most = cam.amax(dim=(1, 2), keepdim=True)
    return torch.where(most > 0, cam / most, 0.0)
