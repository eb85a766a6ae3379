"""Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2)."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from oekd_fast.family.student import Student


@torch.enable_grad()
def grad_cam(student: Student, images: Tensor, classes: Tensor) -> Tensor:
    """Compute maps of the evidence for `classes` in the last block of `student`.

    The map is relu(sum_k a_k A_k), resized to the image, where A is the feature map of the last block and a_k is the
    mean over pixels of the gradient of the class's logit by channel k. No hooks are needed, since the branch returns
    its feature maps. A map of tokens [B, C, T, 1] is a square of patches, after a class token if there is one.

    Args:
        student: network in evaluation mode, so that images are independent of each other.
        images: normalised images, float32 [B, C_in, H, W].
        classes: class to explain for each image, int64 [B].

    Returns:
        float32 [B, H, W] in [0, 1], scaled so that the maximum of each image is 1; all 0 if there is no evidence.

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
    cam = _in_square((weights * last.detach()).sum(dim=1, keepdim=True).relu())
    cam = F.interpolate(cam, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    peak = cam.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, cam / peak, 0.0)


def _in_square(cam: Tensor) -> Tensor:
    """Return the patches of a map of tokens [B, 1, T, 1] as [B, 1, side, side], and other maps as they are."""
    tokens = cam.shape[2]
    side = isqrt(tokens)
    if cam.shape[3] > 1 or tokens - side * side > 1:
        return cam
    return cam[:, :, tokens - side * side :].reshape(len(cam), 1, side, side)
