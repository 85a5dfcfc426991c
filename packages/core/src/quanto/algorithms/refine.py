# SPDX-License-Identifier: Apache-2.0
"""Scales and zero points once more, for codes that are chosen: least squares over all groups of a row together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantizers import Parameters, Target
from ..quantizers.grid import round_scale, round_zero
from .hessian import each_row, times

__all__ = ["refine"]


def refine(weight: Tensor, elements: Tensor, hessian: Tensor, target: Target, p: Parameters) -> Parameters:
    """The scales, and floating zero points, of least error at a layer's output.

    A row is linear in the scales of its groups and in their products with zero points; its error under the Hessian is
    quadratic, and least where a small linear system per row says. A row whose error does not fall after rounding to
    what is stored keeps what it had.

    Args:
        weight: `[out, in]` float32, what is wanted.
        elements: `[out, in]` float32, the elements of the qtype.
        hessian: `[in, in]` float32, positive definite; or `[groups, in, in]`, for as many parts of the rows.
        target: of the weight; groups along rows that divide them, else the parameters come back as they are.
        p: parameters so far.
    """
    size, group = weight.shape[1], target.block_size[-1] if target.block_size else 0
    if not group or size % group or target.block_size[0] != 1 or p.global_scale is not None:
        return p
    shifts = p.zero_point is not None and p.zero_point.is_floating_point()
    fixed = 0.0 if p.zero_point is None or shifts else p.zero_point.float().repeat_interleave(group, 1)
    basis = elements - fixed
    groups = size // group
    # columns of the system: elements of each group, then, where zero points move too, ones in each group
    count = groups * (2 if shifts else 1)
    matrix = weight.new_empty(len(weight), count, count)
    right = weight.new_empty(len(weight), count)
    for g in range(groups):
        part = slice(g * group, (g + 1) * group)
        rows = [times(basis[:, part], hessian[..., part, :])]
        if shifts:
            rows.append(each_row(hessian[..., part, :].sum(-2), len(weight)))
        for kind, row in enumerate(rows):
            index = kind * groups + g
            matrix[:, index, :groups] = (row * basis).unflatten(1, (groups, group)).sum(-1)
            if shifts:
                matrix[:, index, groups:] = row.unflatten(1, (groups, group)).sum(-1)
            right[:, index] = (row * weight).sum(1)
    ridge = 1e-6 * matrix.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    found, info = torch.linalg.solve_ex(matrix + torch.diag_embed(ridge[:, None].expand(-1, count)), right)
    scale = round_scale(found[:, :groups].clamp(min=0), target.scale_dtype)
    zero: Tensor | None = None
    if shifts:
        zero = round_zero(-found[:, groups:] / scale, target.qtype, target.zero_dtype)
    new = Parameters(scale, zero if shifts else p.zero_point)
    better = (_error(weight, elements, hessian, group, new) < _error(weight, elements, hessian, group, p)) & (info == 0)
    better = (better & (found[:, :groups] > 0).all(1) & found.isfinite().all(1))[:, None]
    return Parameters(
        torch.where(better, scale, p.scale.float()).to(target.scale_dtype),
        p.zero_point
        if zero is None or p.zero_point is None
        else torch.where(better, zero, p.zero_point.float()).to(target.zero_dtype),
    )


def _error(weight: Tensor, elements: Tensor, hessian: Tensor, group: int, p: Parameters) -> Tensor:
    """The error of each row at the output."""
    zero = 0.0 if p.zero_point is None else p.zero_point.float().repeat_interleave(group, 1)
    error = (elements - zero) * p.scale.float().repeat_interleave(group, 1) - weight
    return (times(error, hessian) * error).sum(1)
