# SPDX-License-Identifier: Apache-2.0
"""Groups as rows or columns of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["axis_to_dim", "group", "grouped_shape", "ungroup"]


def axis_to_dim(t: Tensor, axis: int) -> list[int]:
    """All dimensions of t but the axis."""
    kept = axis % t.ndim
    return [d for d in range(t.ndim) if d != kept]


def grouped_shape(shape: Sequence[int], axis: int, group_size: int) -> tuple[int, int]:
    """The shape of `group`.

    Raises:
        ValueError: for an axis that is neither the first nor the last.
    """
    if axis not in (0, -1):
        raise ValueError(f"axis must be 0 or -1, got {axis}")
    groups = math.prod(shape) // group_size
    return (groups, group_size) if axis == 0 else (group_size, groups)


def group(base: Tensor, axis: int, group_size: int) -> Tensor:
    """`[groups, size]` of rows (axis 0), or `[size, groups]` of columns (axis -1).

    Raises:
        ValueError: if the size does not divide what lies along the other dimensions.
    """
    grouped_shape(base.shape, axis, group_size)
    width = base.numel() // base.shape[axis]
    if group_size > width or width % group_size:
        raise ValueError(f"group_size must divide {width} for a tensor of shape {tuple(base.shape)}, got {group_size}")
    if axis == 0:
        return base.reshape(-1, group_size)
    columns = base.shape[-1]
    return base.reshape(-1, group_size, columns).permute(1, 2, 0).reshape(group_size, -1)


def ungroup(grouped: Tensor, axis: int, orig_shape: Sequence[int]) -> Tensor:
    """The inverse of `group`."""
    shape = tuple(orig_shape)
    if tuple(grouped.shape) == shape:
        return grouped
    if axis == 0:
        return grouped.reshape(shape)
    return grouped.reshape(grouped.shape[0], shape[-1], -1).permute(2, 0, 1).reshape(shape)
