# SPDX-License-Identifier: Apache-2.0
"""20 photographs of ImageNet with their labels, as foolbox carries them."""

from __future__ import annotations

import torch
from torch import Tensor

from .packages import wheel

__all__ = ["photographs"]

SIZE, LARGE = 224, 256


def photographs(views: bool = False) -> tuple[Tensor, Tensor]:
    """Images float32 `[n, 3, 224, 224]` with values (byte - 127) / 128, and labels int64 `[n]`.

    Args:
        views: the ten crops of each photograph that Krizhevsky et al., 2012, take, instead of the middle: the corners
            and the middle of the photograph at 256 pixels, and all of them mirrored.
    """
    import numpy
    from PIL import Image

    images, labels = [], []
    for path in sorted((wheel("foolbox", "3.3.4") / "foolbox" / "data").glob("imagenet_*.jpg")):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        scale = LARGE / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        large = picture.resize((width, height), Image.Resampling.BICUBIC)
        array = torch.from_numpy(numpy.asarray(large).copy()).permute(2, 0, 1).float().sub(127).div(128)
        right, low = width - SIZE, height - SIZE
        corners = [(0, 0), (0, right), (low, 0), (low, right)] if views else []
        for top, left in [(low // 2, right // 2), *corners]:
            crop = array[:, top : top + SIZE, left : left + SIZE]
            images += [crop, crop.flip(-1)] if views else [crop]
            labels += [int(path.stem.rpartition("_")[2])] * (2 if views else 1)
    return torch.stack(images), torch.tensor(labels)
