# SPDX-License-Identifier: Apache-2.0
"""Codes once more: each column is rounded anew to where all others leave least error, several times over."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantizers import Parameters, Target
from ..quantizers.grid import nearest
from ..quantizers.spread import spread_parameters
from .columns import add_products, by_columns, by_rows

__all__ = ["descend"]

_COLUMNS = 128  # of a lazy batch


def descend(
    weight: Tensor, elements: Tensor, hessian: Tensor, target: Target, p: Parameters, sweeps: int = 1
) -> tuple[Tensor, Tensor]:
    """Coordinate descent on the codes (CDQuant, Nair and Suggala, 2024, arXiv:2406.17542, its cyclic form).

    With all other columns fixed, the error of a column under the Hessian is a parabola whose minimum is known, and the
    best code is the nearest to that; so no step raises the error of any row.

    Args:
        weight: `[out, in]` float32, what is wanted.
        elements: `[out, in]` float32, where to start.
        hessian: `[in, in]` float32, positive definite; or `[groups, in, in]`, for as many parts of the rows.
        target: of the weight.
        p: its scales and zero points, which stay.
        sweeps: over all columns.

    Returns:
        Elements, and the values that were rounded to them, both `[out, in]` float32.
    """
    hessian = hessian if hessian.ndim == 3 else hessian[None]
    # a column of the weight is a row here, contiguous: [in, groups, out / groups]
    given = (weight, elements, *spread_parameters(p, target, weight))
    wanted, found, scale, zero = (None if t is None else by_columns(t, len(hessian)) for t in given)
    assert wanted is not None
    assert found is not None
    assert scale is not None
    values = (found if zero is None else found - zero) * scale
    slope = torch.zeros_like(values)  # half the error's gradient
    add_products(slope, hessian, values - wanted)
    diagonal, floats = hessian.diagonal(dim1=1, dim2=2).T[:, :, None], torch.empty_like(values)
    for _ in range(sweeps):
        for start in range(0, len(found), _COLUMNS):
            end = min(start + _COLUMNS, len(found))
            moved = torch.empty_like(found[start:end])
            for i in range(start, end):
                torch.sub(values[i], slope[i] / diagonal[i], out=floats[i])
                steps = floats[i] / scale[i]
                element = nearest(steps if zero is None else steps.add_(zero[i]), target.qtype)
                value = (element if zero is None else element - zero[i]) * scale[i]
                moved[i - start] = value - values[i]
                found[i], values[i] = element, value
                slope[start:end].addcmul_(hessian[:, i, start:end].T[:, :, None], moved[i - start])
            add_products(slope[:start], hessian[:, :start, start:end], moved)
            add_products(slope[end:], hessian[:, end:, start:end], moved)
    return by_rows(found), by_rows(floats)
