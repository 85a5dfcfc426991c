# SPDX-License-Identifier: Apache-2.0
"""Products with a Hessian: `[in, in]` for all rows of a weight, or `[groups, in, in]` for as many parts of them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["each_row", "solve", "times"]


def times(rows: Tensor, hessian: Tensor) -> Tensor:
    """`rows @ hessian`, `[out, in]`; the Hessian may also be `[…, n, in]` for rows `[out, n]`."""
    if hessian.ndim == 2:
        return rows @ hessian
    parts: Tensor = rows.unflatten(0, (len(hessian), -1))
    return (parts @ hessian).flatten(0, 1)


def solve(rows: Tensor, factor: Tensor) -> Tensor:
    """`rows @ inverse(hessian)`, `[out, in]`, for the Hessian's lower Cholesky factor."""
    columns = rows.T if factor.ndim == 2 else rows.unflatten(0, (len(factor), -1)).mT
    # cholesky_solve would copy the factor
    half = torch.linalg.solve_triangular(factor, columns, upper=False)
    found: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True).mT
    return found if factor.ndim == 2 else found.flatten(0, 1)


def each_row(values: Tensor, rows: int) -> Tensor:
    """`[in]` or `[groups, in]` for each of so many rows, `[rows, in]`."""
    if values.ndim == 1:
        return values.expand(rows, -1)
    return values.repeat_interleave(rows // len(values), 0)
