# SPDX-License-Identifier: Apache-2.0
"""Convolutions as the linear layers they are: the windows of the input as rows, for each group of channels its own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.base import QModule
from .step import Block

__all__ = ["Convolution", "convolution_layers", "rows_of"]

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolution_layers(block: Block) -> dict[str, QModule]:
    """The convolutions that are still floating, by name.

    Left out, and named in `block.skipped`: transposed ones, whose outputs see different parts of the kernel.
    """
    found: dict[str, QModule] = {}
    for name, module in block.module.named_modules():
        if not isinstance(module, QModule) or module.frozen or not module._slots:
            continue
        if isinstance(module, Convolution):
            found[name] = module
        elif isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            block.skipped.append(f"{name}: a transposed convolution is rounded by its scheme's algorithm")
    return found


def rows_of(layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """What each weight of a layer is multiplied with, in parts.

    Args:
        layer: a linear one, or a convolution.
        x: its input.

    Yields:
        `[rows, in]`; for a convolution of several groups `[groups, rows, in]`, an example of the batch at a time, with
        `in` in the order of the weight: channels of the group, then places in the kernel.
    """
    if not isinstance(layer, Convolution):
        yield x.reshape(-1, x.shape[-1])
        return
    x = x if x.ndim == layer.weight.ndim else x[None]
    for example in x.split(1):
        yield _windows(layer, example)


def _windows(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for dim, (kernel, stride, dilation) in enumerate(sizes, 2):
        x = x.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    count = len(layer.kernel_size)
    x = x.unflatten(1, (layer.groups, -1))  # [n, groups, channels, places …, kernel …]
    order = [1, 0, *range(3, 3 + count), 2, *range(3 + count, 3 + 2 * count)]
    x = x.permute(order).flatten(count + 2).flatten(1, count + 1)
    return x if layer.groups > 1 else x[0]
