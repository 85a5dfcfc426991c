# SPDX-License-Identifier: Apache-2.0
"""Block arithmetic: which elements share a scale.

A `block_size` has one entry per dimension of the tensor; `scale.shape[i] == ceil(shape[i] / block_size[i])`:

    weight [out, in]        block_size      scale
    per tensor              ()              []
    per channel             (1, in)         [out, 1]
    per group of g          (1, g)          [out, ceil(in / g)]
    2-D blocks              (b, b)          [ceil(out / b), ceil(in / b)]

The last block of a dimension may be short.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["choose_group_size", "merge", "scale_shape", "split", "spread"]


def scale_shape(shape: Sequence[int], block_size: Sequence[int]) -> tuple[int, ...]:
    """Shape of the scale of a tensor of `shape`; `()` for one scale per tensor."""
    if not block_size:
        return ()
    if len(shape) != len(block_size):
        raise ValueError(f"block_size {tuple(block_size)} must have one entry per dimension of shape {tuple(shape)}")
    return tuple(-(-n // b) if b else 0 for n, b in zip(shape, block_size, strict=True))


def split(x: Tensor, block_size: Sequence[int]) -> Tensor:
    """Views `x` as blocks: each dimension n becomes (number of blocks, block length), zero-padded where short."""
    pads: list[int] = []
    shape: list[int] = []
    for n, b in zip(x.shape, block_size, strict=True):
        blocks = 1 if b == n else -(-n // b)
        shape += [blocks, b]
        pads = [0, 0 if b == n else blocks * b - n, *pads]
    if any(pads):
        x = torch.nn.functional.pad(x, pads)
    return x.reshape(shape)


def spread(scale: Tensor) -> Tensor:
    """Reshapes a scale `[a, b]` to `[a, 1, b, 1]` so that it broadcasts over `split(x)`."""
    return scale.reshape([n for size in scale.shape for n in (size, 1)])


def merge(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `split`: joins blocks and cuts the padding off."""
    joined = blocks.reshape([blocks.shape[2 * i] * blocks.shape[2 * i + 1] for i in range(len(shape))])
    for dim, n in enumerate(shape):
        if joined.shape[dim] != n:
            joined = joined.narrow(dim, 0, n)
    return joined


def choose_group_size(size: int, group_size: int) -> int:
    """The group length used for rows of `size` elements when `group_size` is asked for.

    The rule: the whole row if it is not longer than a group; the asked length if it divides; else the largest
    multiple of 32 in `[group_size / 4, group_size]` that divides; else the asked length, and the last group is short.
    Widths such as 576 so get 96 and keep equal groups; 4304 keeps 128 with a last group of 80.

    Raises:
        ValueError: if `group_size` is not positive.
    """
    if group_size <= 0:
        raise ValueError(f"group_size must be positive, got {group_size}")
    if size <= group_size:
        return size
    if size % group_size == 0:
        return group_size
    for candidate in range(group_size // 32 * 32, 0, -32):
        if candidate * 4 < group_size:
            break
        if size % candidate == 0:
            return candidate
    return group_size
