# SPDX-License-Identifier: Apache-2.0
"""How alike two batches of pictures `[n, channels, height, width]` from -1 to 1 are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["perceptual", "psnr", "ssim"]


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal to noise in decibels; 120 at most, for equal pictures."""
    return -10 * math.log10(max(float(F.mse_loss(x.double(), y.double())) / 4, 1e-12))


def ssim(x: Tensor, y: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004), over windows of 7 x 7, or 3 x 3 in pictures smaller than 32."""
    size = 7 if min(x.shape[-2:]) >= 32 else 3
    a, b = F.avg_pool2d(x, size, 1), F.avg_pool2d(y, size, 1)
    both = F.avg_pool2d(x * y, size, 1) - a * b
    spread = F.avg_pool2d(x * x, size, 1) - a * a + F.avg_pool2d(y * y, size, 1) - b * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return float(((2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (spread + c2))).mean())


@torch.no_grad()
def perceptual(x: Tensor, y: Tensor, features: Callable[[Tensor], Sequence[Tensor]]) -> float:
    """Distance in the features of a network, as LPIPS (Zhang et al. 2018) without weights that people's taste gave.

    Args:
        x, y: pictures.
        features: gives activations `[n, channels, height, width]` of several depths. Each place's channels are scaled
            to length 1, and squared differences averaged over places, then over depths; 0 to 4.
    """
    distances = [
        float((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean())
        for a, b in zip(features(x), features(y), strict=True)
    ]
    return sum(distances) / len(distances)
