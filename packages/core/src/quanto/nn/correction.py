# SPDX-License-Identifier: Apache-2.0
"""A low-rank correction of a linear layer's error: two small floating matrices beside its codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .base import QModule

__all__ = ["DOWN", "UP", "corrected", "find", "is_unset", "prepare", "store"]

#: names of the parameters, `[rank, in]` and `[out, rank]`
DOWN, UP = "correction_in", "correction_out"


def prepare(module: QModule) -> None:
    """Gives a layer the parameters that its scheme's rank asks for, zeros, and takes away what it doesn't."""
    slot, rank = module._slots["weight"], module.scheme.rank
    held = module._parameters.get(DOWN)
    if rank is None:
        for name in (DOWN, UP):
            module._parameters.pop(name, None)
        return
    out, size = slot.shape
    rank = min(rank, out, size)
    if held is not None and held.shape[0] == rank:
        return
    where = next(p.device for p in module._parameters.values() if p is not None)
    for name, shape in ((DOWN, (rank, size)), (UP, (out, rank))):
        zeros = torch.zeros(shape, dtype=slot.dtype, device=where)
        module._parameters[name] = nn.Parameter(zeros, requires_grad=False)


def is_unset(module: QModule) -> bool:
    """Whether the layer has a correction that is still nothing."""
    up = module._parameters.get(UP)
    return up is not None and not up.is_meta and not bool(up.detach().any())


def corrected(module: QModule, x: Tensor, y: Tensor) -> Tensor:
    """The layer's output with the correction's added, if it has one."""
    p = module._parameters
    down, up = p.get(DOWN), p.get(UP)
    if down is None or up is None:
        return y
    return y + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)).to(y.dtype)


@torch.no_grad()
def find(error: Tensor, rank: int, hessian: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The product of two matrices that is nearest to an error.

    Nearest in squares of the weights (ZeroQuant-V2, Yao et al., 2023, arXiv:2303.08302); with the inputs' second
    moments in squares of the layer's output, as LQER (Zhang et al., 2024, arXiv:2402.02446) approximates by a diagonal:
    the singular values of the error times a square root of the moments.

    Args:
        error: float minus quantized weight, `[out, in]` float32.
        rank: at most the smaller of both.
        hessian: `[in, in]` float32, positive definite, the mean of `x x^T`.

    Returns:
        `[rank, in]` and `[out, rank]` float32.
    """
    root = None if hessian is None else torch.linalg.cholesky(hessian)
    u, s, v = torch.linalg.svd(error if root is None else error @ root, full_matrices=False)
    half = s[:rank].sqrt()
    down = half[:, None] * v[:rank]
    if root is not None:
        down = torch.linalg.solve_triangular(root, down, upper=False, left=False)
    return down, u[:, :rank] * half


def store(module: QModule, weight: Tensor, hessian: Tensor | None = None) -> None:
    """Finds and stores the correction of a frozen layer.

    Args:
        module: with a scheme that has a rank.
        weight: `[out, in]`, what the float layer had.
        hessian: see `find`.
    """
    p = module._parameters
    held, up = p[DOWN], p[UP]
    assert held is not None
    assert up is not None
    error = weight.detach().float() - module.qtensor().dequantize().float()
    found = find(error, held.shape[0], hessian)
    for parameter, value in zip((held, up), found, strict=True):
        parameter.data.copy_(value)
