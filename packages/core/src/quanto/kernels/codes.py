# SPDX-License-Identifier: Apache-2.0
"""Comparing codes: two roundings of one value may differ by a step in a tie, and in nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import packing, reference
from ..qtypes import QType

__all__ = ["compare_codes"]

# Dividing and multiplying by the reciprocal round ties differently; truncating instead of rounding moves half of all.
_MAX_TIES = 0.02


def compare_codes(got: Tensor, want: Tensor, qtype: QType, size: int) -> str | None:
    """Compares packed codes; returns a sentence about the worst one, or None.

    Args:
        got: packed codes `[…, ceil(size * bits / 8)]`, as a kernel wrote them.
        want: the same of the reference.
        qtype: of the codes.
        size: codes per row.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"returned codes {got.dtype} {tuple(got.shape)}, not {want.dtype} {tuple(want.shape)}"
    g, w = (_steps(t.detach().cpu(), qtype, size) for t in (got, want))
    apart = (g - w).abs()
    if not apart.numel() or not apart.any():
        return None
    moved = float((apart > 0).double().mean())
    if int(apart.max()) > 1 or (moved > _MAX_TIES and apart.sum() > 1):
        index = [int(i) for i in torch.unravel_index(apart.argmax(), apart.shape)]
        return f"code {index} is {int(apart.max())} steps off, and {moved:.1%} of all codes differ"
    return None


def _steps(codes: Tensor, qtype: QType, size: int) -> Tensor:
    """The rank of each code among the values of its qtype, the two zeros being one; NaN ranks last."""
    every = torch.arange(2**qtype.bits, dtype=torch.uint8).view(qtype.storage)
    values = reference.decode(every, qtype) + 0.0  # -0.0 becomes 0.0
    _, rank = values.unique(return_inverse=True)
    rank = torch.where(values.isnan(), len(values), rank)
    plain = packing.unpack(codes.contiguous(), qtype.bits, size)
    return rank[plain.view(torch.uint8).long()]
