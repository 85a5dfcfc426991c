# SPDX-License-Identifier: Apache-2.0
"""20 photographs of ImageNet with their labels, as foolbox carries them."""

from __future__ import annotations

import torch
from torch import Tensor

from .packages import wheel

__all__ = ["photographs"]

SIZE = 224


def photographs(crops: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images float32 `[n, 3, 224, 224]` with values (byte - 127) / 128, and labels int64 `[n]`.

    Args:
        crops: views of each photograph, of 60 to 100 % of its sides, half of them mirrored; 0: the whole of it.
        seed: of the crops.
    """
    import numpy
    from PIL import Image

    chance = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=chance).item()

    images, labels = [], []
    for path in sorted((wheel("foolbox", "3.3.4") / "foolbox" / "data").glob("imagenet_*.jpg")):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        width, height = picture.size
        for view in range(max(crops, 1)):
            box = (0.0, 0.0, float(width), float(height))
            if crops:
                part = draw(0.6, 1.0)
                left, top = draw(0, (1 - part) * width), draw(0, (1 - part) * height)
                box = (left, top, left + part * width, top + part * height)
            seen = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
            array = torch.from_numpy(numpy.asarray(seen).copy()).permute(2, 0, 1)
            images.append((array.flip(-1) if view % 2 else array).float().sub(127).div(128))
            labels.append(int(path.stem.rpartition("_")[2]))
    return torch.stack(images), torch.tensor(labels)
