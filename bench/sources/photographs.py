# SPDX-License-Identifier: Apache-2.0
"""Photographs that packages carry: 20 of ImageNet with their labels, and others to calibrate on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .packages import debian, wheel

__all__ = ["others", "photographs"]

SIZE, LARGE = 224, 256


def photographs(views: bool = False) -> tuple[Tensor, Tensor]:
    """Images float32 `[n, 3, 224, 224]` with values (byte - 127) / 128, and labels int64 `[n]`, as foolbox has them.

    Args:
        views: the ten crops of each photograph that Krizhevsky et al., 2012, take, instead of the middle: the corners
            and the middle of the photograph at 256 pixels, and all of them mirrored.
    """
    images, labels = [], []
    for path in sorted((wheel("foolbox", "3.3.4") / "foolbox" / "data").glob("imagenet_*.jpg")):
        crops = _crops(path, 5 if views else 1)
        images += [image for crop in crops for image in (crop, crop.flip(-1))] if views else crops
        labels += [int(path.stem.rpartition("_")[2])] * (2 * len(crops) if views else 1)
    return torch.stack(images), torch.tensor(labels)


def others(count: int = 2) -> Tensor:
    """So many crops of each photograph in Debian's mate-backgrounds, of plants, insects and landscapes, as above."""
    folder = debian("mate-backgrounds") / "usr/share/backgrounds/mate/nature"
    return torch.stack([crop for path in sorted(folder.glob("*.jpg")) for crop in _crops(path, count)])


def _crops(path: Path, count: int) -> list[Tensor]:
    """The middle of a photograph at 256 pixels, and its corners."""
    import numpy
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGB")
    scale = LARGE / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    large = picture.resize((width, height), Image.Resampling.BICUBIC)
    array = torch.from_numpy(numpy.asarray(large).copy()).permute(2, 0, 1).float().sub(127).div(128)
    right, low = width - SIZE, height - SIZE
    places = [(low // 2, right // 2), (0, 0), (low, right), (0, right), (low, 0)]
    return [array[:, top : top + SIZE, left : left + SIZE] for top, left in places[:count]]
