# SPDX-License-Identifier: Apache-2.0
"""Rounding column by column: the error of each is made up for by those to come."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantizers import Parameters, Target
from ..quantizers.grid import nearest
from ..quantizers.spread import spread_parameters

__all__ = ["cholesky", "round_columns"]

_COLUMNS = 128  # of a lazy batch


def round_columns(
    weight: Tensor, hessian: Tensor, target: Target, parameters: Parameters, act_order: bool = True
) -> tuple[Tensor, Tensor]:
    """Elements of the qtype for `weight`, and the values that were rounded to them, both `[out, in]` float32.

    Args:
        weight: `[out, in]` float32.
        hessian: `[in, in]` float32, positive definite.
        target: of the weight.
        parameters: its scales and zero points.
        act_order: whether columns with a large diagonal of the Hessian come first.
    """
    scale, zero = spread_parameters(parameters, target, weight)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else None
    if order is not None:
        weight, hessian, scale = weight[:, order], hessian[order][:, order], scale[:, order]
        zero = None if zero is None else zero[:, order]
    # The upper Cholesky factor of the inverse: its row i says how the error of column i spreads to the later ones.
    factor = cholesky(torch.cholesky_inverse(cholesky(hessian))).T.contiguous()
    work = weight.T.contiguous()  # a column of the weight is a row here, contiguous
    scale, zero = scale.T.contiguous(), None if zero is None else zero.T.contiguous()
    elements = torch.empty_like(work)
    for start in range(0, len(work), _COLUMNS):
        end = min(start + _COLUMNS, len(work))
        errors = torch.empty_like(work[start:end])
        for i in range(start, end):
            steps = work[i] / scale[i]
            element = nearest(steps if zero is None else steps.add_(zero[i]), target.qtype)
            value = (element if zero is None else element - zero[i]) * scale[i]
            error = (work[i] - value) / factor[i, i]
            elements[i], errors[i - start] = element, error
            if i + 1 < end:
                work[i + 1 : end].addr_(factor[i, i + 1 : end], error, alpha=-1)
        work[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    elements, work = elements.T, work.T  # a column of work is as it was when its turn came
    if order is not None:
        back = order.argsort()
        elements, work = elements[:, back], work[:, back]
    return elements, work


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor; the diagonal grows until there is one."""
    extra = 0.0
    for _ in range(8):
        grown = matrix + extra * torch.diag(matrix.diagonal()) if extra else matrix
        found: tuple[Tensor, Tensor] = torch.linalg.cholesky_ex(grown)
        if int(found[1]) == 0:
            return found[0]
        extra = max(10 * extra, 1e-4)
    raise ValueError("the inputs of a layer have no usable second moments: they hold NaN or infinity")
