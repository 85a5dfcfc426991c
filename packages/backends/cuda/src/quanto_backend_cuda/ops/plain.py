# SPDX-License-Identifier: Apache-2.0
"""`linear` by torch alone: what a new kernel is compared with, and the answer while it compiles.

Decoding by Triton and cuBLAS computes the same, but Triton would compile it beside the kernel that is waited for, and
two compilations in one process hold each other up: 0.5 s alone, 1.6 s beside three others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quanto import reference

from ..layout import TILED

__all__ = ["linear_by_torch"]

# Elements of a weight at a time; decoded in float32, 64 MiB.
_PART = 1 << 24
_ROWS = 16


def linear_by_torch(x: Tensor, weight: Sequence[Any], bias: Tensor | None, qtype: str, block: Sequence[int]) -> Tensor:
    """The layer on `x` `[M, K]` and a tiled weight whose rows do not share scales."""
    codes, scale, zero, shared = weight
    (m, size), n = x.shape, codes.shape[0]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    step = max(_PART // max(size, 1) // _ROWS, 1) * _ROWS
    for first in range(0, n, step):
        rows = slice(first, first + step)
        part = (codes[rows], scale[rows], None if zero is None else zero[rows], shared)
        plain = TILED.unpack(part, qtype, tuple(block), size)
        values = reference.dequantize(*plain, qtype, list(block), size, x.dtype)
        out[:, rows] = torch.nn.functional.linear(x, values, None if bias is None else bias[rows].to(x.dtype))
    return out
