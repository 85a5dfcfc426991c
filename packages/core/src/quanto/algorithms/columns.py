# SPDX-License-Identifier: Apache-2.0
"""Rounding column by column: the error of each is made up for by those to come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..quantizers import Parameters, Target
from ..quantizers.grid import nearest
from ..quantizers.spread import spread_parameters

__all__ = ["add_products", "by_columns", "by_rows", "cholesky", "round_columns"]

_COLUMNS = 128  # of a lazy batch


def round_columns(
    weight: Tensor, hessian: Tensor, target: Target, parameters: Parameters, act_order: bool = True
) -> tuple[Tensor, Tensor]:
    """Elements of the qtype for `weight`, and the values that were rounded to them, both `[out, in]` float32.

    Args:
        weight: `[out, in]` float32.
        hessian: `[in, in]` float32, positive definite; or `[groups, in, in]`, for as many parts of the rows.
        target: of the weight.
        parameters: its scales and zero points.
        act_order: whether columns with a large diagonal of the Hessian come first.
    """
    hessian = hessian if hessian.ndim == 3 else hessian[None]
    # a column of the weight is a row here, contiguous: [in, groups, out / groups]
    given = (weight, *spread_parameters(parameters, target, weight))
    work, scale, zero = (None if t is None else by_columns(t, len(hessian)) for t in given)
    del given
    assert work is not None
    assert scale is not None
    order = hessian.diagonal(dim1=1, dim2=2).argsort(descending=True, stable=True) if act_order else None
    if order is not None:
        index = order.T[:, :, None].expand_as(work)
        work, scale = work.gather(0, index), scale.gather(0, index)
        zero = None if zero is None else zero.gather(0, index)
    # The upper Cholesky factor of the inverse: its row i says how the error of column i spreads to the later ones.
    factor = cholesky(lambda: _inverse(cholesky(lambda: _ordered(hessian, order)))).mT.contiguous()
    elements = torch.empty_like(work)
    for start in range(0, len(work), _COLUMNS):
        end = min(start + _COLUMNS, len(work))
        errors = torch.empty_like(work[start:end])
        for i in range(start, end):
            steps = work[i] / scale[i]
            element = nearest(steps if zero is None else steps.add_(zero[i]), target.qtype)
            value = (element if zero is None else element - zero[i]) * scale[i]
            error = (work[i] - value) / factor[:, i, i, None]
            elements[i], errors[i - start] = element, error
            if i + 1 < end:
                work[i + 1 : end].addcmul_(factor[:, i, i + 1 : end].T[:, :, None], error, value=-1)
        add_products(work[end:], factor[:, start:end, end:].mT, errors, -1)
    if order is not None:
        back = order.argsort().T[:, :, None].expand_as(work)
        elements, work = elements.gather(0, back), work.gather(0, back)
    # a column of work is as it was when its turn came
    return by_rows(elements), by_rows(work)


def _ordered(hessian: Tensor, order: Tensor | None) -> Tensor:
    """A copy of `[groups, in, in]` with rows and columns in another order, `[groups, in]`."""
    if order is None:
        return hessian.clone()
    parts = torch.arange(len(order), device=order.device)[:, None, None]
    return hessian[parts, order[:, :, None], order[:, None, :]]


def _inverse(factor: Tensor) -> Tensor:
    """The inverse of the matrix with this lower Cholesky factor, in its place."""
    return torch.cholesky_inverse(factor, out=factor)


def by_columns(rows: Tensor, groups: int) -> Tensor:
    """`[out, in]` as `[in, groups, out / groups]`, contiguous."""
    parts: Tensor = rows.T.unflatten(1, (groups, -1))
    return parts.contiguous()


def by_rows(columns: Tensor) -> Tensor:
    """The inverse of `by_columns`."""
    return columns.flatten(1).T.contiguous()


def add_products(columns: Tensor, matrices: Tensor, other: Tensor, factor: float = 1.0) -> None:
    """Adds `factor * matrices[g] @ other[:, g]` to `columns[:, g]`, group by group."""
    if len(columns):
        columns.transpose(0, 1).baddbmm_(matrices, other.transpose(0, 1), alpha=factor)


def cholesky(make: Callable[[], Tensor]) -> Tensor:
    """The lower factors of symmetric matrices; the diagonals grow until there are such.

    Args:
        make: gives the matrices, `[…, n, n]`, which the factors then take the place of: of a wide layer, nothing else
            in memory is as large.
    """
    extra = 0.0
    for _ in range(8):
        matrix = make()
        matrix = matrix if matrix.mT.is_contiguous() else matrix.mT  # as LAPACK has them, else it works on a copy
        if extra:
            matrix.diagonal(dim1=-2, dim2=-1).mul_(1 + extra)
        info = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(matrix, out=(matrix, info))
        if not bool(info.any()):
            return matrix
        extra = max(10 * extra, 1e-4)
    raise ValueError("its inputs have no usable second moments: they hold NaN or infinity")
